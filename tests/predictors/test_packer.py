"""A GPU is filled as solvers fill it: compared with the plain loop over the solvers' own choice of slots."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.packer import PackedGpu, Packer
from predictors.surrogate import InflatedSurrogate, Surrogate, ThresholdSurrogate
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from tests.predictors.capacity import CAPACITY_TPS, CapacitySurrogate
from tests.predictors.populations import chat_adapters
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import make_problem, random_problem


def packer_for(problem: Problem) -> Packer:
    """Return the packer of a problem's adapters and GPU."""
    return Packer(problem.adapters, problem.replica(0, 1, 8, 1))


def filled_plainly(problem: Problem, surrogate: Surrogate) -> PackedGpu | None:
    """Return the GPU that gets each adapter, in turn, with which planning accepts it."""
    model = FeasibilityModel(problem, surrogate)
    gpu = PackedGpu((), 0, 0)
    for index in range(len(problem.adapters)):
        members = [*gpu.members, index]
        rank = problem.ranks[members].max()
        choices = model.best_choice(model.aggregates[members].sum(axis=0)[np.newaxis], np.array([rank]), 0)
        if choices.feasible[0]:
            gpu = PackedGpu(tuple(members), int(choices.max_loras[0]), int(rank))
    return gpu if gpu.members else None


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    load_gpus=st.floats(0.5, 20.0),
    margin=st.sampled_from([0.0, 0.1, 0.5]),
    threshold=st.sampled_from([0.5, 0.1]),
)
def test_a_gpu_is_filled_as_planning_would(seed: int, load_gpus: float, margin: float, threshold: float) -> None:
    """Batches and runs lead where asking one set at a time leads, with the slots that planning chooses."""
    problem = random_problem(seed, 90, load_gpus=load_gpus)
    surrogate = ThresholdSurrogate(InflatedSurrogate(AnalyticSurrogate(), 1.0 + margin), threshold)
    assert packer_for(problem).fill(surrogate) == filled_plainly(problem, surrogate)


def test_the_gap_that_a_large_adapter_leaves_is_filled() -> None:
    """Six units fit: five, not three more, then one; which a packer that stops at the first refusal would miss."""
    (chat,) = chat_adapters(1, rate_rps=1.0)
    # The ratio may fall to 0.9.
    unit_rps = CAPACITY_TPS / 0.9 / 6.05 / chat.offered_tps
    adapters = tuple(
        chat.model_copy(update={"name": f"a{index}", "rate_rps": units * unit_rps})
        for index, units in enumerate((5.0, 3.0, 1.0, 1.0))
    )
    gpu = packer_for(make_problem(adapters)).fill(CapacitySurrogate())
    assert gpu is not None
    assert gpu.members == (0, 2)


def test_the_replica_has_the_slots_chosen_and_all_adapters_in_memory() -> None:
    """What is simulated is the GPU as a plan would have it."""
    problem = random_problem(3, 60, load_gpus=3.0)
    packer = packer_for(problem)
    gpu = packer.fill(AnalyticSurrogate())
    assert gpu is not None
    assert packer.replica(gpu) == problem.replica(0, gpu.max_loras, gpu.max_lora_rank, len(gpu.members))


def test_nothing_is_packed_where_no_adapter_fits_alone() -> None:
    """Each of them is too much for a GPU."""
    (chat,) = chat_adapters(1, rate_rps=1.0)
    adapters = chat_adapters(5, rate_rps=2.0 * CAPACITY_TPS / chat.offered_tps)
    assert packer_for(make_problem(adapters)).fill(CapacitySurrogate()) is None
