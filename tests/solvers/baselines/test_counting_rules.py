"""Rules that look at counts, hashes and sums: random, max_backbone, AIBrix, Punica, Dynamo, latency."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.slots import GRID
from predictors.surrogate import SurrogateOutput
from solvers.baselines import aibrix_binpack, dynamo_mcf, latency, max_backbone, punica, random_placement
from solvers.baselines.fleet import one_slot_per_adapter, one_slot_per_two_adapters
from solvers.baselines.least_fleet import BaselineSolver
from solvers.baselines.operating_point import saturated_step
from solvers.budget import Budget
from solvers.greedy import alternating_order
from solvers.registry import get_solver, solver_entries
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.baselines.tasks import gpu_of, loads, make_task, task_of
from tests.solvers.problems import make_adapter, make_problem, random_problem

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 12)


@given(seed=SEEDS, num_gpus=SIZES)
def test_random_places_everything_and_repeats(seed: int, num_gpus: int) -> None:
    """Every adapter has one GPU; the same seed draws the same."""
    task = make_task(random_problem(seed, 30, load_gpus=2.0), seed=seed)
    groups = random_placement.place(task, num_gpus)
    gpu_of(groups, 30)
    assert groups == random_placement.place(task, num_gpus)


def test_random_depends_on_the_seed_and_uses_every_gpu() -> None:
    """Of 300 adapters each of ten GPUs gets about 30."""
    problem = random_problem(1, 300, load_gpus=2.0)
    first, second = (random_placement.place(make_task(problem, seed=seed), 10) for seed in (0, 1))
    assert first != second
    assert all(15 <= len(group) <= 50 for group in first)


def test_random_slots_are_of_the_grid_and_start() -> None:
    """Memory allows few slots of a large rank; a replica that does not start is not drawn."""
    task = task_of(*[(512, 0.1)] * 3, *[(8, 0.1)] * 40)
    groups = [[0], [1, 2], *([index] for index in range(3, 43))]
    slots = random_placement.choose_slots(task, groups)
    assert all(1 <= count <= task.slots_limit(group) for group, count in zip(groups, slots, strict=True))
    assert set(slots[2:]) <= set(GRID)
    assert len(set(slots[2:])) > 1


@given(rates=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=30))
def test_max_backbone_is_first_fit(rates: list[float]) -> None:
    """An adapter is on the first GPU that had room when it came, and only alone above the backbone."""
    task = task_of(*[(16, rate) for rate in rates])
    groups = max_backbone.first_fit(task, 2000.0, len(rates))
    assert groups is not None
    load = [0.0] * len(rates)
    for adapter, gpu in enumerate(gpu_of(groups, len(rates))):
        own = float(task.offered_tps[adapter])
        assert all(load[earlier] + own > 2000.0 for earlier in range(gpu))
        assert load[gpu] == 0.0 or load[gpu] + own <= 2000.0
        load[gpu] += own


def test_max_backbone_says_when_the_gpus_are_too_few() -> None:
    """Two adapters that fill a GPU each do not go onto one."""
    task = task_of((16, 40.0), (16, 40.0))
    assert max_backbone.place(task, 1) is None
    assert max_backbone.place(task, 2) == [[0], [1]]


def test_max_backbone_decides_the_number_of_gpus_itself() -> None:
    """One fleet is tried; where the surrogate accepts it, it is the answer."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=6.0) for index in range(20)])
    result = get_solver("max_backbone").solve(problem, AnalyticSurrogate(speed=10.0), budget=Budget())
    # 2,520 tokens/s each: seven fit 17,814.
    assert result.placement is not None
    assert [len(gpu.adapters) for gpu in result.placement.gpus] == [7, 7, 6]
    assert [gpu.max_loras for gpu in result.placement.gpus] == [7, 7, 6]
    assert result.statistics.num_iterations == 1


def test_max_backbone_half_has_half_the_slots() -> None:
    """The papers' starred variant; a single adapter has its slot."""
    task, groups = task_of(*[(16, 0.1)] * 9), [[0], [1, 2], [3, 4, 5], [6, 7, 8]]
    assert one_slot_per_adapter(task, groups) == [1, 2, 3, 3]
    assert one_slot_per_two_adapters(task, groups) == [1, 1, 1, 1]
    assert one_slot_per_two_adapters(task, [list(range(9))]) == [4]


