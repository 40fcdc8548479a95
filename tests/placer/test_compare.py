"""Comparisons of solvers: records, resuming, failures as rows, summaries, and the files that come out."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from placer.compare import CompareProgress, compare
from placer.comparison_document import Comparison, RunRecord
from placer.comparison_report import (
    read_previous,
    render_comparison,
    require_folder,
    save_placements,
    write_comparison,
)
from placer.comparison_run import Run, RunSettings, do_run
from placer.comparison_tables import runs_to_csv, summary_to_csv, to_markdown
from placer.foreign_surrogate import load_object, without_physics
from placer.instances.catalog import select
from placer.instances.instance import Instance
from predictors.aggregate_oracle import AggregateOracle
from solvers import registry
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.moves import count_moves
from solvers.named_object import names_object
from solvers.objective import evaluate
from solvers.placement import validate_placement
from solvers.registry import SolverEntry, get_solver
from tests.placer import foreign
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import make_adapter, make_problem, random_problem
from twin.errors import InputError, SolverError, SurrogateError

ANALYTIC = "tests.solvers.analytic:AnalyticSurrogate"
QUICK = RunSettings(surrogate=ANALYTIC, budget=Budget(30.0, 5_000), is_verified=False)
SOLVERS = ("greedy", "ffd", "bfd")


def instances() -> list[Instance]:
    """Return two small problems of different families."""
    return [
        Instance("first", "small", "24 adapters", random_problem(1, 24, load_gpus=1.6), lower_bound=2),
        Instance("second", "large", "60 adapters", random_problem(2, 60, load_gpus=2.5)),
    ]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Return a comparison that nothing was kept of."""
    return compare(instances(), solvers=SOLVERS, seeds=(0, 1), settings=QUICK)


def without_times(run: RunRecord) -> RunRecord:
    """Return the comparable part of a run."""
    times = dict.fromkeys(("runtime_s", "first_s", "best_s", "within_one_percent_s"))
    return run.model_copy(
        update={
            **times,
            "incumbents": tuple(entry.model_copy(update={"runtime_s": 0.0}) for entry in run.incumbents),
        }
    )


def test_every_solver_runs_on_every_instance_with_every_seed(comparison: Comparison) -> None:
    """In the order of instances, seeds and solvers; nothing is missing."""
    assert [run.key for run in comparison.runs] == [
        (name, solver, seed) for name in ("first", "second") for seed in (0, 1) for solver in SOLVERS
    ]
    assert {run.status for run in comparison.runs} <= {"placed", "no placement"}


def test_a_run_says_what_the_solver_says(comparison: Comparison) -> None:
    """GPUs, evaluations and placement are those of the same solve; the placement is valid and feasible."""
    problem = instances()[1].problem
    for run in comparison.runs:
        if run.instance != "second" or run.placement is None:
            continue
        result = get_solver(run.solver).solve(problem, AnalyticSurrogate(), budget=QUICK.budget, seed=run.seed)
        assert result.placement == run.placement.placement()
        assert (run.num_gpus, run.num_evaluations) == (result.placement.num_gpus, result.statistics.num_evaluations)
        validate_placement(problem, run.placement.placement())
        assert evaluate(problem, run.placement.placement(), AnalyticSurrogate()).is_feasible


def test_times_are_in_the_order_of_what_they_are_about(comparison: Comparison) -> None:
    """First, nearly best, best, end."""
    for run in comparison.runs:
        if run.status == "placed":
            assert run.first_s is not None
            assert run.within_one_percent_s is not None
            assert run.best_s is not None
            assert run.runtime_s is not None
            assert 0.0 <= run.first_s <= run.within_one_percent_s <= run.best_s <= run.runtime_s


def test_the_summary_is_recounted(comparison: Comparison) -> None:
    """Means, wins, ties, losses and the saving follow from the runs."""
    by_key = {run.key: run.final_gpus for run in comparison.runs}
    bounds = {instance.name: instance.bound.value for instance in comparison.instances if instance.bound}
    assert bounds["first"] == max(2, work_bound(instances()[0].problem).value)
    for summary in comparison.solvers:
        mine = [run for run in comparison.runs if run.solver == summary.solver]
        placed = [run for run in mine if run.final_gpus is not None]
        assert (summary.num_runs, summary.num_placed) == (len(mine), len(placed))
        assert summary.mean_gpus == pytest.approx(sum(run.final_gpus or 0 for run in placed) / len(placed))
        over = [(run.final_gpus or 0) / bounds[run.instance] - 1 for run in placed]
        assert summary.gpus_over_bound == pytest.approx(sum(over) / len(over))
        if summary.solver == "greedy":
            assert summary.wins is None
            continue
        pairs = [(by_key[run.key], by_key[run.instance, "greedy", run.seed]) for run in mine]
        assert summary.wins == sum(1 for own, other in pairs if own is not None and (other is None or own < other))
        assert summary.ties == sum(1 for own, other in pairs if own == other)
        assert summary.losses == len(pairs) - summary.wins - summary.ties
        both = [1 - own / other for own, other in pairs if own is not None and other is not None]
        assert summary.mean_saving == pytest.approx(sum(both) / len(both))


