"""`plan(risk=...)`: the margin that a surrogate's own file gives for a risk."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import helper

from placer.planning import plan
from predictors.catalog import shipped_surrogate
from predictors.onnx_surrogate import OnnxSurrogate
from tests.placer.small_fleets import PROFILE, fair_surrogate, small_problem
from twin.errors import InputError, SurrogateError


@pytest.fixture
def with_margins(tmp_path: Path) -> Path:
    """Return the shipped surrogate with two margins written into its metadata."""
    shipped = shipped_surrogate(PROFILE)
    assert shipped is not None
    model = onnx.load(shipped)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    training = json.loads(metadata["training"]) | {"margins": {"by_risk": {"0.05": 0.3, "0.2": 0.02}}}
    del model.metadata_props[:]
    helper.set_model_props(model, metadata | {"training": json.dumps(training)})
    path = tmp_path / "with-margins.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("risk", "margin"), [(0.05, 0.3), (0.1, 0.3), (0.2, 0.02), (0.5, 0.02)])
def test_a_risk_takes_the_margin_of_the_largest_risk_that_is_not_above_it(
    tmp_path: Path, with_margins: Path, risk: float, margin: float
) -> None:
    """The plan says which margin it was, as if it had been given."""
    made = plan(small_problem(tmp_path), surrogate=with_margins, risk=risk, verify=False)
    assert made.configuration.margin == margin
    assert made.num_gpus == plan(small_problem(tmp_path), surrogate=with_margins, margin=margin, verify=False).num_gpus


def test_a_smaller_risk_than_the_file_knows_is_refused(tmp_path: Path, with_margins: Path) -> None:
    """The error says which risks there are."""
    with pytest.raises(SurrogateError, match=r"knows 0\.05, 0\.2, and 0\.01 was asked for") as caught:
        plan(small_problem(tmp_path), surrogate=with_margins, risk=0.01)
    assert caught.value.field == "risk"
    assert OnnxSurrogate.load(with_margins).margin_for(0.05) == 0.3


def test_only_files_know_margins(tmp_path: Path) -> None:
    """A surrogate in Python is refused; the twin itself needs none."""
    with pytest.raises(SurrogateError, match="AnalyticSurrogate has none"):
        plan(small_problem(tmp_path), surrogate=fair_surrogate(), risk=0.05)
    exact = plan(small_problem(tmp_path, num_adapters=3, total_rps=4.0), surrogate="exact", risk=0.05, verify=False)
    assert exact.configuration.margin == 0.0


@pytest.mark.parametrize(("risk", "margin"), [(0.0, 0.0), (1.0, 0.0), (0.05, 0.1)])
def test_impossible_risks_are_refused(tmp_path: Path, risk: float, margin: float) -> None:
    """A share of 0 or 1, and a risk beside a margin."""
    with pytest.raises(InputError) as caught:
        plan(small_problem(tmp_path), surrogate=fair_surrogate(), risk=risk, margin=margin)
    assert caught.value.field == "risk"
