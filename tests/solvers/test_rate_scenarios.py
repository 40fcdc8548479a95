"""Scenarios of rates: a set is accepted where enough of them accept it, asked in one batch."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.exact import ExactSurrogate
from predictors.surrogate import OUTPUT_NAMES
from solvers.acceptance import accepts
from solvers.adapter_types import cluster_types, exact_types
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.headroom import FINE_FACTORS, headrooms
from solvers.objective import evaluate
from solvers.patterns.box_bounds import box_bound_for
from solvers.patterns.questions import PatternModel
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem, parse_problem
from solvers.rate_scenarios import RateScenario, RateScenarios
from solvers.registry import get_solver, solver_names
from solvers.run import SolverRun
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.constrained_problems import broken_rules, constrained_problem
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem
from twin.errors import InputError, SurrogateError


def drawn_scenarios(problem: Problem, seed: int, *, risk: float = 0.0) -> RateScenarios:
    """Return three scenarios in which adapters are busy in turn, no one more than one GPU can take."""
    generator = np.random.default_rng(seed)
    names = [adapter.name for adapter in problem.adapters]
    cases = []
    for index in range(3):
        factors = {name: round(float(generator.uniform(0.1, 1.1)), 3) for name in names}
        cases.append(RateScenario(name=f"s{index}", weight=float(generator.uniform(0.5, 2.0)), factors=factors))
    return RateScenarios(cases=tuple(cases), risk=risk)


def accepted_under(problem: Problem, gpu: GpuAssignment) -> list[bool]:
    """Return under which scenarios a GPU is accepted, each asked as a problem of its own."""
    assert problem.scenarios is not None
    accepted = []
    for index in range(len(problem.scenarios.cases)):
        alone = replace(problem.in_scenario(index))
        model = FeasibilityModel(alone, AnalyticSurrogate())
        rows = alone.aggregates[list(gpu.adapters)].sum(axis=0)[None]
        output = model.predict(rows, model.settings(gpu.gpu_type, gpu.max_loras, gpu.max_lora_rank))
        accepted.append(bool(accepts(model.limits_of(rows), output)[0]))
    return accepted


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), risk=st.sampled_from([0.0, 0.2, 0.5]), load=st.floats(0.8, 3.0))
def test_every_gpu_is_accepted_under_scenarios_that_weigh_enough(seed: int, risk: float, load: float) -> None:
    """What is planned for all scenarios at once is accepted when each is asked about alone."""
    problem = random_problem(seed, 20, load_gpus=load)
    problem = replace(problem, scenarios=drawn_scenarios(problem, seed, risk=risk))
    assert problem.scenarios is not None
    result = get_solver("bfd").solve(problem, AnalyticSurrogate(), budget=Budget())
    assert result.placement is not None
    for gpu in result.placement.gpus:
        accepted = np.array(accepted_under(problem, gpu))
        assert problem.scenarios.weights[accepted].sum() >= 1.0 - risk - 1e-9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), weights=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=4))
def test_a_set_is_accepted_exactly_where_enough_scenarios_accept_it(seed: int, weights: list[float]) -> None:
    """By all subsets of scenarios: some subset of enough weight accepts the set with the same slots."""
    generator = np.random.default_rng(seed)
    problem = random_problem(seed, 6, load_gpus=1.3)
    cases = tuple(
        RateScenario(name=f"s{index}", weight=weight, factor=round(float(generator.uniform(0.3, 1.5)), 3))
        for index, weight in enumerate(weights)
    )
    risk = float(generator.uniform(0.0, 0.6))
    problem = replace(problem, scenarios=RateScenarios(cases=cases, risk=risk))
    gpu = GpuAssignment(0, tuple(range(6)), 6, 32)
    accepted = accepted_under(problem, gpu)
    shares = np.array(weights) / sum(weights)
    indices = range(len(weights))
    subsets = [chosen for size in range(1, len(weights) + 1) for chosen in combinations(indices, size)]
    expected = any(
        all(accepted[index] for index in chosen) and shares[list(chosen)].sum() >= 1.0 - risk - 1e-9
        for chosen in subsets
    )
    evaluation = evaluate(problem, Placement((gpu,)), AnalyticSurrogate())
    assert evaluation.is_feasible == expected


@pytest.mark.parametrize("seed", range(4))
def test_one_scenario_is_the_plain_problem_with_its_rates(seed: int) -> None:
    """The same placement, bound and predictions as of the problem that has those rates."""
    problem = random_problem(seed, 20, load_gpus=2.0)
    drawn = drawn_scenarios(problem, seed)
    one = replace(problem, scenarios=RateScenarios(cases=drawn.cases[:1]))
    plain = one.in_scenario(0)
    results = [get_solver("bfd").solve(it, AnalyticSurrogate(), budget=Budget()) for it in (one, plain)]
    assert work_bound(one) == work_bound(plain)
    placement = results[1].placement
    assert placement is not None
    scenario, alone = (evaluate(it, placement, AnalyticSurrogate()) for it in (one, plain))
    for name in ("throughput_ratio", "starvation_probability", "itl_s", "ttft_s", "violations"):
        assert [getattr(gpu, name) for gpu in scenario.gpus] == [getattr(gpu, name) for gpu in alone.gpus]
    same = replace(problem, scenarios=RateScenarios(cases=(RateScenario(name="as given"),)))
    answers = [get_solver("bfd").solve(it, AnalyticSurrogate(), budget=Budget()) for it in (same, problem)]
    assert answers[0].placement == answers[1].placement
    assert answers[0].statistics.num_evaluations == answers[1].statistics.num_evaluations


def test_the_work_bound_is_that_of_the_most_demanding_scenario_that_counts() -> None:
    """A scenario that may be missed bounds nothing; with none that counts, one GPU is all that is proven."""
    problem = random_problem(1, 30, load_gpus=6.0)
    problem = make_problem([adapter.model_copy(update={"rate_rps": 8.0}) for adapter in problem.adapters])
    cases = tuple(
        RateScenario(name=f"{weight}", factor=factor, weight=weight) for weight, factor in ((1, 3.0), (3, 1.0))
    )
    bounds = {
        risk: work_bound(replace(problem, scenarios=RateScenarios(cases=cases, risk=risk))) for risk in (0.0, 0.5, 0.8)
    }
    alone = [work_bound(replace(problem, scenarios=RateScenarios(cases=(case,)))) for case in cases]
    assert alone[0].value > alone[1].value > 1
    assert [bounds[risk].value for risk in (0.0, 0.5, 0.8)] == [alone[0].value, alone[1].value, 1]
    assert bounds[0.5] == alone[1] == work_bound(problem)


def test_who_is_busy_in_turn_shares_a_gpu() -> None:
    """Adapters of the day beside adapters of the night take half of the GPUs that the sum of their peaks takes."""
    adapters = [make_adapter(f"{part}-{index}", rate_rps=1.4) for part in ("day", "night") for index in range(8)]
    problem = make_problem(adapters)
    cases = (
        RateScenario(name="day", factors={"night-*": 0.05}),
        RateScenario(name="night", factors={"day-*": 0.05}),
    )
    robust = replace(problem, scenarios=RateScenarios(cases=cases))
    counts = []
    for asked in (problem, robust):
        result = get_solver("local_search").solve(asked, AnalyticSurrogate(), budget=Budget(max_evaluations=8000))
        assert result.placement is not None
        counts.append(result.placement.num_gpus)
    assert counts[1] <= counts[0] / 2 + 1
    assert counts[1] < counts[0]


@pytest.mark.parametrize("name", solver_names())
def test_every_solver_takes_scenarios(name: str) -> None:
    """No solver has to know of them: what it finds holds under each, and no bound is above it."""
    problem = random_problem(2, 12, load_gpus=1.8)
    problem = replace(problem, scenarios=drawn_scenarios(problem, 2))
    result = get_solver(name).solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=3000))
    if result.placement is None:
        assert result.message
        return
    assert all(all(accepted_under(problem, gpu)) for gpu in result.placement.gpus)
    exact = get_solver("exact").solve(problem, AnalyticSurrogate(), budget=Budget())
    assert exact.evaluation is not None
    if result.bound is not None and result.bound.model == "surrogate":
        assert result.bound.value <= exact.evaluation.num_gpus
    assert result.placement.num_gpus >= exact.evaluation.num_gpus


@pytest.mark.parametrize("seed", range(2))
def test_constraints_and_groups_go_with_scenarios(seed: int) -> None:
    """The columns of both stand beside each other."""
    problem = constrained_problem(seed, 8)
    problem = replace(problem, scenarios=drawn_scenarios(problem, seed))
    result = get_solver("bfd").solve(problem, AnalyticSurrogate(), budget=Budget())
    assert result.placement is not None
    assert broken_rules(problem, result.placement) == []
    assert evaluate(problem, result.placement, AnalyticSurrogate()).is_feasible


def test_headroom_is_that_of_the_worst_scenario() -> None:
    """All rates of all scenarios grow together."""
    problem = random_problem(1, 8, load_gpus=0.8)
    problem = replace(problem, scenarios=drawn_scenarios(problem, 1))
    assert problem.scenarios is not None
    gpus = (GpuAssignment(0, tuple(range(8)), 8, 32),)
    joint = headrooms(FeasibilityModel(problem, AnalyticSurrogate()), gpus, FINE_FACTORS)[0]
    alone = [
        headrooms(FeasibilityModel(problem.in_scenario(index), AnalyticSurrogate()), gpus, FINE_FACTORS)[0]
        for index in range(3)
    ]
    assert joint == min(room for room in alone if room is not None)


def test_rows_are_counted_for_each_scenario_and_nothing_is_proven_by_monotony() -> None:
    """Each question about a set is as many rows as there are scenarios, in one batch."""
    problem = random_problem(1, 8, load_gpus=0.8)
    asked = replace(problem, scenarios=drawn_scenarios(problem, 1))
    counts, surrogate = [], AnalyticSurrogate()
    for it in (problem, asked):
        model = FeasibilityModel(it, surrogate)
        model.best_choice(it.aggregates[:2], it.ranks[:2], 0)
        counts.append((model.num_evaluations, model.num_calls))
    assert counts[1] == (3 * counts[0][0], counts[0][1])
    assert surrogate.num_calls == 2
    assert FeasibilityModel(problem, surrogate).is_monotone
    assert not FeasibilityModel(asked, surrogate).is_monotone
    assert box_bound_for(FeasibilityModel(asked, surrogate), 0) is None


def test_the_worst_is_taken_of_each_output() -> None:
    """With a risk the worst scenario does not count; the throughput is that of the problem's own rates."""
    problem = random_problem(1, 8, load_gpus=1.0)
    cases = tuple(RateScenario(name=f"{factor}", factor=factor) for factor in (0.5, 1.0, 3.0))
    gpu = GpuAssignment(0, tuple(range(8)), 8, 32)
    told = {}
    for risk in (0.0, 0.34):
        asked = replace(problem, scenarios=RateScenarios(cases=cases, risk=risk))
        told[risk] = evaluate(asked, Placement((gpu,)), AnalyticSurrogate()).gpus[0]
    for risk, worst in ((0.0, 2), (0.34, 1)):
        asked = replace(problem, scenarios=RateScenarios(cases=cases))
        alone = evaluate(asked.in_scenario(worst), Placement((gpu,)), AnalyticSurrogate()).gpus[0]
        for name in set(OUTPUT_NAMES) - {"throughput_tps"}:
            assert getattr(told[risk], name) == pytest.approx(getattr(alone, name))
        assert told[risk].throughput_tps == pytest.approx(
            told[risk].throughput_ratio * told[risk].offered_tps, rel=1e-5
        )


