"""Many rejected GPUs are packed anew with more caution: few simulations, and never a GPU that the twin rejected."""

from pathlib import Path
from typing import Any

import pytest

from placer.comparison_run import Run, RunSettings, do_run
from placer.events import FleetChanged, GpuVerified, PlanEvent, ignore
from placer.files import ProblemFromFile
from placer.instances.instance import Instance
from placer.plan_document import Plan, RepairSummary
from placer.planning import plan
from placer.repacking import (
    LEAST_REJECTED,
    MARGIN_STEPS,
    REJECTED_PER_NEIGHBOUR,
    RISK_STEPS,
    cautious_surrogates,
    repack,
)
from placer.repair import Fleet, Repair
from placer.surrogates import inflated, surrogate_for, threshold_for
from placer.verify import TwinSettings, TwinVerifier
from predictors.surrogate import InflatedSurrogate, ThresholdSurrogate
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment, Placement, validate_placement
from solvers.registry import get_solver
from tests.placer.small_fleets import GPU_RPS, LENGTHS, PROFILE, HopefulSurrogate, fair_surrogate, small_problem
from tests.solvers.analytic import AnalyticSurrogate

NUM_ADAPTERS = 240
# A fifth too fast: most GPUs that are packed to its brim are rejected.
OPTIMISTIC = AnalyticSurrogate(speed=0.365)
WINDOW: dict[str, Any] = {"horizon_s": 400.0, "warmup_s": 50.0}
GPU: dict[str, Any] = {"name": "h100-64gb", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE}


def _many(folder: Path, **changes: Any) -> ProblemFromFile:
    """Return equal adapters that need a dozen GPUs."""
    rate_rps = 12 * GPU_RPS / NUM_ADAPTERS
    adapters = [
        {"name": f"a{index}", "rank": 8, "rate_rps": rate_rps * (0.8 + 0.4 * (index % 2)), **LENGTHS}
        for index in range(NUM_ADAPTERS)
    ]
    return small_problem(folder, adapters=adapters, **changes)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ProblemFromFile:
    """Return a problem of a dozen GPUs."""
    return _many(tmp_path_factory.mktemp("many"))


def _packed(problem: ProblemFromFile) -> tuple[GpuAssignment, ...]:
    placement = get_solver("bfd").solve(problem, OPTIMISTIC, budget=Budget()).placement
    assert placement is not None
    return placement.gpus


def _repairs(problem: ProblemFromFile, **changes: Any) -> tuple[Plan, list[PlanEvent]]:
    """Return the plan of the optimistic surrogate without the improvement, and what happened until it stood."""
    events: list[PlanEvent] = []
    arguments: dict[str, Any] = {"solver": "bfd", "surrogate": OPTIMISTIC, "improve": False, **WINDOW} | changes
    made = plan(problem, observer=events.append, **arguments)
    return made, events


@pytest.fixture(scope="module")
def repaired(many: ProblemFromFile) -> tuple[Plan, list[PlanEvent]]:
    """Return a plan of which many GPUs were rejected at first."""
    return _repairs(many)


def test_many_rejected_gpus_are_packed_anew(repaired: tuple[Plan, list[PlanEvent]]) -> None:
    """Every GPU of the plan was accepted, and most of them without a search of their own."""
    made, events = repaired
    assert made.repair.rejected_at_first >= LEAST_REJECTED
    assert made.verdict == "accepted"
    assert all(gpu.verification is not None and gpu.verification.is_accepted for gpu in made.gpus)
    details = [event.detail for event in events if isinstance(event, FleetChanged)]
    assert any("more carefully" in detail for detail in details)
    placed = sorted(name for gpu in made.gpus for name in gpu.adapters)
    assert placed == sorted(f"a{index}" for index in range(NUM_ADAPTERS))


