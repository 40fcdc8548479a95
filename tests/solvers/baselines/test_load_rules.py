"""Rules that look at load: LoRAServe, AlpaServe, dLoRA and its integer program."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.baselines import alpaserve, dlora, dlora_ilp, loraserve
from solvers.baselines.fleet import BudgetSpentError, FleetTask, Groups
from solvers.budget import Budget
from tests.solvers.baselines.tasks import gpu_of, loads, make_task, task_of
from tests.solvers.problems import random_problem

SEEDS = st.integers(0, 10_000)


@given(quotas=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8), total=st.integers(0, 200))
def test_the_largest_remainders_get_the_rest(quotas: list[float], total: int) -> None:
    """Each gets its exact share rounded down or up, in all the total, and the larger remainders are rounded up."""
    counts = loraserve.largest_remainder(np.array(quotas), total)
    assert counts.sum() == total
    weights = np.array(quotas) if sum(quotas) > 0 else np.ones(len(quotas))
    exact = weights / weights.sum() * total
    assert (np.abs(counts - exact) < 1.0 + 1e-6).all()
    up, down = exact[counts > exact + 1e-6], exact[counts < exact - 1e-6]
    if len(up) and len(down):
        assert min(up - np.floor(up)) >= max(down - np.floor(down)) - 1e-6


def test_the_division_of_a_known_case() -> None:
    """Quotas 47 : 16 : 15.8 : 12 : 6.1 : 3.1 for ten seats, the textbook example."""
    quotas = np.array([47_000, 16_000, 15_800, 12_000, 6_100, 3_100], dtype=np.float64)
    assert loraserve.largest_remainder(quotas, 10).tolist() == [5, 2, 1, 1, 1, 0]


@settings(max_examples=50)
@given(seed=SEEDS, num_gpus=st.integers(1, 12))
def test_loraserve_places_everything(seed: int, num_gpus: int) -> None:
    """Every adapter has one GPU, whatever the number of GPUs."""
    gpu_of(loraserve.place(make_task(random_problem(seed, 30, load_gpus=2.0)), num_gpus), 30)


def test_loraserve_separates_ranks_in_proportion_to_their_utilisation() -> None:
    """Three quarters of the utilisation are of rank 8, one quarter of rank 32; equal adapters fill equal shares."""
    task = task_of(*[(8, 0.3 * 15_064)] * 12, *[(32, 0.3 * 14_496)] * 4)
    utilisation = loraserve.adapter_utilisation(task)
    assert utilisation == pytest.approx(np.full(16, utilisation[0]))
    groups = loraserve.place(task, 4)
    assert [sorted({int(task.problem.ranks[adapter]) for adapter in group}) for group in groups] == [
        [32],
        [8],
        [8],
        [8],
    ]
    assert loads(utilisation.tolist(), groups) == pytest.approx([4 * utilisation[0]] * 4)


def test_leftovers_of_loraserve_go_to_gpus_of_larger_ranks() -> None:
    """A rank without a GPU of its own is served where slots are already that large, and never makes them larger."""
    task = task_of(*[(32, 4.0)] * 4, (8, 0.5), (16, 0.5))
    groups = loraserve.place(task, 2)
    assert gpu_of(groups, 6)[:4] != [0, 0, 0, 0]
    assert all(task.max_rank(group) == 32 for group in groups)


def test_the_largest_rank_of_loraserve_is_placed_even_without_a_gpu_of_its_own() -> None:
    """Where no GPU has slots that large, the least loaded gets them."""
    task = task_of(*[(8, 4.0)] * 6, (64, 0.1))
    groups = loraserve.place(task, 2)
    gpu_of(groups, 7)
    assert sorted(task.max_rank(group) for group in groups) == [8, 64]


def test_one_hot_adapter_of_loraserve_is_left_over_and_gets_a_gpu() -> None:
    """An adapter above the equal share cannot be split: it goes onto the least loaded GPU that may hold it."""
    task = task_of((16, 10.0), *[(16, 0.1)] * 10)
    gpus = gpu_of(loraserve.place(task, 4), 11)
    assert sorted(set(gpus)) == [0, 1, 2, 3]


@settings(max_examples=30)
@given(seed=SEEDS, num_gpus=st.integers(1, 8))
def test_moves_of_alpaserve_only_reduce_unserved_requests(seed: int, num_gpus: int) -> None:
    """The fleet serves at least what it served before the simulations."""
    task = make_task(random_problem(seed, 25, load_gpus=4.0))
    before, after = alpaserve.place_all(task, num_gpus), alpaserve.place(task, num_gpus)
    assert before is not None
    assert after is not None
    gpu_of(after, 25)

    def unserved_rps(groups: Groups) -> float:
        shares = alpaserve.unserved_share(task, groups)
        return sum(float(share * task.rates_rps[group].sum()) for share, group in zip(shares, groups, strict=True))

    assert unserved_rps(after) <= unserved_rps(before) + 1e-9


def test_alpaserve_helps_the_adapter_with_the_most_unserved_requests() -> None:
    """The one with the most first, each to the least loaded other GPU; what is served is not moved."""
    task = task_of(*[(16, rate) for rate in (5.0, 1.0, 3.0, 2.0)])
    groups = [[0, 1], [2], [3]]
    load = np.array([task.work[group].sum() for group in groups])
    moves = alpaserve.candidate_moves(task, groups, load, np.array([0.1, 0.3, 0.0]))
    assert moves == [(2, 1, 2), (0, 0, 2), (1, 0, 2)]
    assert alpaserve.candidate_moves(task, groups, load, np.array([0.0, 0.0, 0.3])) == [(3, 2, 1)]
    assert alpaserve.candidate_moves(task, groups, load, np.zeros(3)) == []
    assert alpaserve.candidate_moves(task, [[0, 1, 2, 3]], load[:1], np.ones(1)) == []


def test_alpaserve_moves_until_nothing_starves() -> None:
    """Where a GPU starves although there is room on others, moves often mend it."""
    num_mended = 0
    for seed in range(20):
        task = make_task(random_problem(seed, 25, load_gpus=4.0))
        before, after = alpaserve.place_all(task, 5), alpaserve.place(task, 5)
        assert before is not None
        assert after is not None
        is_starved, is_still_starved = (alpaserve.unserved_share(task, groups).any() for groups in (before, after))
        num_mended += int(is_starved and not is_still_starved)
    assert num_mended > 0


@given(seed=SEEDS, num_gpus=st.integers(1, 8))
def test_dlora_never_lowers_the_minimum_burst_tolerance(seed: int, num_gpus: int) -> None:
    """Each replica that replaced another was kept because the minimum did not fall."""
    task = make_task(random_problem(seed, 30, load_gpus=2.0))
    before, after = dlora.place_all(task, num_gpus), dlora.place(task, num_gpus)
    gpu_of(after, 30)

    def least(groups: Groups) -> float:
        return min(dlora.burst_tolerance(task, group) for group in groups)

    assert least(after) >= least(before)


def test_dlora_places_the_most_under_represented_first_onto_the_fewest_adapters() -> None:
    """Without a replica that is the adapter with the most arrivals."""
    task = task_of((16, 1.0), (16, 5.0), (16, 3.0), (16, 4.0), (16, 2.0))
    assert dlora.place_all(task, 2) == [[1, 2, 0], [3, 4]]


def test_the_burst_tolerance_is_the_least_of_the_adapters() -> None:
    """Free memory over arrivals: the hottest adapter decides, an idle GPU tolerates everything."""
    task = task_of((16, 1.0), (16, 5.0), (16, 0.0))
    assert dlora.burst_tolerance(task, [0, 1]) == pytest.approx(task.free_kv_tokens([0, 1]) / 5.0)
    assert dlora.burst_tolerance(task, [2]) == dlora.burst_tolerance(task, []) == float("inf")
    assert dlora.hottest(task, [0, 1, 2]) == 1


def test_dlora_moves_the_hottest_adapter_off_a_gpu_with_little_memory() -> None:
    """Large ranks leave little memory: the hottest adapter is moved to where memory is, and the minimum rises."""
    moved = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        task = task_of(
            *[((512 if generator.random() < 0.3 else 8), float(generator.lognormal(0, 2))) for _ in range(9)]
        )
        moved += dlora.place_all(task, 4) != dlora.place(task, 4)
    assert moved > 0


def program_of(task: FleetTask, num_engines: int) -> dlora_ilp.EngineProgram:
    """Return the integer program that starts from the proactive placement."""
    return dlora_ilp.make_program(task, dlora.place(task, num_engines))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_integer_program_is_as_good_as_brute_force(seed: int) -> None:
    """Within the gap that is asked for, on problems that are small enough to enumerate."""
    program = program_of(make_task(random_problem(seed, 6, load_gpus=2.0)), 3)
    found = program.seconds(dlora_ilp.improve(program, before_each=lambda: None)).max()
    best = min(program.seconds(np.array(engines)).max() for engines in product(range(3), repeat=6))
    assert best <= found <= best * (1.0 + dlora_ilp.RELATIVE_GAP) / (1.0 - dlora_ilp.RELATIVE_GAP)


@pytest.mark.parametrize("seed", range(3))
def test_neighbourhoods_of_the_integer_program_never_make_it_slower(seed: int) -> None:
    """Beyond the largest program a few engines at a time are solved; here that comes close to even engines."""
    program = program_of(make_task(random_problem(seed, 60, load_gpus=2.5)), 5)
    assert dlora_ilp.MAX_BINARIES < 60 * 5
    now, found = (
        program.seconds(engines).max()
        for engines in (program.engine_now, dlora_ilp.improve(program, before_each=lambda: None))
    )
    assert found <= now
    assert found <= 1.1 * max(program.execution_s.sum() / 5, program.execution_s.max())


def test_the_seconds_of_an_engine_have_execution_moves_and_overflow() -> None:
    """By hand: two engines, three adapters, one moved, one byte too many on the first."""
    program = dlora_ilp.EngineProgram(
        execution_s=np.array([1.0, 2.0, 3.0]),
        memory_bytes=np.array([dlora_ilp.SWAP_BYTES_PER_S] * 3),
        capacity_bytes=1.5 * dlora_ilp.SWAP_BYTES_PER_S,
        engine_now=np.array([0, 1, 1]),
        num_engines=2,
    )
    assert program.seconds(np.array([0, 0, 1])) == pytest.approx([3.0 + dlora_ilp.MOVE_COST_S + 0.5, 3.0])


def test_memory_that_overflows_moves_adapters() -> None:
    """An engine whose memory is too small swaps, which costs more than moving an adapter once."""
    program = dlora_ilp.EngineProgram(
        execution_s=np.array([1.0, 1.0, 0.1]),
        memory_bytes=np.array([1.0, 1.0, 1.0]) * dlora_ilp.SWAP_BYTES_PER_S,
        capacity_bytes=2.0 * dlora_ilp.SWAP_BYTES_PER_S,
        engine_now=np.array([0, 0, 0]),
        num_engines=2,
    )
    assert len(set(dlora_ilp.improve(program, before_each=lambda: None).tolist())) == 2


def test_the_integer_program_ends_with_the_budget() -> None:
    """It looks at the budget before each call of the library."""
    task = make_task(random_problem(1, 12, load_gpus=1.0), budget=Budget(max_evaluations=0))
    with pytest.raises(BudgetSpentError):
        dlora_ilp.place(task, 2)
