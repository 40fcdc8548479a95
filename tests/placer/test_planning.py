"""Plans: complete, simulated as they are, repaired where the twin objects, repeatable, and honest when interrupted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from placer.events import FleetChanged, GpuVerified, IncumbentFound, PhaseStarted, PlanEvent, RepairRound
from placer.files import ProblemFromFile
from placer.plan_document import Plan
from placer.plan_wording import summary_lines
from placer.planning import plan
from placer.surrogates import inflated
from placer.verify import verify_gpus
from predictors.catalog import shipped_surrogate
from predictors.surrogate import Surrogate
from solvers.feasibility import FeasibilityModel
from solvers.headroom import FINE_FACTORS, headrooms
from solvers.objective import evaluate
from solvers.placement import GpuAssignment, Placement
from tests.placer.small_fleets import (
    LENGTHS,
    PROFILE,
    HopefulSurrogate,
    fair_surrogate,
    small_problem,
)
from tests.solvers.analytic import AnalyticSurrogate
from twin.errors import InputError, SolverError, SurrogateError

GPU: dict[str, Any] = {"name": "h100-64gb", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> ProblemFromFile:
    """Return twelve adapters that need two GPUs."""
    return small_problem(tmp_path_factory.mktemp("problem"))


def _assert_complete(problem: ProblemFromFile, result: Plan) -> None:
    """Check that each adapter is on exactly one GPU, and that ranks are counted right."""
    placed = [name for gpu in result.gpus for name in gpu.adapters]
    assert sorted(placed) == sorted(adapter.name for adapter in problem.adapters)
    ranks = {adapter.name: adapter.rank for adapter in problem.adapters}
    for gpu in result.gpus:
        assert gpu.engine.max_lora_rank >= max(ranks[name] for name in gpu.adapters)
        assert sum(entry.num_adapters for entry in gpu.ranks) == len(gpu.adapters)


def _assert_simulated_as_it_is(problem: ProblemFromFile, result: Plan) -> None:
    """Simulate every GPU again, from the plan alone: the verdict in the plan is about exactly this GPU."""
    index = {adapter.name: position for position, adapter in enumerate(problem.adapters)}
    types = [gpu_type.name for gpu_type in problem.gpu_types]
    gpus = [
        GpuAssignment(
            types.index(gpu.gpu_type),
            tuple(sorted(index[name] for name in gpu.adapters)),
            gpu.engine.max_loras,
            gpu.engine.max_lora_rank,
        )
        for gpu in result.gpus
    ]
    assert verify_gpus(problem, gpus, seed=result.seed) == tuple(gpu.verification for gpu in result.gpus)


@pytest.mark.parametrize("solver", ["bfd", "ffd", "greedy", "greedy-intended"])
def test_a_plan_is_complete_and_simulated(tmp_path: Path, solver: str) -> None:
    """Whatever the solver, what is reported as accepted was simulated with these adapters and settings."""
    # The published greedy pads its tests to at least eight adapters: it needs many small ones.
    problem = small_problem(tmp_path, num_adapters=40)
    result = plan(problem, solver=solver, surrogate=fair_surrogate())
    assert result.verdict == "accepted"
    _assert_complete(problem, result)
    _assert_simulated_as_it_is(problem, result)


@pytest.mark.parametrize(("solver", "proof"), [("portfolio", "farley"), ("exact", "enumeration"), ("cpsat", "cp-sat")])
def test_a_plan_says_what_is_proven_of_its_surrogate(problem: ProblemFromFile, solver: str, proof: str) -> None:
    """Beside the bound of the twin, and where it is more; one says nothing of the other."""
    careful = plan(problem, solver=solver, surrogate=AnalyticSurrogate(speed=0.25), budget=5)
    assert careful.lower_bound is not None
    assert (careful.lower_bound.value, careful.lower_bound.model) == (2, "twin")
    assert careful.surrogate_bound is not None
    assert (careful.surrogate_bound.value, careful.surrogate_bound.proof) == (3, proof)
    assert careful.surrogate_bound.model == "surrogate"
    assert f"of sets that the surrogate accepts: at least 3 GPUs ({proof})" in summary_lines(careful)
    # Where it is no more than what holds for the twin, it is not worth a word.
    met = plan(problem, solver=solver, surrogate=fair_surrogate(), budget=5)
    assert met.gap == 0
    assert met.surrogate_bound is None


@pytest.mark.parametrize("surrogate", [HopefulSurrogate(), AnalyticSurrogate(speed=1.0)], ids=["hopeful", "optimistic"])
def test_repair_repairs_what_an_optimistic_surrogate_overloads(problem: ProblemFromFile, surrogate: Surrogate) -> None:
    """All adapters on one GPU is what such a surrogate asks for; the twin objects until the plan holds."""
    unrepaired = plan(problem, surrogate=surrogate, repair_rounds=0)
    assert (unrepaired.verdict, unrepaired.num_gpus) == ("rejected", 1)
    result = plan(problem, surrogate=surrogate)
    assert result.verdict == "accepted"
    assert result.num_gpus == 2
    assert result.repair.rejected_at_first == 1
    assert result.repair.given_back > 0
    _assert_complete(problem, result)
    _assert_simulated_as_it_is(problem, result)


def test_repair_grows_the_fleet_as_far_as_needed(tmp_path: Path) -> None:
    """A load of four and a half GPUs that the surrogate puts on one."""
    problem = small_problem(tmp_path, num_adapters=40, total_rps=42.0)
    result = plan(problem, surrogate=HopefulSurrogate())
    assert result.verdict == "accepted"
    assert result.lower_bound is not None
    assert result.lower_bound.value <= result.num_gpus <= 7
    _assert_complete(problem, result)
    _assert_simulated_as_it_is(problem, result)


def test_gpus_are_emptied_where_the_twin_sees_room(tmp_path: Path) -> None:
    """A pessimistic surrogate opens too many GPUs; the improvement closes one, and can be switched off."""
    problem = small_problem(tmp_path, num_adapters=30, total_rps=14.0)
    surrogate = AnalyticSurrogate(speed=0.255)
    before = plan(problem, surrogate=surrogate, improve=False)
    after = plan(problem, surrogate=surrogate)
    assert before.verdict == after.verdict == "accepted"
    assert after.num_gpus == before.num_gpus - after.repair.gpus_dissolved
    assert after.repair.gpus_dissolved == 1
    _assert_complete(problem, after)
    _assert_simulated_as_it_is(problem, after)


def test_a_fleet_that_may_not_grow_is_rejected_and_complete(tmp_path: Path) -> None:
    """When rounds end with a rejected GPU the plan says so; nothing is dropped."""
    problem = small_problem(tmp_path, gpu_types=[{**GPU, "max_count": 2}], total_rps=21.0)
    result = plan(problem, surrogate=HopefulSurrogate())
    assert result.verdict == "rejected"
    assert result.num_gpus == 2
    assert any(gpu.verification is not None and gpu.verification.reasons for gpu in result.gpus)
    _assert_complete(problem, result)
    _assert_simulated_as_it_is(problem, result)


def test_the_same_seed_gives_the_same_plan(problem: ProblemFromFile) -> None:
    """Run times are the only difference, and another seed is another traffic."""
    first, again, other = (plan(problem, surrogate=HopefulSurrogate(), seed=seed) for seed in (3, 3, 4))
    assert again.comparable() == first.comparable()
    assert "timings" not in first.comparable()
    assert other.comparable() != first.comparable()


def test_the_number_of_workers_does_not_change_the_plan(problem: ProblemFromFile) -> None:
    """Repair asks in batches; who answers first must not matter."""
    assert (
        plan(problem, surrogate=HopefulSurrogate(), workers=1).comparable()
        == plan(problem, surrogate=HopefulSurrogate(), workers=4).comparable()
    )


def test_a_plan_says_what_it_is_made_from(problem: ProblemFromFile) -> None:
    """Inputs by hash, versions, effective configuration, and the lower bound with the gap that follows."""
    result = plan(problem, surrogate=fair_surrogate(), seed=5)
    assert [entry.role for entry in result.inputs] == ["problem", "profile"]
    assert {"placer", "python", "numpy"} <= set(result.versions)
    assert result.configuration.engine == problem.engine
    assert (result.configuration.solver, result.configuration.surrogate.name) == ("portfolio", "AnalyticSurrogate")
    assert (result.seed, result.configuration.horizon_s) == (5, 1800.0)
    assert result.lower_bound is not None
    assert result.gap == pytest.approx((result.num_gpus - result.lower_bound.value) / result.num_gpus)
    assert result.cost_per_hour == 3.0 * result.num_gpus
    assert result.timings.total_s >= result.timings.solve_s


def test_the_attributes_of_the_documentation_work(problem: ProblemFromFile) -> None:
    """What the README and the design page show is what a plan has."""
    result = plan(problem, surrogate=fair_surrogate())
    assert result.gpus[0].engine.max_loras >= 1
    assert result.gpus[0].verification is not None
    assert result.gpus[0].verification.itl_p95_s is not None


def test_without_verification_the_plan_says_so(problem: ProblemFromFile) -> None:
    """A prediction is not a proof."""
    result = plan(problem, surrogate=fair_surrogate(), verify=False)
    assert result.verdict == "unverified"
    assert all(gpu.verification is None for gpu in result.gpus)
    assert result.repair.twin_calls == 0
    assert any("Not simulated" in warning for warning in result.warnings)


def test_predictions_outside_of_the_domain_are_marked(problem: ProblemFromFile) -> None:
    """The numbers of a surrogate that was never fitted there are shown with a warning."""
    result = plan(problem, surrogate=HopefulSurrogate(), verify=False)
    assert result.gpus[0].predicted.is_outside_domain
    assert any("outside of what it was fitted on" in warning for warning in result.warnings)


def test_a_margin_leaves_more_headroom(tmp_path: Path) -> None:
    """With a margin the same surrogate uses more GPUs, and the plan reports the margin."""
    problem = small_problem(tmp_path, num_adapters=30, total_rps=30.0)
    surrogate = AnalyticSurrogate(speed=0.35)
    plain, careful = (plan(problem, surrogate=surrogate, margin=m, verify=False) for m in (0.0, 0.4))
    assert careful.num_gpus > plain.num_gpus
    assert careful.configuration.margin == 0.4
    worst = min(gpu.headroom for gpu in careful.gpus if gpu.headroom is not None)
    assert worst >= 0.35


def test_the_headroom_of_a_gpu_does_not_depend_on_the_others(tmp_path: Path) -> None:
    """All are asked about at once: the answers are those of asking one by one, and of the largest factor accepted."""
    problem = small_problem(tmp_path, num_adapters=12, total_rps=20.0)
    gpus = [GpuAssignment(0, tuple(range(start, 12, 4)), 3, 16) for start in range(4)]
    model = FeasibilityModel(problem, fair_surrogate())
    together = headrooms(model, gpus, FINE_FACTORS)
    assert together == [headrooms(model, [gpu], FINE_FACTORS)[0] for gpu in gpus]
    assert len(set(together)) > 1
    for index, room in enumerate(together):
        assert room is not None
        for factor, expected in ((1.0 + room, True), (1.01 + room, False)):
            evaluation = evaluate(problem, Placement(tuple(gpus)), inflated(fair_surrogate(), factor))
            assert (not evaluation.gpus[index].violations) == expected


def test_too_few_gpus_are_proven_before_anything_is_solved(tmp_path: Path) -> None:
    """The bound alone shows it: no placement, and the proof is named."""
    problem = small_problem(tmp_path, gpu_types=[{**GPU, "max_count": 1}], total_rps=40.0)
    result = plan(problem, surrogate=fair_surrogate())
    assert (result.verdict, result.solution, result.termination) == ("none", "none", "proven")
    assert result.lower_bound is not None
    assert result.lower_bound.value > 1
    assert result.num_gpus == 0
    assert "max_count" in result.message


def test_no_time_is_no_solution_and_no_proof(problem: ProblemFromFile) -> None:
    """A budget that is spent at once leaves nothing, which is a result."""
    result = plan(problem, surrogate=fair_surrogate(), budget=0.0)
    assert (result.verdict, result.termination, result.gap) == ("none", "time_limit", None)


def test_evaluations_limit_the_solver_on_every_machine_alike(problem: ProblemFromFile) -> None:
    """The deterministic budget ends the search as well."""
    result = plan(problem, surrogate=fair_surrogate(), budget=None, max_evaluations=5)
    assert (result.verdict, result.termination) == ("none", "iteration_limit")


def test_without_a_budget_there_is_an_automatic_one(problem: ProblemFromFile) -> None:
    """A minute, and so many rows once there is a placement; any limit that is given replaces both."""

    def limits(
        *, budget: float | Literal["auto"] = "auto", max_evaluations: int | None = None
    ) -> tuple[float | None, int | None, int | None]:
        surrogate = fair_surrogate()
        made = plan(
            problem, solver="bfd", surrogate=surrogate, budget=budget, max_evaluations=max_evaluations, verify=False
        )
        configuration = made.configuration
        return configuration.budget_s, configuration.max_evaluations, configuration.max_improving_evaluations

    assert limits() == (60.0, None, 20_000)
    assert limits(budget=5.0) == (5.0, None, None)
    assert limits(max_evaluations=7) == (None, 7, None)
    assert limits(budget=5.0, max_evaluations=7) == (5.0, 7, None)


def test_an_adapter_that_the_twin_rejects_alone_is_named(tmp_path: Path) -> None:
    """An optimistic surrogate lets it pass; the twin shows what one GPU serves, and what to do is said."""
    adapters = [
        {"name": "huge", "rank": 8, "rate_rps": 25.0, **LENGTHS},
        {"name": "tiny", "rank": 8, "rate_rps": 0.5, **LENGTHS},
    ]
    with pytest.raises(InputError, match=r"'huge'.*5,000 tokens/s.*the twin serves") as caught:
        plan(small_problem(tmp_path, adapters=adapters), surrogate=HopefulSurrogate())
    assert "Replicate" in caught.value.message
    assert "exclude" in caught.value.message
    assert caught.value.value == 25.0


def test_an_adapter_that_the_surrogate_rejects_alone_is_named(tmp_path: Path) -> None:
    """The solvers find it before anything is packed."""
    adapters = [{"name": "huge", "rank": 8, "rate_rps": 25.0, **LENGTHS}]
    with pytest.raises(InputError, match=r"'huge'.*Replicate"):
        plan(small_problem(tmp_path, adapters=adapters), surrogate=fair_surrogate())


def test_an_adapter_that_no_gpu_can_serve_is_not_simulated(tmp_path: Path) -> None:
    """A rate in a wrong unit is a thousand times a GPU; the twin would take minutes and gigabytes to say so."""
    events: list[PlanEvent] = []
    adapters = [{"name": "huge", "rank": 8, "rate_rps": 25_000.0, **LENGTHS}]
    with pytest.raises(InputError, match=r"'huge'.*Replicate"):
        plan(small_problem(tmp_path, adapters=adapters), surrogate=fair_surrogate(), observer=events.append)
    assert not [event for event in events if isinstance(event, GpuVerified)]


def test_an_adapter_that_only_the_surrogate_rejects_is_no_bad_input(problem: ProblemFromFile) -> None:
    """The twin accepts it alone, so it is the surrogate that must go."""
    with pytest.raises(SurrogateError, match="which the twin accepts") as caught:
        plan(problem, surrogate=AnalyticSurrogate(speed=0.01))
    assert "exact" in str(caught.value.hint)


def test_nobody_who_asked_the_twin_is_told_to_ask_the_twin(tmp_path: Path) -> None:
    """The exact surrogate rejects for the margin what the twin accepts without one."""
    with pytest.raises(SurrogateError, match="which the twin accepts") as caught:
        plan(small_problem(tmp_path, num_adapters=5, total_rps=12.0), surrogate="exact", margin=9.0)
    assert "exact" not in str(caught.value.hint)
    assert "lower the margin" in str(caught.value.hint)


def test_an_unknown_solver_is_refused_with_the_nearest_name(problem: ProblemFromFile) -> None:
    """A typing error costs a second, not a search."""
    with pytest.raises(SolverError) as caught:
        plan(problem, solver="bdf")
    assert "bfd" in str(caught.value.hint)


@pytest.mark.parametrize("arguments", [{"margin": -1.0}, {"margin": float("nan")}, {"repair_rounds": -1}])
def test_arguments_out_of_range_are_refused(problem: ProblemFromFile, arguments: dict[str, Any]) -> None:
    """Before anything is loaded."""
    with pytest.raises(InputError, match="must be"):
        plan(problem, surrogate=fair_surrogate(), **arguments)


def _interrupt_at(is_moment: Callable[[PlanEvent], bool]) -> Callable[[PlanEvent], None]:
    def observe(event: PlanEvent) -> None:
        if is_moment(event):
            raise KeyboardInterrupt

    return observe


def test_ctrl_c_before_there_is_a_placement_is_passed_on(problem: ProblemFromFile) -> None:
    """There is nothing to report yet."""
    observer = _interrupt_at(lambda event: isinstance(event, PhaseStarted) and event.phase == "load")
    with pytest.raises(KeyboardInterrupt):
        plan(problem, surrogate=fair_surrogate(), observer=observer)


@pytest.mark.parametrize(
    ("moment", "num_simulated"),
    [
        pytest.param(lambda event: isinstance(event, IncumbentFound), 0, id="solve"),
        pytest.param(lambda event: isinstance(event, GpuVerified), 1, id="verify"),
        pytest.param(lambda event: isinstance(event, FleetChanged), 3, id="after verify"),
    ],
)
def test_ctrl_c_reports_the_best_plan_so_far(
    tmp_path: Path, moment: Callable[[PlanEvent], bool], num_simulated: int
) -> None:
    """The placement is complete; what was not simulated is marked."""
    problem = small_problem(tmp_path, num_adapters=30, total_rps=22.0)
    result = plan(problem, surrogate=fair_surrogate(), observer=_interrupt_at(moment), workers=1)
    assert result.termination == "interrupted"
    assert result.num_gpus == 3
    assert sum(gpu.verification is not None for gpu in result.gpus) == num_simulated
    _assert_complete(problem, result)


@pytest.mark.parametrize("after", [1, 3, 6, 9])
def test_ctrl_c_in_repair_reports_a_complete_placement(problem: ProblemFromFile, after: int) -> None:
    """Wherever repair is when Ctrl-C comes, no adapter is between two GPUs."""
    seen: list[PlanEvent] = []

    def observe(event: PlanEvent) -> None:
        if seen or isinstance(event, RepairRound):
            seen.append(event)
        if len(seen) == after:
            raise KeyboardInterrupt

    result = plan(problem, surrogate=HopefulSurrogate(), observer=observe)
    assert result.termination == "interrupted"
    assert len(seen) == after
    _assert_complete(problem, result)


def test_ctrl_c_in_the_improvement_keeps_the_accepted_plan(tmp_path: Path) -> None:
    """The plan before the improvement was accepted already."""
    problem = small_problem(tmp_path, num_adapters=30, total_rps=14.0)
    observer = _interrupt_at(lambda event: isinstance(event, PhaseStarted) and event.phase == "improve")
    result = plan(problem, surrogate=AnalyticSurrogate(speed=0.255), observer=observer)
    assert (result.termination, result.verdict) == ("interrupted", "accepted")
    _assert_complete(problem, result)


@pytest.mark.parametrize("solver", ["bfd", "greedy"])
def test_of_several_gpu_types_the_objective_decides(tmp_path: Path, solver: str) -> None:
    """A dearer GPU with the same profile is never worth it, also for solvers that know one type only."""
    gpu_types = [{**GPU, "name": "dear", "cost_per_hour": 9.0}, {**GPU, "name": "cheap"}]
    problem = small_problem(tmp_path, num_adapters=40, gpu_types=gpu_types, objective="least_cost")
    result = plan(problem, solver=solver, surrogate=fair_surrogate())
    assert result.verdict == "accepted"
    assert {gpu.gpu_type for gpu in result.gpus} == {"cheap"}
    assert result.cost_per_hour == 3.0 * result.num_gpus
    _assert_complete(problem, result)
    _assert_simulated_as_it_is(problem, result)


def test_ctrl_c_between_gpu_types_reports_the_first_types_plan(tmp_path: Path) -> None:
    """A solver that knows one type only is run once per type; Ctrl-C ends the series."""
    gpu_types = [{**GPU, "name": "first"}, {**GPU, "name": "second"}]
    problem = small_problem(tmp_path, num_adapters=40, gpu_types=gpu_types)
    observer = _interrupt_at(lambda event: isinstance(event, IncumbentFound))
    result = plan(problem, solver="greedy", surrogate=fair_surrogate(), observer=observer)
    assert result.termination == "interrupted"
    assert {gpu.gpu_type for gpu in result.gpus} == {"first"}
    _assert_complete(problem, result)


def test_fixed_settings_are_kept_by_repair(tmp_path: Path) -> None:
    """What the user fixes is not ours to choose, also when the twin objects."""
    engine = {"max_num_seqs": 16, "gpu_memory_utilization": 0.9, "max_loras": 6, "max_lora_rank": 32}
    problem = small_problem(tmp_path, engine=engine)
    result = plan(problem, surrogate=HopefulSurrogate())
    assert result.verdict == "accepted"
    assert {(gpu.engine.max_loras, gpu.engine.max_lora_rank) for gpu in result.gpus} == {(6, 32)}
    _assert_simulated_as_it_is(problem, result)


def test_the_exact_surrogate_agrees_with_the_plan(tmp_path: Path) -> None:
    """The twin as its own surrogate: what it proposes, it accepts at most after small repairs."""
    problem = small_problem(tmp_path, num_adapters=5, total_rps=12.0)
    result = plan(problem, surrogate="exact")
    assert result.verdict == "accepted"
    assert result.configuration.surrogate.name == "exact"
    assert all(gpu.headroom is not None for gpu in result.gpus)
    _assert_complete(problem, result)


def test_the_shipped_surrogate_plans_a_problem_of_its_own_kind(tmp_path: Path) -> None:
    """The default path: the shipped model proposes, the twin disposes, and its file is an input by hash."""
    if shipped_surrogate(PROFILE) is None:
        pytest.skip("no surrogate is shipped for the profile")
    engine = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
    problem = small_problem(tmp_path, num_adapters=60, total_rps=60.0, engine=engine)
    result = plan(problem)
    assert result.verdict == "accepted"
    assert result.configuration.surrogate.name == f"{PROFILE}.onnx"
    assert [entry.role for entry in result.inputs] == ["problem", "profile", "surrogate"]
    _assert_complete(problem, result)
    _assert_simulated_as_it_is(problem, result)


def test_a_problem_without_a_file_can_be_planned(problem: ProblemFromFile) -> None:
    """A scheduler builds problems in memory; the plan then has no problem file among its inputs."""
    result = plan(replace(problem, inputs=()), surrogate=fair_surrogate(), verify=False)
    assert [entry.role for entry in result.inputs] == ["profile"]
