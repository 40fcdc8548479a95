"""`plan(risk=...)`: the threshold on the probability of starvation that a surrogate's own file gives for a risk."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import ProblemFromFile, load_plan, load_problem, save_plan
from placer.plan_document import Plan
from placer.planning import plan
from placer.provenance import describe_surrogate, plan_inputs
from placer.surrogates import inflated, parts_of, threshold_for, uses_simulation, with_threshold
from predictors.catalog import shipped_surrogate
from predictors.exact import ExactSurrogate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import ThresholdSurrogate
from solvers.feasibility import FeasibilityModel
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from tests.placer.small_fleets import PROFILE, fair_surrogate, small_data, small_problem, write_problem
from twin.errors import InputError, SurrogateError

BY_RISK = {"0.05": 0.02, "0.2": 0.3}
SPREAD: dict[str, Any] = {"num_adapters": 40, "total_rps": 40.0}
MakeFile = Callable[..., Path]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Return a function that writes the shipped surrogate with other facts about its training."""

    def make(name: str = "mine.onnx", **facts: object) -> Path:
        shipped = shipped_surrogate(PROFILE)
        assert shipped is not None
        model = onnx.load(shipped)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        training = json.loads(metadata["training"])
        kept = {key: value for key, value in training.items() if key not in ("margins", "thresholds")}
        del model.metadata_props[:]
        helper.set_model_props(model, metadata | {"training": json.dumps(kept | facts)})
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return make


@pytest.fixture
def with_thresholds(make_file: MakeFile) -> Path:
    """Return the shipped surrogate with two thresholds written into its metadata."""
    return make_file(thresholds={"by_risk": BY_RISK})


def _own_probabilities(made: Plan, problem: ProblemFromFile, surrogate: OnnxSurrogate) -> list[float]:
    """Return what the surrogate itself says about the GPUs of a plan."""
    model = FeasibilityModel(problem, surrogate)
    indices = {adapter.name: index for index, adapter in enumerate(problem.adapters)}
    found = []
    for gpu in made.gpus:
        row = problem.aggregates[[indices[name] for name in gpu.adapters]].sum(axis=0)[np.newaxis]
        settings = model.settings(0, gpu.engine.max_loras, gpu.engine.max_lora_rank)
        found.append(float(model.predict(row, settings).starvation_probability[0]))
    return found


@pytest.mark.parametrize(("risk", "threshold"), [(0.05, 0.02), (0.1, 0.02), (0.2, 0.3), (0.5, 0.3)])
def test_a_risk_takes_the_threshold_of_the_largest_risk_that_is_not_above_it(
    tmp_path: Path, with_thresholds: Path, risk: float, threshold: float
) -> None:
    """The plan says which one it was, and is the one of a surrogate that is believed as far; rates stay as they are."""
    problem = small_problem(tmp_path, **SPREAD)
    made = plan(problem, surrogate=with_thresholds, risk=risk, verify=False)
    configuration = made.configuration
    assert (configuration.risk, configuration.threshold, configuration.margin) == (risk, threshold, 0.0)
    believed = ThresholdSurrogate(OnnxSurrogate.load(with_thresholds), threshold)
    expected = plan(problem, surrogate=believed, verify=False)
    assert [gpu.adapters for gpu in made.gpus] == [gpu.adapters for gpu in expected.gpus]
    assert [gpu.engine for gpu in made.gpus] == [gpu.engine for gpu in expected.gpus]


def test_a_plan_reports_the_probabilities_of_the_surrogate_itself(tmp_path: Path, with_thresholds: Path) -> None:
    """Not those that the solver was shown: below the threshold all of them; without a risk some are above it."""
    problem, surrogate = small_problem(tmp_path, **SPREAD), OnnxSurrogate.load(with_thresholds)
    plain, careful = (plan(problem, surrogate=with_thresholds, risk=risk, verify=False) for risk in (None, 0.05))
    for made in (plain, careful):
        predicted = [gpu.predicted.starvation_probability for gpu in made.gpus]
        assert predicted == pytest.approx(_own_probabilities(made, problem, surrogate), rel=1e-5)
    assert all(gpu.predicted.starvation_probability < 0.02 for gpu in careful.gpus)
    assert any(gpu.predicted.starvation_probability > 0.02 for gpu in plain.gpus)
    assert (plain.configuration.risk, plain.configuration.threshold) == (None, 0.5)
    assert careful.num_gpus >= plain.num_gpus
    assert all(gpu.headroom is not None and gpu.headroom >= 0.0 for gpu in careful.gpus)