def test_a_comparison_repairs_as_plans_do(many: ProblemFromFile, repaired: tuple[Plan, list[PlanEvent]]) -> None:
    """The same GPUs after the same simulations: what is compared is what would be deployed."""
    made, _ = repaired
    settings = RunSettings(surrogate="tests.placer.foreign:HastySurrogate", **WINDOW)
    record = do_run(Run(Instance("many", "x", "x", many), "bfd", 0, settings))
    assert record.twin is not None
    assert record.twin.rejected_gpus == made.repair.rejected_at_first
    assert record.twin.twin_calls == made.repair.twin_calls
    assert record.repaired is not None
    names = [tuple(many.adapters[index].name for index in members) for members in record.repaired.gpus]
    assert sorted(names) == sorted(gpu.adapters for gpu in made.gpus)


def test_every_simulation_of_the_loop_is_counted(repaired: tuple[Plan, list[PlanEvent]]) -> None:
    """What the plan says that the twin was asked is what was simulated."""
    made, events = repaired
    assert made.repair.twin_calls == sum(isinstance(event, GpuVerified) for event in events)


def test_packing_anew_asks_the_twin_less_than_mending(
    many: ProblemFromFile, repaired: tuple[Plan, list[PlanEvent]]
) -> None:
    """The same rejected GPUs, mended one by one, cost several times the simulations."""
    packed = _packed(many)
    verifier = TwinVerifier(many, TwinSettings(**WINDOW))
    verifier.verify(packed)
    fleet = Fleet(packed, RepairSummary())
    Repair(FeasibilityModel(many, OPTIMISTIC), verifier, fleet, observer=ignore).repair(8)
    made, _ = repaired
    assert 2 * (made.repair.twin_calls - len(packed)) <= verifier.num_calls - len(packed)
    assert made.num_gpus <= len(fleet.gpus) + 1