def test_a_folder_is_continued_where_it_stopped(tmp_path: Path) -> None:
    """What is kept is not done again; the result is that of an undisturbed comparison."""
    done: list[RunRecord] = []

    def stop_after_three(progress: CompareProgress) -> None:
        if progress.latest is not None:
            done.append(progress.latest)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(instances(), solvers=SOLVERS, settings=QUICK, output=tmp_path / "out", observer=stop_after_three)
    assert len(list((tmp_path / "out" / "runs").glob("*.json"))) == 3
    seen: list[CompareProgress] = []
    again = compare(instances(), solvers=SOLVERS, settings=QUICK, output=tmp_path / "out", observer=seen.append)
    assert [progress.finished for progress in seen] == [3, 4, 5, 6]
    assert [run for run in again.runs if run.key in {kept.key for kept in done}] == done
    fresh = compare(instances(), solvers=SOLVERS, settings=QUICK)
    assert [without_times(run) for run in again.runs] == [without_times(run) for run in fresh.runs]
    seen.clear()
    compare(instances(), solvers=SOLVERS, settings=QUICK, output=tmp_path / "out", observer=seen.append)
    assert [progress.finished for progress in seen] == [6]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"solvers": ("bfd",)}, "solvers"),
        ({"seeds": (1,)}, "seeds"),
        ({"settings": replace(QUICK, budget=Budget(1.0))}, "budget_s"),
        ({"settings": replace(QUICK, margin=0.1)}, "margin"),
        ({"reference": "ffd"}, "reference"),
        ({"previous": ((0,), (1,))}, "previous"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, change: dict[str, object], field: str) -> None:
    """Rows of two configurations in one table would be compared with each other."""
    arguments: dict[str, object] = {"solvers": SOLVERS, "settings": QUICK, "output": tmp_path / "out"}
    few = instances()[:1]
    compare(few, **arguments)  # type: ignore[arg-type]  # keywords by name
    with pytest.raises(InputError, match="goes on with the configuration") as caught:
        compare(few, **{**arguments, **change})  # type: ignore[arg-type]  # keywords by name
    assert caught.value.field == field


def test_an_instance_that_changed_is_another_configuration(tmp_path: Path) -> None:
    """The name alone does not say that it is the same problem."""
    few = instances()[:1]
    compare(few, solvers=("bfd",), settings=QUICK, output=tmp_path / "out")
    changed = [replace(few[0], problem=random_problem(9, 24, load_gpus=1.6))]
    with pytest.raises(InputError, match="goes on with the configuration"):
        compare(changed, solvers=("bfd",), settings=QUICK, output=tmp_path / "out")


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    """And what to do: the others are kept."""
    out = tmp_path / "out"
    compare(instances()[:1], solvers=("bfd",), settings=QUICK, output=out)
    (file,) = (out / "runs").glob("*.json")
    file.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="delete the file") as caught:
        _raise_with_hint(out)
    assert caught.value.file == str(file)


def _raise_with_hint(out: Path) -> None:
    try:
        compare(instances()[:1], solvers=("bfd",), settings=QUICK, output=out)
    except InputError as error:
        raise InputError(f"{error.message} {error.hint}", file=error.file) from error


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Results are not scattered among files of others."""
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="must be empty"):
        compare(instances()[:1], solvers=("bfd",), settings=QUICK, output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_runs_in_parallel_say_the_same() -> None:
    """Processes change times only."""
    serial = compare(instances(), solvers=("ffd", "bfd"), settings=QUICK)
    parallel = compare(instances(), solvers=("ffd", "bfd"), settings=QUICK, workers=2)
    assert [without_times(run) for run in serial.runs] == [without_times(run) for run in parallel.runs]


@pytest.fixture
def missing_solver(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a solver whose library is not installed."""
    entry = SolverEntry("missing", "none", frozenset(), lambda: get_solver("bfd"), ("no_such_library",), "cpsat")
    monkeypatch.setattr(registry, "_BUILT_IN", (*registry._BUILT_IN, entry))
    return entry.name