@given(num_adapters=st.integers(1, 40), num_gpus=st.integers(1, 40))
def test_aibrix_fills_the_fullest_pod_below_the_cap(num_adapters: int, num_gpus: int) -> None:
    """Each adapter went onto a pod with the most adapters among those below the least cap that is enough."""
    groups = aibrix_binpack.place(task_of(*[(16, 0.1)] * num_adapters), num_gpus)
    cap = max(len(group) for group in groups)
    assert cap * num_gpus >= num_adapters > (cap - 1) * num_gpus
    counts = [0] * num_gpus
    for gpu in gpu_of(groups, num_adapters):
        assert counts[gpu] == max(count for count in counts if count < cap)
        counts[gpu] += 1


@settings(max_examples=30)
@given(seed=SEEDS, num_gpus=SIZES)
def test_punica_picks_the_most_loaded_gpu_with_room(seed: int, num_gpus: int) -> None:
    """In the order of the problem, below an equal share of the running requests and within the KV memory."""
    task = make_task(random_problem(seed, 30, load_gpus=2.0))
    step_s = saturated_step(task.problem, 0, 8).duration_s
    running = task.column("sum_output_tps") * step_s
    held = task.column("sum_kv_token_steps") * step_s
    groups = punica.most_loaded_with_room(task, running, held, running_limit=float(running.sum()), num_gpus=num_gpus)
    limited = punica.place(task, num_gpus)
    # One GPU takes all when the limit is what there is.
    assert groups is not None
    assert len([group for group in groups if group]) == 1
    if limited is None:
        assert running.sum() / num_gpus > task.problem.engine.max_num_seqs
        return
    share = float(running.sum()) / num_gpus * (1.0 + 1e-9)
    load = np.zeros(num_gpus)
    for adapter, gpu in enumerate(gpu_of(limited, 30)):
        with_room = [other for other in range(num_gpus) if load[other] == 0.0 or load[other] < share]
        assert load[gpu] == max(load[other] for other in with_room)
        load[gpu] += running[adapter]


def test_punica_queues_where_no_gpu_has_room() -> None:
    """KV memory that is full, or more running requests than sequences, is a fleet that is too small."""
    task = task_of((16, 1.0), (16, 1.0), (16, 1.0))
    one = np.ones(3)
    assert punica.most_loaded_with_room(task, one, one * 1e9, running_limit=9.0, num_gpus=2) is None
    assert punica.most_loaded_with_room(task, one, one * 1e9, running_limit=9.0, num_gpus=3) == [[0], [1], [2]]
    assert punica.place(task_of((16, 1000.0)), 1) is None


def test_idle_adapters_stay_together() -> None:
    """Without load the first GPU is as loaded as any, and has room."""
    assert punica.place(task_of((16, 0.0), (16, 0.0)), 3) == [[0, 1], [], []]


