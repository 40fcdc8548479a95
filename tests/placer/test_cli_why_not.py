"""`placer explain --why-not` in this process: proofs, placements, what is open, and messages."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import save_plan
from placer.planning import plan as make_plan
from placer.why_not import Question, explain_why_not, question_of, why_not_to_json, work_record
from placer.why_not_document import WhyNot
from solvers.bounds import work_gpus
from tests.placer.small_fleets import fair_surrogate, small_data, small_problem, write_problem
from tests.solvers.small_problems import FeaturesOnly


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _asked(folder: Path, num_gpus: int, **changes: Any) -> WhyNot:
    """Ask about the small problem, with a surrogate that declares nothing."""
    question = Question(small_problem(folder, **changes), "auto")
    surrogate = FeaturesOnly(fair_surrogate())
    return explain_why_not(question, num_gpus, budget_s=None, max_evaluations=20_000, surrogate=surrogate)


def test_work_that_needs_more_gpus_is_a_proof_of_the_twin(tmp_path: Path) -> None:
    """Exit code 3; the text names the proof, its model, and what steps are needed for."""
    problem = write_problem(tmp_path, small_data(total_rps=60.0, num_adapters=30))
    code, output, errors = _run("explain", problem, "--why-not", "1", "--budget", "20")
    assert (code, errors.count("error")) == (3, 0)
    assert "1 GPU cannot do, at least" in output
    assert "proven by the work bound, of the twin, profile llama-3.1-8b-h100-64gb" in output
    assert "steps are needed most for request-steps (max_num_seqs):" in output
    code, output, _ = _run("explain", problem, "--why-not", "1", "--json")
    content = json.loads(output)
    assert code == 3
    assert content["answer"] == "impossible"
    assert content["proof"]["lower_bound"] == content["lower_bound"]["value"] > 1
    assert WhyNot.model_validate(content).num_gpus == 1


def test_enough_gpus_are_offered(tmp_path: Path) -> None:
    """Exit code 0 and a hint at `placer solve`; the JSON has the placement with every adapter."""
    problem = write_problem(tmp_path, small_data())
    code, output, errors = _run("explain", problem, "--why-not", "8", "--max-evaluations", "5000")
    assert code == 0
    assert "8 GPUs can do" in output
    assert "hint: `placer solve`" in errors
    answer = _asked(tmp_path, 12)
    placed = sorted(name for gpu in answer.placement for name in gpu.adapters)
    assert placed == sorted(f"a{index}" for index in range(12))


def test_what_is_open_says_where_it_breaks(tmp_path: Path) -> None:
    """Without a proof: how many GPUs are refused, what binds on the worst, and which share of the rates would do."""
    answers = [_asked(tmp_path, num_gpus, num_adapters=16, total_rps=22.0) for num_gpus in (2, 3)]
    still_open = [answer for answer in answers if answer.answer == "open"]
    assert still_open
    for answer in still_open:
        found = answer.shortfall
        assert answer.proof is None
        assert found is not None
        assert found.served_share is not None
        assert 0.0 < found.served_share < 1.0
        assert found.worst is not None
        assert found.num_accepted < found.num_gpus == answer.num_gpus
        assert found.worst.violations
        demands = found.worst.demands
        assert found.worst.binding == max(demands, key=lambda name: demands[name])


def test_a_plan_is_explained_with_its_own_surrogate_and_margin(tmp_path: Path) -> None:
    """Its problem is found beside it, and a surrogate that is not there is said to be replaced."""
    plan = make_plan(small_problem(tmp_path), surrogate=fair_surrogate(), margin=0.07, verify=False, max_evaluations=0)
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    question = question_of(path, surrogate=None)
    assert (question.surrogate, question.margin) == ("auto", 0.07)
    code, output, errors = _run("explain", path, "--why-not", "1", "--max-evaluations", "3000")
    assert code in {0, 3, 4}
    assert "which is not here" in errors
    assert "margin 7%" in output
    code, _, errors = _run("explain", path, "--why-not", "1", "--profile", "llama-3.1-8b-h100-64gb")
    assert code == 2
    assert "give the problem file instead of the plan" in errors


def test_the_work_is_taken_apart_completely(tmp_path: Path) -> None:
    """Parts and ranks add up to the work bound's GPUs."""
    problem = small_problem(tmp_path)
    work = work_record(problem)
    assert work.gpus == pytest.approx(work_gpus(problem), abs=1e-5)
    assert sum(part.gpus for part in work.parts) == pytest.approx(work.gpus, abs=1e-5)
    assert sum(part.gpus for part in work.ranks) == pytest.approx(work.gpus, abs=1e-5)


def test_the_same_evaluations_give_the_same_answer(tmp_path: Path) -> None:
    """Nothing of a clock is in the answer."""
    first, second = (_asked(tmp_path, 2, num_adapters=16, total_rps=22.0) for _ in range(2))
    assert why_not_to_json(first) == why_not_to_json(second)


def test_ctrl_c_reports_what_is_known(tmp_path: Path) -> None:
    """An answer that is open and interrupted, with the placement that there was."""

    def interrupt(event: object) -> None:
        if type(event).__name__ == "IncumbentFound":
            raise KeyboardInterrupt

    question = Question(small_problem(tmp_path, num_adapters=16, total_rps=22.0), "auto")
    surrogate = FeaturesOnly(fair_surrogate())
    answer = explain_why_not(question, 2, budget_s=None, max_evaluations=9_000, surrogate=surrogate, observer=interrupt)
    assert answer.is_interrupted
    assert answer.best_known_gpus is not None


def test_bad_input_is_named(tmp_path: Path) -> None:
    """No problem, no GPUs, no file."""
    assert _run("explain", "--why-not", "2")[0] == 2
    assert _run("explain", write_problem(tmp_path, small_data()), "--why-not", "0")[0] == 2
    assert _run("explain", tmp_path / "missing.json", "--why-not", "2")[0] == 2


def test_uncertain_rates_are_asked_about(tmp_path: Path) -> None:
    """What a plan would refuse at the quantile of the load is not offered here as a placement."""
    num_gpus = len(_asked(tmp_path, 12).placement)
    assert _asked(tmp_path, num_gpus).answer == "possible"
    doubtful = _asked(tmp_path, num_gpus, uncertainty={"common_cv": 0.6, "probability": 0.95})
    assert doubtful.answer != "possible"


@pytest.mark.parametrize("risk", [0.0, 0.4])
def test_what_is_open_under_scenarios_says_where_it_breaks(tmp_path: Path, risk: float) -> None:
    """What the worst GPU needs is said of the most demanding scenario that counts."""
    cases = [{"name": "night", "factor": 0.5, "weight": 2}, {"name": "day", "factor": 1.0}]
    scenarios = {"cases": cases, "risk": risk}
    answers = [
        _asked(tmp_path, num_gpus, num_adapters=16, total_rps=22.0, scenarios=scenarios) for num_gpus in (1, 2, 3)
    ]
    answer = next(answer for answer in answers if answer.answer == "open")
    assert answer.shortfall is not None
    assert answer.shortfall.worst is not None
    assert max(answer.shortfall.worst.demands.values()) > 0.0
