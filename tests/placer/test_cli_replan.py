"""`placer replan` in this process: what is printed and written, exit codes and messages."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import load_plan, save_plan
from placer.planning import plan as make_plan
from placer.replan_document import Replan
from tests.placer.small_fleets import fair_surrogate, small_data, small_problem, write_problem

QUICK: tuple[str, ...] = (
    *("--solver", "bfd", "--max-evaluations", "500", "--horizon", "600", "--warmup", "100"),
    *("--handover-horizon", "0", "--strategy", "repair"),
)


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a plan, and of a problem with an adapter more and one less."""
    folder = tmp_path_factory.mktemp("replan")
    problem = small_problem(folder)
    made = make_plan(
        problem, solver="bfd", surrogate=fair_surrogate(), horizon_s=600.0, warmup_s=100.0, max_evaluations=3000
    )
    save_plan(made, folder / "plan.json")
    adapters = small_data(num_adapters=13)["adapters"][1:]
    return folder / "plan.json", write_problem(folder, small_data(adapters=adapters), "later.yaml")


def test_the_steps_are_printed_and_files_written(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A table of GPUs, one of steps, the summary; the documents are read back."""
    plan, problem = files
    document, target = tmp_path / "replan.json", tmp_path / "next.json"
    code, output, errors = _run("replan", plan, problem, *QUICK, "-o", document, "--plan-output", target)
    assert code == 0
    assert "nobody -> h100-64gb-" in output
    assert "a12" in output
    assert "each of them safe" in output
    assert "3.7161 s for each slot" in output
    assert f"wrote {document}" in errors
    assert "simulating the steps of the migration" in errors
    made = Replan.model_validate_json(document.read_text(encoding="utf-8"))
    assert made.plan == load_plan(target)
    assert made.before.gone_adapters == ("a0",)


def test_sequences_are_told_where_they_may_be_chosen(files: tuple[Path, Path], tmp_path: Path) -> None:
    """As `placer solve` does: a column of its own, with what each GPU runs with."""
    plan, problem = files
    assert "seqs" not in _run("replan", plan, problem, *QUICK)[1]
    data = small_data()
    several = write_problem(tmp_path, data | {"engine": data["engine"] | {"max_num_seqs": [16, 64]}})
    code, output, _ = _run("replan", plan, several, *QUICK)
    assert code == 0
    assert "seqs" in output
    (line, *_) = [line for line in output.splitlines() if line.startswith("h100-64gb-0")]
    assert line.split()[4] == "16"


def test_json_is_all_that_is_printed(files: tuple[Path, Path]) -> None:
    """Equal runs print equal documents, but for wall times."""
    plan, problem = files
    documents = [Replan.model_validate_json(_run("replan", plan, problem, *QUICK, "--json")[1]) for _ in range(2)]
    assert documents[0].comparable() == documents[1].comparable()


def test_a_limit_that_leaves_somebody_unserved(files: tuple[Path, Path]) -> None:
    """No load is allowed, and one adapter is new: exit code 4, and the error says so."""
    plan, problem = files
    code, output, errors = _run("replan", plan, problem, *QUICK, "--max-loads", "0")
    assert code == 4
    assert "error: No plan was found that serves everybody within the limits: 0 GPUs rejected, 1 adapter unserved" in (
        errors
    )
    assert "There is nothing to do" not in output


def test_ctrl_c_prints_the_best_plan_so_far(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan and its steps are printed, with exit code 130."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    plan, problem = files
    monkeypatch.setattr("placer.replanning.emptying.Emptying.reduced", interrupted)
    code, output, errors = _run("replan", plan, problem, *QUICK, "--strategy", "near")
    assert code == 130
    assert "nobody -> h100-64gb-" in output
    assert "error: interrupted: this is the best plan so far." in errors


def test_overload_that_limits_keep(files: tuple[Path, Path], tmp_path: Path) -> None:
    """All rates grow and nothing may move: the twin rejects the plan, exit code 5."""
    plan, _ = files
    problem = write_problem(tmp_path, small_data(total_rps=26.0))
    code, _, errors = _run("replan", plan, problem, *QUICK, "--max-moves", "0", "--max-restarts", "0")
    assert code == 5
    assert "No plan was found that serves everybody within the limits" in errors


def test_no_plan_from_scratch_within_the_budget(files: tuple[Path, Path]) -> None:
    """Nothing was found, which proves nothing: exit code 4."""
    plan, problem = files
    code, _, errors = _run("replan", plan, problem, "--strategy", "scratch", "--max-evaluations", "0")
    assert code == 4
    assert "The solver has none within its budget" in errors


def test_bad_input(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Unknown GPUs, files that are none, and outputs that would replace an input: exit code 2."""
    plan, problem = files
    for arguments, words in (
        ((plan, problem, "--lose-gpu", "x"), "error: a lost GPU must be one of h100-64gb-0"),
        ((problem, problem), "error: a plan must be JSON"),
        ((tmp_path / "none.json", problem), "error: a plan must be a readable file"),
        ((plan, problem, "-o", plan), "it would replace what is read from PLAN"),
        ((plan, problem, "--max-moves", "-1"), "hint: see `placer replan --help`"),
        ((plan, problem, "--handover-horizon", "inf"), "must be at least 0 and at most 86,400. Got inf"),
        ((plan, problem, "--restart-s", "nan"), "must be at least 0 and at most 86,400. Got nan"),
    ):
        code, _, errors = _run("replan", *arguments)
        assert code == 2
        assert words in errors


def test_the_schema_is_that_of_the_document() -> None:
    """`placer schema replan` names the fields that a document has."""
    code, output, _ = _run("schema", "replan")
    assert code == 0
    assert set(json.loads(output)["properties"]) == set(Replan.model_fields)