def test_regaining_never_makes_a_plan_worse(many: ProblemFromFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out is never more, complete and accepted as before; where nothing was opened, nobody is asked."""
    packed = _packed(many)
    verifier = TwinVerifier(many, TwinSettings(**WINDOW))
    verifier.verify(packed)
    fleet = Fleet(packed, RepairSummary())
    repair = Repair(
        FeasibilityModel(many, OPTIMISTIC), verifier, fleet, observer=ignore, cautious=[inflated(OPTIMISTIC, 1.2)]
    )
    repair.repair(8)
    repaired, num_calls = fleet.gpus, verifier.num_calls
    assert len(repaired) > len(packed)
    with monkeypatch.context() as few:
        few.setattr("placer.repair.MOST_REGAINED", 0)
        repair.regain()
    assert (verifier.num_calls, fleet.gpus) == (num_calls, repaired)
    repair.regain()
    assert verifier.num_calls > num_calls
    assert len(fleet.gpus) <= len(repaired)
    assert all(verifier.accepts(gpu) for gpu in fleet.gpus)
    validate_placement(many, Placement(fleet.gpus))
    settled = Fleet(fleet.gpus, RepairSummary())
    num_calls = verifier.num_calls
    Repair(FeasibilityModel(many, OPTIMISTIC), verifier, settled, observer=ignore).regain()
    assert (verifier.num_calls, settled.gpus) == (num_calls, fleet.gpus)


def test_the_loop_repeats_exactly(many: ProblemFromFile, repaired: tuple[Plan, list[PlanEvent]]) -> None:
    """The same seed gives the same plan, however many threads simulate."""
    made, _ = repaired
    again, _ = _repairs(many, workers=1)
    assert again.model_copy(update={"timings": made.timings}) == made


def test_a_fleet_that_may_not_grow_stays_rejected(tmp_path: Path, many: ProblemFromFile) -> None:
    """More caution needs more GPUs than there are: the plan is complete, and says that the twin rejects it."""
    very_optimistic = AnalyticSurrogate(speed=0.42)
    placement = get_solver("bfd").solve(many, very_optimistic, budget=Budget()).placement
    assert placement is not None
    limited = _many(tmp_path, gpu_types=[{**GPU, "max_count": placement.num_gpus}])
    made, _ = _repairs(limited, surrogate=very_optimistic)
    assert made.verdict == "rejected"
    assert made.num_gpus == placement.num_gpus
    assert sum(len(gpu.adapters) for gpu in made.gpus) == NUM_ADAPTERS


def test_repacking_changes_rejected_gpus_and_few_others(many: ProblemFromFile) -> None:
    """Most accepted GPUs are the very same afterwards, so that nobody simulates them again; nobody is lost."""
    gpus = _packed(many)
    rejected = gpus[: len(gpus) // 2]
    repacked = repack(many, inflated(OPTIMISTIC, 1.2), gpus, rejected)
    assert repacked is not None
    validate_placement(many, Placement(repacked.gpus))
    assert repacked.num_moved == sum(len(gpu.adapters) for gpu in rejected)
    assert not set(rejected) & set(repacked.gpus)
    changed = set(gpus) - set(rejected) - set(repacked.gpus)
    assert len(changed) <= 1 + len(rejected) // REJECTED_PER_NEIGHBOUR


def test_a_gpu_whose_adapter_is_refused_alone_stays(many: ProblemFromFile) -> None:
    """Nobody who is that careful can place it: it is left to whoever asks the twin."""
    gpus = _packed(many)
    assert repack(many, inflated(OPTIMISTIC, 50.0), gpus, gpus[:3]) is None


def test_repacking_keeps_within_the_gpus_that_there_are(tmp_path: Path, many: ProblemFromFile) -> None:
    """A careful packing that needs more is none."""
    gpus = _packed(many)
    limited = _many(tmp_path, gpu_types=[{**GPU, "max_count": len(gpus)}])
    assert repack(limited, inflated(OPTIMISTIC, 1.2), gpus, gpus) is None


def test_caution_that_does_not_help_ends_in_mending(tmp_path: Path) -> None:
    """A surrogate that accepts whatever it is asked makes one GPU of many: the twin is believed instead."""
    problem = small_problem(tmp_path, num_adapters=30, total_rps=4 * GPU_RPS)
    gpus = tuple(GpuAssignment(0, (index, index + 10, index + 20), 3, 16) for index in range(10))
    verifier = TwinVerifier(problem, TwinSettings(**WINDOW))
    verifier.verify(gpus)
    fleet = Fleet(gpus, RepairSummary())
    hopeful = HopefulSurrogate()
    repair = Repair(
        FeasibilityModel(problem, hopeful), verifier, fleet, observer=ignore, cautious=[inflated(hopeful, 1.1)]
    )
    repair.repair(8)
    assert all(verifier.accepts(gpu) for gpu in fleet.gpus)
    validate_placement(problem, Placement(fleet.gpus))


def test_the_steps_of_caution_are_the_thresholds_that_a_file_knows(many: ProblemFromFile) -> None:
    """Each accepts less than the one before, and less than what the plan was packed with."""
    shipped = surrogate_for(many, "auto", horizon_s=900.0, warmup_s=150.0, seed=0, workers=1)
    steps = cautious_surrogates(shipped, threshold=0.5, margin=0.0)
    thresholds = [step.threshold for step in steps if isinstance(step, ThresholdSurrogate)]
    assert thresholds == sorted((threshold_for(shipped, risk) for risk in RISK_STEPS), reverse=True)
    careful = cautious_surrogates(shipped, threshold=threshold_for(shipped, 0.05), margin=0.0)
    assert len(careful) == 2


def test_without_thresholds_the_rates_are_taken_to_be_larger() -> None:
    """On top of the margin of the plan."""
    steps = cautious_surrogates(fair_surrogate(), threshold=0.5, margin=0.1)
    factors = [step.factor for step in steps if isinstance(step, InflatedSurrogate)]
    assert factors == [1.1 * (1.0 + step) for step in MARGIN_STEPS]


def test_the_twin_is_not_asked_more_carefully(many: ProblemFromFile) -> None:
    """A surrogate that simulates is as right as the verdict; each question would be a simulation."""
    exact = surrogate_for(many, "exact", horizon_s=900.0, warmup_s=150.0, seed=0, workers=1)
    assert cautious_surrogates(exact, threshold=0.5, margin=0.0) == ()
