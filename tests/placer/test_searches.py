"""Searches that ask the twin about rejected GPUs: what they return is accepted, and gives back no more than it must."""

from collections.abc import Sequence
from dataclasses import replace

from placer.instances.instance import Judges
from placer.instances.planted import planted_instance
from placer.instances.synthetic import papers_instance
from placer.searches import assign, mend, reassign, run_searches, shed
from placer.surrogates import EXACT_HORIZON_S, EXACT_WARMUP_S, inflated, surrogate_for
from placer.verify import TwinSettings, TwinVerifier
from predictors.surrogate import Surrogate
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.problem import Problem

NUM_ADAPTERS = 92
FEW_SLOTS = 16
# Of the rates that the surrogate believes: it is an optimist, and chooses too few slots.
BELIEF = 0.6


def test_an_overloaded_gpu_gives_back_no_more_than_with_a_slot_for_each() -> None:
    """Few slots serve most of an overload, and little of what remains: slots are looked for again as adapters leave."""
    problem = papers_instance("mixed", rates="mixed", ranks="r8", num_adapters=NUM_ADAPTERS).problem
    shipped = surrogate_for(problem, "auto", horizon_s=EXACT_HORIZON_S, warmup_s=EXACT_WARMUP_S, seed=0, workers=1)
    model = FeasibilityModel(problem, inflated(shipped, BELIEF))
    verifier = TwinVerifier(problem, TwinSettings(horizon_s=400.0, warmup_s=100.0))
    gpu = GpuAssignment(0, tuple(range(NUM_ADAPTERS)), FEW_SLOTS, 8)
    assert not verifier.verify([gpu])[0].is_accepted
    (mended,) = run_searches(verifier, [mend(model, gpu)])
    assert mended.assignment is not None
    assert verifier.accepts(mended.assignment)
    assert sorted((*mended.assignment.adapters, *mended.given_back)) == list(range(NUM_ADAPTERS))
    order = sorted(gpu.adapters, key=lambda index: (-problem.adapters[index].offered_tps, index))
    with_all = replace(gpu, max_loras=NUM_ADAPTERS)
    least = next(
        count
        for count in range(1, NUM_ADAPTERS)
        if verifier.verify([reassign(model, with_all, order[count:])])[0].is_accepted
    )
    assert len(mended.given_back) <= least


def test_where_few_starve_they_leave_and_hardly_any_load_with_them() -> None:
    """What is left is accepted, and serves at least nine tenths of what it served before."""

    def shipped(problem: Problem) -> tuple[Problem, Surrogate]:
        return problem, surrogate_for(
            problem, "auto", horizon_s=EXACT_HORIZON_S, warmup_s=EXACT_WARMUP_S, seed=0, workers=1
        )

    instance = planted_instance("planted-for-shedding", Judges(shipped), rates="mixed", num_gpus=3)
    problem, surrogate = shipped(instance.problem)
    model = FeasibilityModel(problem, surrogate)
    verifier = TwinVerifier(problem, TwinSettings(horizon_s=600.0, warmup_s=100.0))
    gpus = [gpu for members in instance.planted if (gpu := assign(model, 0, members)) is not None]
    rejected = [gpu for gpu, verdict in zip(gpus, verifier.verify(gpus), strict=True) if not verdict.is_accepted]
    assert rejected
    left = run_searches(verifier, [shed(model, gpu) for gpu in rejected])
    for gpu, mended in zip(rejected, left, strict=True):
        assert mended.assignment is not None
        assert verifier.accepts(mended.assignment)
        assert sorted((*mended.assignment.adapters, *mended.given_back)) == list(gpu.adapters)

    given_back = [index for mended in left for index in mended.given_back]
    of_all = [index for gpu in rejected for index in gpu.adapters]
    assert _load_rps(problem, given_back) < 0.1 * _load_rps(problem, of_all)


def test_where_most_starve_an_overloaded_gpu_is_mended() -> None:
    """There is no telling who is too much: it is given back what mending gives back."""
    problem = papers_instance("high", rates="high", ranks="r8", num_adapters=NUM_ADAPTERS).problem
    surrogate = surrogate_for(problem, "auto", horizon_s=EXACT_HORIZON_S, warmup_s=EXACT_WARMUP_S, seed=0, workers=1)
    model = FeasibilityModel(problem, surrogate)
    verifier = TwinVerifier(problem, TwinSettings(horizon_s=400.0, warmup_s=100.0))
    gpu = GpuAssignment(0, tuple(range(60)), 60, 8)
    assert len(verifier.verify([gpu])[0].starved_adapters) > 20
    assert run_searches(verifier, [shed(model, gpu)]) == run_searches(verifier, [mend(model, gpu)])


def _load_rps(problem: Problem, adapters: Sequence[int]) -> float:
    return sum(problem.adapters[index].rate_rps for index in adapters)