def test_a_solver_whose_library_is_missing_is_a_row_with_the_reason(missing_solver: str, tmp_path: Path) -> None:
    """It is not kept: what is missing may be installed before the comparison goes on."""
    result = compare(
        instances()[:1], solvers=("bfd", missing_solver), settings=QUICK, reference="bfd", output=tmp_path / "out"
    )
    placed, unavailable = result.runs
    assert (placed.status, unavailable.status) == ("placed", "unavailable")
    assert "no_such_library" in unavailable.reason
    assert "lora-placer[cpsat]" in unavailable.reason
    assert len(list((tmp_path / "out" / "runs").glob("*.json"))) == 1
    assert result.solvers[1].losses == 1
    assert missing_solver in to_markdown(result)


@pytest.mark.parametrize(
    ("settings", "instance", "fragment"),
    [
        (replace(QUICK, surrogate="tests.placer.foreign:FailingSurrogate"), instances()[0], "ZeroDivisionError"),
        (
            QUICK,
            Instance("huge", "x", "x", make_problem([make_adapter("a", rate_rps=500.0)])),
            "every adapter must fit a GPU alone",
        ),
    ],
    ids=["a bug", "an adapter that fits nowhere"],
)
def test_a_run_that_fails_is_a_row_with_the_reason(settings: RunSettings, instance: Instance, fragment: str) -> None:
    """The others go on."""
    result = compare([instance], solvers=("bfd", "ffd"), settings=settings, reference="bfd")
    assert [run.status for run in result.runs] == ["failed", "failed"]
    assert all(fragment in run.reason for run in result.runs)
    assert all(summary.num_failed == 1 and summary.num_placed == 0 for summary in result.solvers)
    assert fragment in runs_to_csv(result)


def test_a_solver_that_does_not_exist_is_bad_input() -> None:
    """It is no row: a typing error is told at once, with what is near."""
    with pytest.raises(SolverError) as caught:
        compare(instances(), solvers=("bdf",), settings=QUICK)
    assert caught.value.hint == "did you mean 'bfd'?"


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"workers": 0}, "workers"),
    ],
)
def test_numbers_outside_their_range_are_refused(arguments: dict[str, object], fragment: str) -> None:
    """Before anything runs."""
    with pytest.raises(InputError, match=fragment):
        compare(instances(), settings=QUICK, **arguments)  # type: ignore[arg-type]  # keywords by name


def test_two_instances_of_one_name_and_none_at_all_are_refused() -> None:
    """Runs are known by the name of their instance."""
    with pytest.raises(InputError, match="unique"):
        compare([*instances(), instances()[0]], settings=QUICK)
    with pytest.raises(InputError, match="at least one instance"):
        compare([], settings=QUICK)