def test_repair_keeps_the_threshold(tmp_path: Path, with_thresholds: Path) -> None:
    """Who mends and empties GPUs asks the same surrogate as the solver; the twin then accepts the plan."""
    problem = small_problem(tmp_path)
    made = plan(problem, surrogate=with_thresholds, risk=0.05, horizon_s=600.0, warmup_s=100.0)
    assert made.verdict == "accepted"
    assert (made.configuration.risk, made.configuration.threshold) == (0.05, 0.02)


def test_a_smaller_risk_than_the_file_knows_is_refused(tmp_path: Path, with_thresholds: Path) -> None:
    """The error says which risks there are."""
    with pytest.raises(SurrogateError, match=r"knows 0\.05, 0\.2, and 0\.01 was asked for") as caught:
        plan(small_problem(tmp_path), surrogate=with_thresholds, risk=0.01)
    assert caught.value.field == "risk"
    assert OnnxSurrogate.load(with_thresholds).threshold_for(0.05) == 0.02


def test_a_file_that_knows_margins_only_has_to_be_trained_again(make_file: MakeFile) -> None:
    """What an earlier version wrote for a risk is not what is asked for now; without either, no risk is known."""
    earlier = OnnxSurrogate.load(make_file(margins={"by_risk": {"0.05": 0.06}}))
    with pytest.raises(SurrogateError, match=r"knows no thresholds \(only margins, of an earlier version\)") as caught:
        earlier.threshold_for(0.05)
    assert "train it again with `placer train`" in str(caught.value.hint)
    both = make_file(margins={"by_risk": {"0.05": 0.06}}, thresholds={"by_risk": BY_RISK})
    assert OnnxSurrogate.load(both).threshold_for(0.05) == 0.02
    with pytest.raises(SurrogateError, match="knows no risk, and"):
        OnnxSurrogate.load(make_file()).threshold_for(0.05)


@pytest.mark.parametrize(
    "thresholds",
    [
        *(None, {}, [], {"by_risk": None}, {"by_risk": [0.1]}, {"by_risk": {"low": 0.1}}),
        *({"by_risk": {"0.05": threshold}} for threshold in (0.0, 0.6, None, float("nan"))),
    ],
)
def test_thresholds_of_somebody_else_that_are_none_are_refused(make_file: MakeFile, thresholds: object) -> None:
    """File, field and value are named, and what it should be."""
    file = make_file(thresholds=thresholds)
    with pytest.raises(SurrogateError, match=r"probability in \(0, 0\.5\]") as caught:
        OnnxSurrogate.load(file).threshold_for(0.05)
    assert (caught.value.file, caught.value.field) == (str(file), "training.thresholds.by_risk")


def test_only_files_know_thresholds(tmp_path: Path) -> None:
    """A surrogate in Python is refused; the twin itself needs none."""
    with pytest.raises(SurrogateError, match="AnalyticSurrogate has none"):
        plan(small_problem(tmp_path), surrogate=fair_surrogate(), risk=0.05)
    problem = small_problem(tmp_path, num_adapters=3, total_rps=4.0)
    plain, exact = (plan(problem, surrogate="exact", risk=risk, verify=False) for risk in (None, 0.05))
    assert (exact.configuration.risk, exact.configuration.threshold, exact.configuration.margin) == (0.05, 0.5, 0.0)
    assert exact.gpus == plain.gpus


def test_of_several_gpu_types_the_smallest_threshold_is_taken(make_file: MakeFile) -> None:
    """The plan has one threshold, and no type's surrogate may be believed more than it may be."""
    small, large = (
        OnnxSurrogate.load(make_file(f"{threshold}.onnx", thresholds={"by_risk": {"0.05": threshold}}))
        for threshold in (0.03, 0.3)
    )
    both = SurrogatePerGpuType((large, small))
    assert threshold_for(both, 0.05) == 0.03
    believed = with_threshold(both, 0.03)
    assert isinstance(believed, SurrogatePerGpuType)
    assert [type(part) for part in believed.surrogates] == [ThresholdSurrogate] * 2
    assert with_threshold(both, 0.5) is both