def test_rates_of_a_scenario() -> None:
    """A common factor, factors of patterns that multiply, and rates that replace all of that."""
    case = RateScenario(name="x", factor=2.0, factors={"a*": 3.0, "a1": 0.5}, rates_rps={"b": 7.0})
    given_rps = np.array([1.0, 1.0, 1.0, 4.0])
    assert case.rates(["a1", "a2", "b", "c"], given_rps).tolist() == [3.0, 6.0, 7.0, 8.0]


def file_data(**changes: Any) -> dict[str, Any]:
    """Return the content of a problem file."""
    adapter = {"rank": 8, "rate_rps": 0.2, "prompt_tokens": {"mean": 100}, "output_tokens": {"mean": 100}}
    data: dict[str, Any] = {
        "schema_version": 1,
        "model": "llama-3.1-8b",
        "gpu_types": [GPU.model_dump(mode="json", exclude_none=True)],
        "adapters": [{"name": "a", **adapter}, {"name": "b", **adapter}],
    }
    return data | changes


@pytest.mark.parametrize(
    ("scenarios", "message"),
    [
        ({"cases": []}, "cases"),
        ({"cases": [{"name": "x"}, {"name": "x"}]}, "must be unique"),
        ({"cases": [{"name": "x", "weight": 0}]}, "weight"),
        ({"cases": [{"name": "x", "factors": {"a": -1}}]}, "at least 0"),
        ({"cases": [{"name": "x", "factors": {"nobody": 2}}]}, "names none"),
        ({"cases": [{"name": "x", "rates_rps": {"c*": 2}}]}, "names none"),
        (
            {"cases": [{"name": "x", "factors": {"b": 2}}, {"name": "y", "factors": {"*": 2}, "rates_rps": {"b": 2}}]},
            r"one of `factors` and `rates_rps`.* 'b' of scenario 'y' is in `factors` \(as '\*'\) and in `rates_rps`",
        ),
        ({"cases": [{"name": "x"}], "risk": 1.0}, "risk"),
    ],
)
def test_bad_scenarios_are_refused(tmp_path: Path, scenarios: dict[str, Any], message: str) -> None:
    """With what must hold."""
    with pytest.raises(InputError, match=message):
        parse_problem(file_data(scenarios=scenarios), file="p.yaml", base_directory=tmp_path)


