"""Searches that ask the twin about rejected GPUs: what they return is accepted, and gives back no more than it must."""

from dataclasses import replace

from placer.instances.synthetic import papers_instance
from placer.searches import mend, reassign, run_searches
from placer.surrogates import EXACT_HORIZON_S, EXACT_WARMUP_S, inflated, surrogate_for
from placer.verify import TwinSettings, TwinVerifier
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment

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
