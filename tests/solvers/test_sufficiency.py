"""Is a number of GPUs enough: never a proof where there is a placement, and one where there is none."""

from importlib.util import find_spec

import numpy as np
import pytest

from predictors.surrogate import Surrogate
from solvers.bounds import least_work, work_bound, work_gpus
from solvers.budget import Budget
from solvers.crowding import crowd
from solvers.feasibility import FeasibilityModel
from solvers.packing import PackingSolver
from solvers.placement import validate_placement
from solvers.problem import Problem
from solvers.result import Incumbent
from solvers.sufficiency import Answer, Findings, is_enough
from tests.solvers.analytic import AnalyticSurrogate, ClosedFormSurrogate
from tests.solvers.oracle import least_objective
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem
from tests.solvers.small_problems import FeaturesOnly, FickleSurrogate

SURROGATES: list[Surrogate] = [
    AnalyticSurrogate(),
    ClosedFormSurrogate(),
    FickleSurrogate(),
    FeaturesOnly(AnalyticSurrogate()),
]
NAMES = ["monotone", "closed form", "fickle", "undeclared"]


def asked(problem: Problem, surrogate: Surrogate, num_gpus: int, *, evaluations: int = 40_000) -> Findings:
    """Ask with a budget that is the same on every machine."""
    return is_enough(problem, surrogate, num_gpus, budget=Budget(None, evaluations).start())


@pytest.mark.parametrize("surrogate", SURROGATES, ids=NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_the_answer_about_a_small_problem_is_that_of_brute_force(seed: int, surrogate: Surrogate) -> None:
    """Below the optimum there is a proof, at it and above a placement, and never the other way round."""
    problem = random_problem(seed, 6, load_gpus=1.2 + 0.3 * seed)
    optimum = least_objective(problem, surrogate, max_gpus=6)
    assert optimum is not None
    for num_gpus in range(1, int(optimum) + 2):
        findings = asked(problem, surrogate, num_gpus)
        if num_gpus >= optimum:
            assert findings.answer is Answer.POSSIBLE
            assert findings.placement is not None
            assert findings.placement.num_gpus <= num_gpus
            validate_placement(problem, findings.placement)
        else:
            assert findings.answer is Answer.IMPOSSIBLE
            assert findings.proof is not None
            assert findings.proof.lower_bound is None or num_gpus < findings.proof.lower_bound <= optimum


@pytest.mark.skipif(find_spec("ortools") is None, reason="needs the extra cpsat")
def test_there_is_a_proof_for_what_is_too_much_to_enumerate() -> None:
    """Fourteen different adapters, on one GPU less than best fit needs."""
    problem = random_problem(3, 14, load_gpus=5.0)
    surrogate = AnalyticSurrogate()
    best = PackingSolver("bfd").solve(problem, surrogate, budget=Budget()).placement
    assert best is not None
    findings = asked(problem, surrogate, 2, evaluations=20_000)
    assert best.num_gpus > 2
    assert findings.answer is Answer.IMPOSSIBLE
    assert findings.proof is not None
    assert findings.proof.kind in {"work", "farley", "cp-sat"}
    assert findings.proof.model in {"twin", "surrogate"}


def test_an_adapter_that_is_refused_alone_is_a_proof_only_where_company_cannot_help() -> None:
    """A surrogate that declares nothing leaves the question open, and the adapter is named."""
    problem = make_problem([make_adapter("small", rate_rps=0.1), make_adapter("huge", rate_rps=18.0)])
    monotone, undeclared = AnalyticSurrogate(), FeaturesOnly(AnalyticSurrogate())
    proven, left_open = asked(problem, monotone, 40), asked(problem, undeclared, 40)
    assert (proven.unplaceable, left_open.unplaceable) == ((1,), (1,))
    assert proven.proof is not None
    assert (proven.answer, proven.proof.kind, proven.proof.relies_on_monotonicity) == (
        Answer.IMPOSSIBLE,
        "alone",
        True,
    )
    assert (left_open.answer, left_open.proof) == (Answer.OPEN, None)


def test_memory_is_a_proof_for_any_number_of_gpus() -> None:
    """A GPU that does not hold the weights starts with no adapter."""
    small = GPU.model_copy(update={"name": "tiny", "memory_gib": 16.0})
    problem = make_problem([make_adapter("a")], gpu_types=(small,))
    findings = asked(problem, AnalyticSurrogate(), 100)
    assert findings.proof is not None
    assert (findings.proof.kind, findings.proof.model, findings.proof.lower_bound) == ("memory", "twin", None)
    assert findings.unplaceable == (0,)


def test_the_twins_work_is_asked_before_the_surrogate() -> None:
    """A load of many GPUs on one: no question to the surrogate is needed, and the terms add up to the bound."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=4.0) for index in range(40)])
    findings = asked(problem, AnalyticSurrogate(), 1)
    assert findings.proof is not None
    assert (findings.proof.kind, findings.proof.model, findings.num_evaluations) == ("work", "twin", 0)
    terms = least_work(problem)
    assert float(terms.total.sum()) == pytest.approx(work_gpus(problem))
    assert findings.proof.lower_bound == work_bound(problem).value
    assert terms.binding in terms.steps


def test_without_a_budget_left_nothing_is_claimed() -> None:
    """Neither a proof nor a placement, and every step says that it was not begun."""
    findings = asked(random_problem(0, 8, load_gpus=2.0), AnalyticSurrogate(), 1, evaluations=0)
    assert (findings.answer, findings.proof) == (Answer.OPEN, None)
    assert {attempt.outcome for attempt in findings.attempts[2:]} == {"not begun: the budget was spent"}


def test_ctrl_c_keeps_what_is_known() -> None:
    """The placement that was there when it came, and no answer that nobody proved."""

    def interrupt(_: Incumbent) -> None:
        raise KeyboardInterrupt

    problem = random_problem(1, 30, load_gpus=4.0)
    budget = Budget(None, 40_000).start()
    findings = is_enough(problem, FeaturesOnly(AnalyticSurrogate()), 2, budget=budget, observer=interrupt)
    assert findings.is_interrupted
    assert findings.answer is not Answer.POSSIBLE
    assert findings.placement is not None


def test_the_same_evaluations_give_the_same_findings() -> None:
    """No clock decides where evaluations are the limit."""
    problem = random_problem(2, 24, load_gpus=3.0)
    first, second = (asked(problem, FeaturesOnly(AnalyticSurrogate()), 3, evaluations=5_000) for _ in range(2))
    assert (first.answer, first.placement, first.attempts) == (second.answer, second.placement, second.attempts)


@pytest.mark.parametrize("is_seeded", [True, False])
def test_a_crowd_holds_every_adapter_on_as_many_gpus_as_asked(is_seeded: bool) -> None:  # noqa: FBT001
    """It is complete and valid, and refused where so many GPUs are too few."""
    problem, surrogate = random_problem(4, 20, load_gpus=3.5), AnalyticSurrogate()
    placement = PackingSolver("bfd").solve(problem, surrogate, budget=Budget()).placement
    model = FeasibilityModel(problem, surrogate)
    crowded = crowd(model, 2, placement=placement if is_seeded else None, budget=Budget().start())
    assert crowded is not None
    validate_placement(problem, crowded.placement)
    assert crowded.placement.num_gpus == 2
    assert not crowded.is_accepted.all()
    assert np.all((crowded.pressure > 1.0) == ~crowded.is_accepted)