def test_who_looks_inside_a_margin_looks_inside_a_threshold(tmp_path: Path, with_thresholds: Path) -> None:
    """Names, hashes and whether it simulates are those of the surrogate that answers."""
    problem, file = small_problem(tmp_path), OnnxSurrogate.load(with_thresholds)
    for wrapped in (with_threshold(file, 0.1), inflated(with_threshold(SurrogatePerGpuType((file,)), 0.1), 1.1)):
        assert parts_of(wrapped) == (file,)
        assert describe_surrogate(wrapped) == describe_surrogate(file)
        assert plan_inputs(problem, wrapped) == plan_inputs(problem, file)
        assert threshold_for(wrapped, 0.05) == 0.02
    gpu_type, profile = problem.gpu_types[0], problem.profiles[0]
    exact = ExactSurrogate(problem.workload, problem.model, gpu_type, problem.engine, profile)
    assert uses_simulation(with_threshold(exact, 0.1))


@pytest.mark.parametrize(("risk", "margin"), [(0.0, 0.0), (1.0, 0.0), (0.05, 0.1)])
def test_impossible_risks_are_refused(tmp_path: Path, risk: float, margin: float) -> None:
    """A share of 0 or 1, and a risk beside a margin."""
    with pytest.raises(InputError) as caught:
        plan(small_problem(tmp_path), surrogate=fair_surrogate(), risk=risk, margin=margin)
    assert caught.value.field == "risk"


def test_who_refuses_for_a_risk_what_the_twin_accepts_is_told_to_allow_more(
    tmp_path: Path, make_file: MakeFile
) -> None:
    """An adapter alone on a GPU is refused for the threshold only: that proves nothing about the problem."""
    problem = small_problem(tmp_path, num_adapters=1, total_rps=6.0)
    probability = plan(problem, surrogate=make_file(), verify=False).gpus[0].predicted.starvation_probability
    assert 0.0 < probability < 0.5
    file = make_file(thresholds={"by_risk": {"0.05": probability}})
    with pytest.raises(SurrogateError, match="which the twin accepts") as caught:
        plan(problem, surrogate=file, risk=0.05)
    assert str(caught.value.hint).startswith("allow a larger risk, or ask the twin itself")


def _run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line_says_what_the_risk_came_to(tmp_path: Path, with_thresholds: Path) -> None:
    """The threshold stands beside the margin below the table, and only where a risk was given."""
    problem = write_problem(tmp_path, small_data())
    common = ("solve", problem, "--surrogate", with_thresholds, "--no-verify")
    code, printed, errors = _run(*common, "--risk", 0.05)
    assert code == 0, errors
    assert ", margin 0%, probability of starvation at most 0.02 (risk 5%)\n" in printed
    code, printed, _ = _run(*common, "--margin", 0.06)
    assert code == 0
    assert re.search(r", margin 6%$", printed, flags=re.MULTILINE)
    code, _, errors = _run(*common, "--risk", 0.05, "--margin", 0.06)
    assert code == 2
    assert "either the margin or the risk can be given" in errors


def test_plans_with_and_without_the_fields_are_read_and_verified(tmp_path: Path, with_thresholds: Path) -> None:
    """A plan for a risk is simulated again like any other; one of an earlier version has no risk, and one half."""
    problem = load_problem(write_problem(tmp_path, small_data()))
    made = plan(problem, surrogate=with_thresholds, risk=0.05, horizon_s=600.0, warmup_s=100.0)
    path = tmp_path / "plan.json"
    save_plan(made, path)
    assert load_plan(path).configuration == made.configuration
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["configuration"]["risk"], content["configuration"]["threshold"]) == (0.05, 0.02)
    code, _, errors = _run("verify", path)
    assert code == 0, errors
    for key in ("risk", "threshold"):
        del content["configuration"][key]
    path.write_text(json.dumps(content), encoding="utf-8")
    earlier = load_plan(path).configuration
    assert (earlier.risk, earlier.threshold) == (None, 0.5)
    code, _, errors = _run("verify", path)
    assert code == 0, errors
