"""Where each coefficient of a calibration comes from: fitted, at its bound, from runs, the prior, or nowhere."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

from placer.calibration import CalibrationRequest, calibrate_profile
from placer.calibration_document import CalibrationReport
from tests.twin.calibration_tables import write_tables
from tests.twin.random_steps import EVERY_COEFFICIENT, observed, random_steps
from tests.twin.run_tables import RUN, write_runs
from tests.twin.test_step_table import as_rows, drawn_rows, write
from twin.calibration.origins import ORIGINS, Origin

DOCUMENT = Path(__file__).parents[2] / "docs" / "calibration.md"


def _origins(report: CalibrationReport) -> dict[str, str]:
    return {entry.name: entry.origin for entry in report.parameters}


def test_a_coefficient_that_the_fit_keeps_at_0_is_measured(tmp_path: Path) -> None:
    """Steps in which another token costs nothing have data on it: 0 is what they say, with an interval."""
    truth = EVERY_COEFFICIENT.model_copy(update={"request_ms": 0.0})
    steps = observed(random_steps(600, seed=3), truth)
    rows = [row | {"adapters": min(row["adapters"], row["requests"])} for row in as_rows(steps)]
    # A request too little in every time: the least squares would go below 0.
    rows = [row | {"time_ms": row["time_ms"] - 0.005 * row["requests"]} for row in rows]
    write(tmp_path / "steps.csv", rows)
    outcome = calibrate_profile(CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b"))
    entry = next(entry for entry in outcome.report.parameters if entry.name == "request_ms")
    assert (entry.value, entry.origin) == (0.0, "at bound")
    assert (entry.low, entry.high) != (None, None)
    assert outcome.profile.provenance["step_time"]["origins"]["request_ms"] == "at bound"


def test_published_tables_tell_a_bound_from_no_data(tmp_path: Path) -> None:
    """Adapters times requests cost nothing in these loops, and are in them; the queue has a table of its own."""
    write_tables(tmp_path)
    origins = _origins(calibrate_profile(CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b")).report)
    assert (origins["base_ms"], origins["adapter_request_ms"]) == ("fitted", "at bound")
    assert origins["blocked_waiting_ms"] == "other table"
    assert "no data" not in origins.values()


def test_what_only_serving_runs_show_is_joint(tmp_path: Path) -> None:
    """Steps without LoRA leave its coefficients to the prior; a run of many slots decides some of them."""
    write(tmp_path / "steps.csv", [row for row in drawn_rows(600, seed=1) if row["max_loras"] == 0])
    runs = write_runs(tmp_path / "runs.csv", [RUN])
    request = CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b", workers=1)
    alone, joint = (_origins(calibrate_profile(replace(request, runs=path)).report) for path in (None, runs))
    changed = {name for name in alone if alone[name] != joint[name]}
    assert changed
    assert {alone[name] for name in changed} == {"prior"}
    assert {joint[name] for name in changed} <= {"joint", "at bound"}
    assert "joint" in joint.values()
    assert joint["base_ms"] == "fitted"


def test_every_origin_is_explained_in_the_document() -> None:
    """The report's words are those of the documentation's list."""
    assert set(ORIGINS) == set(get_args(Origin))
    text = DOCUMENT.read_text(encoding="utf-8")
    for origin in ORIGINS:
        assert f"| {origin} |" in text, origin