def test_a_surrogate_that_simulates_members_takes_common_factors_only() -> None:
    """It scales all rates of a set alike; anything else is refused rather than ignored."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=1.5) for index in range(3)])
    exact = ExactSurrogate(
        problem.workload, problem.model, GPU, problem.engine, problem.profiles[0], horizon_s=60.0, warmup_s=20.0
    )
    common = (RateScenario(name="night", factor=0.2), RateScenario(name="day"))
    result = get_solver("bfd").solve(replace(problem, scenarios=RateScenarios(cases=common)), exact, budget=Budget())
    assert result.placement == get_solver("bfd").solve(problem, exact, budget=Budget()).placement
    single = RateScenarios(cases=(RateScenario(name="x", factors={"a0": 2.0}),))
    with pytest.raises(SurrogateError, match="common factors"):
        FeasibilityModel(replace(problem, scenarios=single), exact)


def test_scenarios_leave_adapters_with_near_rates_alike() -> None:
    """Their columns follow those of constraints, of which alone each value is a kind of its own."""
    generator = np.random.default_rng(0)
    rates = generator.uniform(0.01, 1.0, 99).tolist()
    problem = make_problem([make_adapter(f"a{index}", rate_rps=rate) for index, rate in enumerate(rates)])
    same = replace(problem, scenarios=RateScenarios(cases=(RateScenario(name="as is"),)))
    assert cluster_types(same, levels=4).num_types == cluster_types(problem, levels=4).num_types < 30


def test_capacities_beside_a_mixture_are_those_of_the_problem_where_the_scenario_is_the_problem() -> None:
    """What is there already counts under scenarios, too."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=(1.0, 0.2)[index % 2]) for index in range(20)])
    same = replace(problem, scenarios=RateScenarios(cases=(RateScenario(name="as is"),)))
    base = np.array([10.0, 0.0])
    plain, asked = (
        PatternModel(SolverRun(one, AnalyticSurrogate(), Budget(), None), exact_types(one)).capacities(base, 0)
        for one in (problem, same)
    )
    assert asked == pytest.approx(plain)