def test_instances_that_cannot_be_made_here_are_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces are not part of the package."""
    monkeypatch.delenv("PLACER_DATA", raising=False)
    result = compare(
        [*instances()[:1], *select(patterns=["servegen-n64"])], solvers=("bfd",), settings=QUICK, reference="bfd"
    )
    assert [instance.name for instance in result.instances] == ["first"]
    assert result.warnings[0].startswith("servegen-n64 is left out: PLACER_DATA is not set")


def test_the_twin_judges_and_repairs_what_an_optimist_packed() -> None:
    """Rejected GPUs and the worst adapter are those before repair; GPUs in the end are accepted ones."""
    problem = random_problem(3, 100, load_gpus=1.2)
    settings = RunSettings(
        surrogate="tests.placer.foreign:FastSurrogate", budget=Budget(30.0), horizon_s=200.0, warmup_s=50.0
    )
    heavy = replace(
        problem,
        workload=replace(
            problem.workload,
            adapters=tuple(
                adapter.model_copy(update={"rate_rps": 5.0 * adapter.rate_rps}) for adapter in problem.adapters
            ),
        ),
    )
    instance = Instance("heavy", "x", "x", heavy, replay=problem)
    record = do_run(Run(instance, "bfd", 0, settings))
    assert record.status == "placed"
    assert record.twin is not None
    assert record.twin.rejected_gpus >= 1
    assert record.twin.accepted_share == 1.0 - record.twin.rejected_gpus / (record.num_gpus or 0)
    assert record.twin.worst_service_ratio is not None
    assert record.twin.worst_service_ratio < 0.9
    assert record.twin.num_gpus is not None
    assert record.repaired is not None
    assert record.final_gpus == len(record.repaired.gpus) >= (record.num_gpus or 0)
    validate_placement(heavy, record.repaired.placement())
    # The same adapters at a fifth of the rates are served.
    assert record.replay is not None
    assert (record.replay.rejected_gpus, record.replay.accepted_share) == (0, 1.0)


def test_an_oracle_decides_about_slots_and_memory() -> None:
    """Its slots stand in the placement, more of them than our memory has, and no bound of the twin is shown."""
    settings = replace(QUICK, surrogate="tests.placer.foreign:Oracle")
    result = compare(instances(), solvers=("bfd", "greedy"), settings=settings)
    for run in result.runs:
        if run.placement is None:
            continue
        problem = next(instance.problem for instance in instances() if instance.name == run.instance)
        for members, slots in zip(run.placement.gpus, run.placement.slots, strict=True):
            chosen = [problem.adapters[index] for index in members]
            rates = [adapter.rate_rps for adapter in chosen]
            sums = (
                sum(rate * adapter.prompt_tokens.effective_mean for rate, adapter in zip(rates, chosen, strict=True)),
                sum(rate * adapter.output_tokens.effective_mean for rate, adapter in zip(rates, chosen, strict=True)),
            )
            largest = max(adapter.rank for adapter in chosen)
            answer = foreign.feasible(len(chosen), sum(rates), sum(rate**2 for rate in rates), *sums, largest)
            assert answer == (True, slots)
    assert [instance.bound and instance.bound.proof for instance in result.instances] == ["given", None]


def test_a_placement_below_a_bound_is_pointed_out() -> None:
    """Either the bound is wrong or it is about another model."""
    wrong = [replace(instances()[0], lower_bound=50)]
    result = compare(wrong, solvers=("bfd",), settings=QUICK, reference="bfd")
    assert len(result.warnings) == 1
    assert "fewer than the lower bound of 50 (given, instance)" in result.warnings[0]
    assert result.warnings[0] in to_markdown(result)


def test_memory_and_work_are_the_oracles_affair() -> None:
    """No number of slots fills the memory, the order by work is kept, and the twin's bound says nothing."""
    problem = random_problem(4, 200, load_gpus=12.0)
    foreign_problem = without_physics(problem)
    assert foreign_problem.replica(0, 5_000, 512, 5_000).memory().starts
    assert (work_bound(problem).value > 1, work_bound(foreign_problem).value) == (True, 1)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("a.b:C", True), ("oracle.py:feasible", True), ("auto", False), ("model.onnx", False), ("C:", False)],
)
def test_a_choice_with_a_colon_names_an_object(choice: str, *, expected: bool) -> None:
    """Everything else is what `placer solve` takes."""
    assert names_object(choice) is expected


@pytest.mark.parametrize("name", ["Oracle", "feasible"])
def test_classes_functions_and_files_are_loaded(name: str) -> None:
    """From a module, or from the path of a Python file."""
    for choice in (f"tests.placer.foreign:{name}", f"{Path(foreign.__file__)}:{name}"):
        assert isinstance(load_object(choice), AggregateOracle)


@pytest.mark.parametrize(
    ("choice", "fragment"),
    [
        ("no_such_module:Oracle", "ModuleNotFoundError"),
        ("none.py:Oracle", "no Python file"),
        ("tests.placer.foreign:NoSuch", "AttributeError"),
        ("tests.placer.foreign:NeedsArguments", "TypeError"),
        ("tests.placer.foreign:NUMBER", "must have `predict` and `schema`, or `feasible`"),
        ("tests.placer.foreign:OldSurrogate", "FEATURE_SCHEMA"),
    ],
)
def test_what_cannot_be_a_surrogate_is_refused(choice: str, fragment: str) -> None:
    """At once, before any solver runs."""
    with pytest.raises(SurrogateError, match=fragment):
        compare(instances(), settings=replace(QUICK, surrogate=choice), solvers=("bfd",))


def test_a_risk_needs_probabilities() -> None:
    """An oracle says yes or no."""
    settings = replace(QUICK, surrogate="tests.placer.foreign:Oracle", risk=0.05)
    with pytest.raises(InputError, match="risk"):
        compare(instances(), settings=settings, solvers=("bfd",))


