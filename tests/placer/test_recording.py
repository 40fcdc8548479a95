"""What the twin says while plans are made is kept, and `placer train --from-rejections` learns from it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.events import GpuVerified, PlanEvent
from placer.files import ProblemFromFile
from placer.planning import plan
from placer.recording import GpuRecorder
from placer.verify import TwinSettings, verify_replica
from predictors.dataset import ROWS_PER_SHARD, load_dataset, sample_dataset
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.recorded_gpus import read_recorded
from predictors.training import TrainingSettings, train_surrogate
from solvers.problem_file import Limits
from tests.placer.small_fleets import PROFILE, HopefulSurrogate, small_data, small_problem, write_problem
from twin.errors import InputError
from twin.profile import load_profile

WINDOW: dict[str, Any] = {"horizon_s": 120.0, "warmup_s": 20.0}
TREE = TrainingSettings(families=("tree",), max_trials=1, risk_gpus=0)


def _run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> ProblemFromFile:
    """Return twelve adapters that need two GPUs."""
    return small_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of very short simulations."""
    path = tmp_path_factory.mktemp("data") / "rows"
    sample_dataset(
        load_profile(PROFILE), rows=4 * ROWS_PER_SHARD, output=path, seeds=1, horizon_s=40.0, warmup_s=10.0, workers=1
    )
    return path


def test_every_gpu_that_the_twin_judges_is_recorded(problem: ProblemFromFile, tmp_path: Path) -> None:
    """Rejected and accepted, of the first proposal and of repair: as many as there were simulations."""
    events: list[PlanEvent] = []
    result = plan(
        problem, surrogate=HopefulSurrogate(), record_rejections=tmp_path / "kept", observer=events.append, **WINDOW
    )
    kept = read_recorded(tmp_path / "kept").values()
    judged = [event for event in events if isinstance(event, GpuVerified)]
    assert len(kept) == len(judged) == result.repair.twin_calls
    verdicts = [gpu.verdict.verdict for gpu in kept]
    assert verdicts.count("accepted") == sum(event.is_accepted for event in judged) > 0
    assert verdicts.count("rejected") > 0
    assert {len(gpu.adapters) for gpu in kept} >= {len(problem.adapters)}
    assert len({gpu.workload for gpu in kept}) == 1


