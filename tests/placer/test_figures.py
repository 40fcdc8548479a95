"""Figures of reports: everything that names something is inside of the picture, whatever users call it."""

from collections.abc import Callable, Sequence

import pytest
from matplotlib.figure import Figure

from placer.calibration_document import ResidualPoint
from placer.calibration_figures import agreement_figure, residual_figure
from placer.drawing import png_of, svg_of
from placer.validation import ValidatedRun, validate_twin
from placer.validation_figures import goodput_figure, scatter_figure, slots_figure
from tests.twin.run_tables import RUN, write_runs
from twin.validation.regimes import REGIME_RULES

REGIMES = {
    "few": ("decode",),
    "usual": tuple(
        f"{kind}, {lora}"
        for kind in ("decode", "prefill or mixed step")
        for lora in ("without LoRA", "with LoRA", "slots without adapters")
    ),
    "long": ("server.example:8000/v1 engine 0, " * 8, "x" * 300, "y"),
    "many": tuple(f"regime of a measurement, number {number}" for number in range(30)),
    "mathematics": (r"cost in $ and \frac$", "50 $/h", "a_b^c", "$$"),
}


def _points(regimes: Sequence[str]) -> list[ResidualPoint]:
    return [
        ResidualPoint(
            regime=regime,
            tokens=10.0 * number,
            requests=number,
            context_tokens=100.0,
            slots=8,
            adapters=4,
            measured_ms=10.0 + number,
            predicted_ms=11.0 + number,
        )
        for number, regime in enumerate(regimes, start=1)
    ]


def assert_whole(figure: Figure, num_labels: int) -> None:
    """Assert that the legend and the panels lie in the picture, and not on each other."""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == num_labels
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.bbox.width
    for axes in figure.axes:
        panel = axes.get_tightbbox()
        assert panel is not None
        assert panel.y0 >= box.y1 - 1.0
        assert panel.x0 >= 0
        assert panel.y1 <= figure.bbox.height + 1.0
        assert axes.get_window_extent().height >= 0.15 * figure.dpi * 6.0


@pytest.mark.parametrize("draw", [agreement_figure, residual_figure])
@pytest.mark.parametrize("name", list(REGIMES))
def test_legends_of_a_calibration_are_whole(draw: Callable[[Sequence[ResidualPoint]], Figure], name: str) -> None:
    """With few and many, short and long names; what looks like a formula is shown as it is written."""
    figure = draw(_points(REGIMES[name]))
    assert_whole(figure, len(REGIMES[name]))
    assert png_of(figure)
    assert "<svg" in svg_of(figure, "x")


def test_a_name_with_dollars_is_shown_as_it_is() -> None:
    """Between two of them, text would be set as a formula: without spaces and in italics."""
    figure = agreement_figure(_points(["5 $ or 6 $"]))
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == "5 $ or 6 $"
    assert not text.get_parse_math()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[ValidatedRun]:
    """Return validated runs, one of each regime."""
    table = write_runs(tmp_path_factory.mktemp("runs") / "runs.csv", [RUN])
    (run,) = validate_twin(table, num_seeds=1, horizon_s=20.0, workers=1).validation.rows
    return [
        run.model_copy(update={"regime": regime, "is_headline": is_headline})
        for regime in REGIME_RULES
        for is_headline in (False, True)
    ]


@pytest.mark.parametrize("draw", [scatter_figure, slots_figure, goodput_figure])
def test_legends_of_a_validation_are_whole(
    rows: list[ValidatedRun], draw: Callable[[Sequence[ValidatedRun]], Figure]
) -> None:
    """All regimes are named inside of the picture."""
    labels = {row.regime for row in rows} - ({"collapsed"} if draw is scatter_figure else set()) - {"not started"}
    assert_whole(draw(rows), len(labels))