def test_tables_hold_every_run_and_every_solver(comparison: Comparison) -> None:
    """CSV has full numbers, one line per run and per solver; Markdown has all tables."""
    rows = list(csv.DictReader(io.StringIO(runs_to_csv(comparison))))
    assert [(row["instance"], row["solver"], int(row["seed"])) for row in rows] == [run.key for run in comparison.runs]
    for row, run in zip(rows, comparison.runs, strict=True):
        assert row["num_gpus"] == ("" if run.final_gpus is None else str(run.final_gpus))
    assert [row["solver"] for row in csv.DictReader(io.StringIO(summary_to_csv(comparison)))] == list(SOLVERS)
    text = to_markdown(comparison)
    for heading in ("## Solvers", "## GPUs by instance", "## Runs"):
        assert heading in text


def test_the_page_refers_to_nothing_outside_of_it(comparison: Comparison) -> None:
    """It can be sent by mail; what users wrote is escaped."""
    evil = comparison.model_copy(
        update={"instances": tuple(i.model_copy(update={"what": "<script>"}) for i in comparison.instances)}
    )
    page = render_comparison(evil)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "src=" not in page
    assert page.count("<svg") == 2


def test_files_are_written_into_the_folder(comparison: Comparison, tmp_path: Path) -> None:
    """The JSON is the whole comparison."""
    written = write_comparison(comparison, tmp_path)
    assert sorted(path.name for path in written) == [
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "runs.csv",
        "solvers.csv",
    ]
    assert Comparison.model_validate_json((tmp_path / "comparison.json").read_bytes()) == comparison


def test_placements_are_saved_for_a_referee(comparison: Comparison, tmp_path: Path) -> None:
    """Every adapter is on one GPU of each file; what was saved can be given as the previous placement."""
    num_written = save_placements(comparison, tmp_path / "placements")
    files = sorted((tmp_path / "placements").iterdir())
    placed = [run for run in comparison.runs if run.placement is not None]
    assert num_written == len(files) == len(placed)
    for run in placed:
        content = json.loads(
            (tmp_path / "placements" / f"{run.instance}--{run.solver}--seed{run.seed}.json").read_text()
        )
        count = next(i.num_adapters for i in comparison.instances if i.name == run.instance)
        assert sorted(index for gpu in content["gpus"] for index in gpu) == list(range(count))
        assert (content["instance"], content["solver"], content["seed"]) == run.key
        assert len(content["gpus"]) == len(content["slots"]) == content["num_gpus"] == run.num_gpus
    assert run.placement is not None
    assert read_previous(files[-1]) == tuple(tuple(gpu) for gpu in json.loads(files[-1].read_text())["gpus"])


@pytest.mark.parametrize("content", ["{", "{}", '{"gpus": 3}', '{"gpus": [[0], [0]]}', '{"gpus": [["a"]]}', "[[-1]]"])
def test_a_previous_placement_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    """An adapter is a number, and on one GPU."""
    (tmp_path / "before.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="a previous placement must be JSON with `gpus`"):
        read_previous(tmp_path / "before.json")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """Asked before the work that would be lost."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="--save-placements"):
        require_folder(tmp_path / "file" / "folder", option="--save-placements")


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        ([[0, 1], [2, 3]], [[2, 3], [0, 1]], 0),
        ([[0, 1, 2], [3]], [[0, 1], [2, 3]], 1),
        ([[0, 1], [2, 3]], [[0, 2], [1, 3]], 2),
        ([[0], [1]], [[0, 1]], 1),
        ([[0, 1]], [[0], [1]], 1),
        ([[0]], [[1]], 0),
        ([], [[0]], 0),
    ],
)
def test_moves_are_the_fewest_under_any_naming_of_gpus(
    before: list[list[int]], after: list[list[int]], moves: int
) -> None:
    """Adapters that are new or gone do not move."""
    assert count_moves(before, after) == moves


def test_moves_are_counted_against_the_previous_placement() -> None:
    """A solver that repeats the placement moves nothing."""
    few = instances()[:1]
    first = compare(few, solvers=("bfd",), settings=QUICK, reference="bfd").runs[0]
    assert first.placement is not None
    second = compare(few, solvers=("bfd",), settings=QUICK, reference="bfd", previous=first.placement.gpus[::-1])
    assert (second.runs[0].moves, second.solvers[0].mean_moves) == (0, 0.0)