def test_planning_again_records_nothing_twice(problem: ProblemFromFile, tmp_path: Path) -> None:
    """The folder of a daily job grows by what is new only; recording does not change the plan."""
    first = plan(problem, surrogate=HopefulSurrogate(), record_rejections=tmp_path, **WINDOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = plan(problem, surrogate=HopefulSurrogate(), record_rejections=tmp_path, seed=1, **WINDOW)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    assert again.seed == 1
    assert first.comparable() == plan(problem, surrogate=HopefulSurrogate(), **WINDOW).comparable()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(problem: ProblemFromFile, tmp_path: Path) -> None:
    """The option is named."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        plan(problem, surrogate=HopefulSurrogate(), record_rejections=tmp_path / "file", **WINDOW)
    assert caught.value.field == "record-rejections"


def test_without_verification_there_is_nothing_to_record(problem: ProblemFromFile, tmp_path: Path) -> None:
    """An empty folder that looks like a success would be found out days later."""
    with pytest.raises(InputError) as caught:
        plan(problem, surrogate=HopefulSurrogate(), verify=False, record_rejections=tmp_path / "kept")
    assert caught.value.field == "record_rejections"


def test_what_cannot_be_recorded_does_not_cost_the_plan(problem: ProblemFromFile, tmp_path: Path) -> None:
    """The folder goes away in the middle: the plan is made, and says what was lost."""
    folder = tmp_path / "kept"

    def remove(event: PlanEvent) -> None:
        if isinstance(event, GpuVerified) and folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    result = plan(problem, surrogate=HopefulSurrogate(), record_rejections=folder, observer=remove, **WINDOW)
    assert result.verdict == "accepted"
    (warning,) = (text for text in result.warnings if "could not be recorded" in text)
    assert str(folder) in warning


def test_there_is_nothing_to_learn_from_silence_or_from_what_does_not_start(
    problem: ProblemFromFile, tmp_path: Path
) -> None:
    """Memory is arithmetic, and a set without requests has no load."""
    recorder = GpuRecorder.open(tmp_path, problem.workload)
    settings, limits = TwinSettings(horizon_s=60.0, warmup_s=10.0), Limits()
    idle = problem.workload.subset([0])
    idle = type(idle)(tuple(adapter.model_copy(update={"rate_rps": 0.0}) for adapter in idle.adapters))
    small, large = problem.replica(0, 1, 8, 1), problem.replica(0, 4096, 128, 4096)
    recorder.record(idle, small, verify_replica(idle, small, limits, settings))
    busy = problem.workload.subset([0])
    recorder.record(busy, large, verify_replica(busy, large, limits, settings))
    assert (recorder.num_recorded, list(tmp_path.iterdir())) == (0, [])
    recorder.record(busy, small, verify_replica(busy, small, limits, settings))
    assert recorder.num_recorded == 1


def test_a_surrogate_learns_from_what_was_recorded(problem: ProblemFromFile, dataset: Path, tmp_path: Path) -> None:
    """Rows of the GPUs come on top; what is sampled is split as before, and the card says where they are from."""
    plan(problem, surrogate=HopefulSurrogate(), record_rejections=tmp_path / "kept", **WINDOW)
    gpus = read_recorded(tmp_path / "kept")
    profile = load_profile(PROFILE)
    plain = train_surrogate([dataset], profile, output=tmp_path / "plain.onnx", settings=TREE)
    taught = train_surrogate(
        [dataset], profile, output=tmp_path / "taught.onnx", rejections=[tmp_path / "kept"], settings=TREE, workers=1
    )
    assert plain.facts["recorded"] is None
    facts = taught.facts["recorded"]
    assert (facts["gpus"], facts["workloads"], facts["rows"]) == (len(gpus), 1, 8 * len(gpus))
    assert taught.facts["rows"] == plain.facts["rows"] + facts["rows"]
    assert taught.facts["scenarios"] == plain.facts["scenarios"] + len(gpus)
    # One workload more: all of its rows are on one side.
    sizes = [taught.facts[name] - plain.facts[name] for name in ("fitted_rows", "validation_rows", "test_rows")]
    assert sorted(sizes) == [0, 0, facts["rows"]]
    card = taught.card.read_text(encoding="utf-8")
    assert "--from-rejections recorded" in card
    assert f"{facts['gpus']} GPUs that were planned" in " ".join(card.split())
    assert max(len(line) for line in card.split("## Errors")[0].splitlines()) <= 120
    assert "planned (workloads" not in plain.card.read_text(encoding="utf-8")
    assert json.loads(OnnxSurrogate.load(taught.file).metadata["training"])["recorded"] == facts


def test_labels_are_simulated_as_those_of_the_data_set(problem: ProblemFromFile, dataset: Path, tmp_path: Path) -> None:
    """Same seeds and horizon: the column that counts simulations says so."""
    plan(problem, surrogate=HopefulSurrogate(), record_rejections=tmp_path / "kept", **WINDOW)
    train_surrogate(
        [dataset],
        load_profile(PROFILE),
        output=tmp_path / "m.onnx",
        rejections=[tmp_path / "kept"],
        settings=TREE,
        workers=1,
    )
    _, manifest = load_dataset(dataset)
    assert manifest.settings.seeds == 1
    from pandas import read_parquet

    tables = [read_parquet(path) for path in (tmp_path / "kept").glob("labels-*.parquet")]
    assert {int(count) for one in tables for count in one["num_seeds"]} == {1}


def test_the_command_line_records_and_learns(dataset: Path, tmp_path: Path) -> None:
    """`solve` and `verify` record, `train` reads; both say what they wrote."""
    problem, kept = write_problem(tmp_path, small_data()), tmp_path / "kept"
    window = ("--horizon", 120, "--warmup", 20)
    plan_path = tmp_path / "plan.json"
    code, _, errors = _run(
        "solve", problem, "--surrogate", "exact", *window, "--output", plan_path, "--record-rejections", kept
    )
    assert code == 0, errors
    assert f"wrote {kept}" in errors
    num_solved = len(read_recorded(kept))
    assert num_solved > 0
    code, _, errors = _run("verify", plan_path, "--record-rejections", kept)
    assert code == 0, errors
    assert len(read_recorded(kept)) == num_solved
    code, _, errors = _run("verify", plan_path, "--record-rejections", tmp_path / "verified")
    assert len(read_recorded(tmp_path / "verified")) == len(json.loads(plan_path.read_text())["gpus"])
    fit = ("--family", "tree", "--trials", 1, "--risk-gpus", 0, "--workers", 1)
    common = ("--profile", PROFILE, *fit, "--output", tmp_path / "m.onnx")
    code, printed, errors = _run("train", dataset, "--from-rejections", kept, *common, "--json")
    assert code == 0, errors
    assert json.loads(printed)["training"]["recorded"]["gpus"] == num_solved
    assert f"{num_solved} GPUs" in (tmp_path / "m.html").read_text(encoding="utf-8")


def test_the_command_line_names_what_is_wrong(dataset: Path, tmp_path: Path) -> None:
    """No such folder, an empty one, a damaged record, and nothing to record from: bad input, exit code 2."""
    common = ("--profile", PROFILE, "--family", "tree", "--trials", 1, "--output", tmp_path / "m.onnx")
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((tmp_path / "missing", "must be in a folder"), (empty, "has none")):
        code, _, errors = _run("train", dataset, "--from-rejections", folder, *common)
        assert (code, message in errors) == (2, True)
    (empty / "gpu-0123.json").write_text("{", encoding="utf-8")
    code, _, errors = _run("train", dataset, "--from-rejections", empty, *common)
    assert (code, "gpu-0123.json" in errors) == (2, True)
    assert not (tmp_path / "m.onnx").exists()
    problem = write_problem(tmp_path, small_data())
    code, _, errors = _run("solve", problem, "--no-verify", "--record-rejections", tmp_path / "kept")
    assert (code, "no verification" in errors) == (2, True)