def test_rendezvous_ranks_are_permutations_and_change_little_with_a_worker() -> None:
    """A further worker changes no order among the others: that is what rendezvous hashing is for."""
    names = [f"adapter-{index}" for index in range(200)]
    ranks, more = dynamo_mcf.rendezvous_ranks(names, 5), dynamo_mcf.rendezvous_ranks(names, 6)
    assert (np.sort(ranks, axis=1) == np.arange(5)).all()
    assert (np.argsort(ranks, axis=1) == [[w for w in row if w < 5] for row in np.argsort(more, axis=1)]).all()
    first = np.bincount(ranks.argmin(axis=1), minlength=5)
    assert first.min() > 20


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 3).flatmap(lambda workers: st.lists(st.permutations(range(workers)), min_size=1, max_size=5)),
    spare=st.integers(0, 2),
)
def test_the_flow_costs_as_little_as_brute_force(ranks: list[list[int]], spare: int) -> None:
    """Ranks plus the n-th adapter's load cost, over all assignments within the cap."""
    table = np.array(ranks)
    num_adapters, num_workers = table.shape
    cap = -(-num_adapters // num_workers) + spare

    def cost(workers: tuple[int, ...]) -> float:
        counts = np.bincount(workers, minlength=num_workers)
        if counts.max() > cap:
            return np.inf
        load = int((counts * (counts - 1)).sum()) // 2 * dynamo_mcf.LOAD_COST
        return float(sum(table[adapter, worker] for adapter, worker in enumerate(workers)) + load)

    chosen = tuple(int(worker) for worker in dynamo_mcf.min_cost_assignment(table, cap))
    assert cost(chosen) == min(cost(workers) for workers in product(range(num_workers), repeat=num_adapters))


def test_dynamo_balances_counts() -> None:
    """No worker has more than its slots, the least number that is enough."""
    groups = dynamo_mcf.place(make_task(random_problem(3, 50, load_gpus=2.0)), 7)
    assert groups is not None
    gpu_of(groups, 50)
    assert max(len(group) for group in groups) <= 8


def test_flows_too_large_are_not_tried() -> None:
    """The arcs of one flow grow with adapters x workers."""
    task = make_task(random_problem(3, 50, load_gpus=2.0))
    assert dynamo_mcf.place(task, dynamo_mcf.MAX_PAIRS // 50 + 1) is None


@given(seed=SEEDS, num_gpus=SIZES)
def test_latency_gives_each_adapter_to_the_least_loaded_gpu(seed: int, num_gpus: int) -> None:
    """In the order of the greedy, by tokens per second."""
    task = make_task(random_problem(seed, 20, load_gpus=1.0))
    gpus = gpu_of(latency.least_loaded(task, num_gpus), 20)
    load = [0.0] * num_gpus
    for adapter in alternating_order(task.problem):
        assert load[gpus[adapter]] == min(load)
        load[gpus[adapter]] += float(task.offered_tps[adapter])


class SlowSurrogate(AnalyticSurrogate):
    """A replica that completes less than is offered although it says that nothing starves."""

    def __init__(self, share: float) -> None:
        super().__init__(speed=10.0)
        self.share = share

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the inner prediction with a share of its throughput."""
        output = super().predict(features)
        return replace(output, throughput_tps=np.float32(self.share) * output.throughput_tps)


@pytest.mark.parametrize(("share", "is_rejected"), [(1.0, False), (0.91, False), (0.89, True), (1.11, True)])
def test_latency_rejects_a_throughput_far_from_the_ideal(share: float, *, is_rejected: bool) -> None:
    """More than ten per cent, in either direction."""
    problem = random_problem(1, 20, load_gpus=1.0)
    assert (latency.place(make_task(problem, surrogate=SlowSurrogate(share)), 2) is None) == is_rejected


def test_latency_has_a_slot_for_each_adapter_or_no_fleet() -> None:
    """Where memory does not hold so many slots, the number of GPUs is too small."""
    task = task_of(*[(512, 0.01)] * 60)
    limit = task.slots_limit([0])
    assert limit < 60
    assert latency.place(task, 1) is None
    assert latency.place(task, -(-60 // limit)) is not None


def test_loads_are_even_with_latency() -> None:
    """Many light adapters leave no two GPUs far apart."""
    task = make_task(random_problem(1, 200, load_gpus=4.0))
    load = loads(task.offered_tps.tolist(), latency.least_loaded(task, 5))
    assert max(load) - min(load) <= float(task.offered_tps.max())


def test_every_baseline_is_a_solver_of_the_registry() -> None:
    """By the names of the table in the documentation."""
    for name in ("aibrix_binpack", "alpaserve", "dlora", "dlora_ilp", "dynamo_mcf", "latency", "loraserve", "punica"):
        assert isinstance(get_solver(name).inner.inner, BaselineSolver)


@pytest.mark.parametrize(
    ("name", "library", "extra"), [("dlora_ilp", "pulp", "milp"), ("dynamo_mcf", "ortools", "cpsat")]
)
def test_a_library_that_a_rule_needs_is_named(name: str, library: str, extra: str) -> None:
    """So that the registry can say what to install instead of failing in the middle."""
    entry = next(entry for entry in solver_entries() if entry.name == name)
    assert library in entry.requires
    assert entry.extra == extra
