"""The work bound: no step is cheaper than the derivation says, and no fleet that the twin accepts is smaller."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.bounds import adapter_work, unavoidable_costs, work_bound, work_gpus
from solvers.problem import Limits, Problem
from tests.solvers.problems import GPU, make_adapter, make_problem
from twin.engine import LoraRank
from twin.lengths import LengthDistribution
from twin.simulate import simulate
from twin.step_time import LARGE_BATCH_TOKENS, step_time_ms
from twin.workload import Adapter, Phase, RequestTable

RANKS: list[LoraRank] = [8, 16, 32, 64]


@given(
    decodes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8000)), max_size=64),
    prefills=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2048), st.integers(0, 8000)), max_size=6),
    slots=st.integers(1, 384),
    ranks=st.tuples(*(st.sampled_from(RANKS) for _ in range(4))),
)
def test_no_step_costs_less_than_its_unavoidable_part(
    decodes: list[tuple[int, int]],
    prefills: list[tuple[int, int, int]],
    slots: int,
    ranks: tuple[LoraRank, LoraRank, LoraRank, LoraRank],
) -> None:
    """The derivation's claim about one step, for any batch, slots and ranks, on the shipped profile."""
    problem = make_problem([make_adapter(f"a{index}", rank=rank) for index, rank in enumerate(ranks)])
    engine = problem.engine
    num_tokens = len(decodes) + sum(tokens for _, tokens, _ in prefills)
    num_requests = len(decodes) + len(prefills)
    if not 0 < num_tokens <= engine.max_num_batched_tokens or num_requests > engine.max_num_seqs:
        return
    context = sum(tokens for _, tokens in decodes) + sum(computed for _, _, computed in prefills)
    adapters = {owner for owner, *_ in decodes} | {owner for owner, *_ in prefills}
    actual_s = 1e-3 * step_time_ms(
        problem.profiles[0].step_time.as_array(),
        num_tokens,
        num_requests,
        context,
        len(adapters),
        bool(prefills),
        is_batch_changed=False,
        num_waiting=0,
        num_slots=max(slots, len(adapters)),
        max_lora_rank=max(ranks[owner] for owner in adapters),
        num_cached_adapters=len(adapters),
    )
    costs = unavoidable_costs(problem, 0)
    least_s = costs.base_s + costs.context_token_s * context
    if num_tokens > LARGE_BATCH_TOKENS:
        least_s += costs.large_s + costs.beyond_s * (num_tokens - LARGE_BATCH_TOKENS)
    for owner, _ in decodes:
        least_s += costs.token_s[owner] + costs.request_s[owner]
    for owner, tokens, _ in prefills:
        least_s += tokens * costs.token_s[owner] + costs.request_s[owner]
    assert least_s <= actual_s * (1 + 1e-12)


def constant(name: str, rate_rps: float, prompt: int, output: int, rank: LoraRank = 8) -> Adapter:
    """Return an adapter whose requests come at equal gaps: the mean rate without chance."""
    return Adapter(
        name=name,
        rank=rank,
        rate_rps=rate_rps,
        prompt_tokens=LengthDistribution.constant(prompt),
        output_tokens=LengthDistribution.constant(output),
        gap_cv=0.0,
    )


def scaled_to(problem: Problem, gpus: float) -> Problem:
    """Return the problem with rates at which the work is that of `gpus` GPUs."""
    factor = gpus / work_gpus(problem)
    adapters = tuple(adapter.model_copy(update={"rate_rps": adapter.rate_rps * factor}) for adapter in problem.adapters)
    return replace(problem, workload=replace(problem.workload, adapters=adapters))


def is_accepted(problem: Problem, members: tuple[int, ...], slots: int) -> bool:
    """Return whether the twin sees no starvation with `members` on one GPU."""
    rank = int(problem.ranks[list(members)].max())
    report = simulate(
        problem.workload.subset(list(members)),
        problem.replica(0, slots, rank, len(members)),
        horizon_s=400.0,
        warmup_s=100.0,
    )
    return not report.has_starvation


REGIMES = {
    "decodes": (20, 400),
    "prompts": (3000, 2),
    "long contexts": (6000, 300),
    "conversation": (220, 200),
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("num_adapters", [2, 6])
def test_the_twin_accepts_no_single_gpu_above_the_bound(regime: str, num_adapters: int) -> None:
    """Just above one GPU of work, no number of slots saves a single GPU."""
    prompt, output = REGIMES[regime]
    adapters = [constant(f"a{index}", 1.0 + index % 3, prompt, output) for index in range(num_adapters)]
    problem = scaled_to(make_problem(adapters), 1.03)
    assert work_bound(problem).value == 2
    everybody = tuple(range(num_adapters))
    assert [slots for slots in (1, 2, num_adapters) if is_accepted(problem, everybody, slots)] == []


@pytest.mark.parametrize("seed", range(3))
def test_the_twin_accepts_no_partition_below_the_bound(seed: int) -> None:
    """Random small problems whose bound is 3: every way to use two GPUs starves somebody."""
    generator = np.random.default_rng(seed)
    adapters = [
        constant(
            f"a{index}",
            float(generator.uniform(0.5, 2.0)),
            int(generator.integers(20, 1500)),
            int(generator.integers(20, 400)),
            RANKS[int(generator.integers(3))],
        )
        for index in range(4)
    ]
    problem = scaled_to(make_problem(adapters), 2.05)
    assert work_bound(problem).value == 3
    everybody = set(range(4))
    accepted = [
        members
        for size in (1, 2)
        for members in combinations(range(4), size)
        if is_accepted(problem, members, len(members))
        and is_accepted(problem, tuple(sorted(everybody - set(members))), 4 - len(members))
    ]
    assert accepted == []


@pytest.mark.parametrize("regime", ["decodes", "conversation"])
def test_the_bound_is_near_what_one_gpu_can_do(regime: str) -> None:
    """With few adapters and as many slots, the twin accepts 60 % of what the bound allows: it is no empty statement."""
    prompt, output = REGIMES[regime]
    problem = scaled_to(make_problem([constant(f"a{index}", 1.0, prompt, output) for index in range(2)]), 0.6)
    assert is_accepted(problem, (0, 1), 2)


def test_the_bound_says_what_proves_it_and_about_what() -> None:
    """A bound of the twin's problem is not one of the surrogate's."""
    bound = work_bound(make_problem([make_adapter("a", rate_rps=0.01)]))
    assert (bound.value, bound.proof, bound.model) == (1, "work", "twin")


@given(scale=st.floats(0.01, 100.0), tolerance=st.floats(0.0, 0.9))
def test_the_work_is_linear_in_rates_and_in_the_tolerance(scale: float, tolerance: float) -> None:
    """Twice the rates is twice the work, and only what must be served counts."""
    adapters = [make_adapter("a", rate_rps=1.0), make_adapter("b", rate_rps=2.0, rank=32)]
    problem = make_problem(adapters)
    scaled = [adapter.model_copy(update={"rate_rps": adapter.rate_rps * scale}) for adapter in adapters]
    tolerant = make_problem(scaled, limits=Limits(starvation_tolerance=tolerance))
    assert work_gpus(tolerant) == pytest.approx(work_gpus(problem) / 0.9 * (1 - tolerance) * scale, rel=1e-9)


def test_the_parts_of_the_adapters_sum_to_the_whole() -> None:
    """Packing orders adapters by the same work that the bound sums."""
    problem = make_problem([make_adapter("a"), make_adapter("b", rank=32, output=900.0)])
    parts = adapter_work(problem, unavoidable_costs(problem, 0))
    assert parts.sum() * 0.9 == pytest.approx(work_gpus(problem))


def test_a_mixed_fleet_is_bounded_by_the_best_of_all_types() -> None:
    """The bound must hold for every mixture, so a second, faster type can only lower it."""
    problem = make_problem([make_adapter("a", rate_rps=20.0)])
    profile = problem.profiles[0]
    step_time = profile.step_time.model_copy(update={"base_ms": profile.step_time.base_ms / 2})
    faster = profile.model_copy(update={"step_time": step_time})
    mixed = replace(problem, gpu_types=(GPU, GPU.model_copy(update={"name": "fast"})), profiles=(profile, faster))
    only_fast = replace(problem, profiles=(faster,))
    assert work_gpus(mixed) == pytest.approx(work_gpus(only_fast))
    assert work_gpus(mixed) < work_gpus(problem)


def test_the_quietest_phase_counts() -> None:
    """A window may lie in any phase, so the bound takes the least load."""
    problem = make_problem([make_adapter("a", rate_rps=20.0)])
    quiet = replace(problem, workload=replace(problem.workload, phases=(Phase(start_s=0, rate_scale=0.25),)))
    busy = replace(problem, workload=replace(problem.workload, phases=(Phase(start_s=60, rate_scale=4),)))
    assert work_gpus(quiet) == pytest.approx(0.25 * work_gpus(problem))
    assert work_gpus(busy) == pytest.approx(work_gpus(problem))


def test_a_replayed_trace_is_counted_request_by_request() -> None:
    """Long prompts with short outputs hold less KV cache than the product of the means says."""
    adapter = Adapter(
        name="a",
        rank=8,
        rate_rps=2.0,
        prompt_tokens=LengthDistribution(quantiles=(10.0, 5000.0)),
        output_tokens=LengthDistribution(quantiles=(2.0, 800.0)),
    )
    problem = make_problem([adapter])
    table = RequestTable(
        arrival_ns=np.array([0, 10**9], dtype=np.int64),
        adapter=np.zeros(2, dtype=np.int32),
        prompt_tokens=np.array([10, 5000], dtype=np.int32),
        output_tokens=np.array([800, 2], dtype=np.int32),
    )
    replayed = replace(problem, workload=replace(problem.workload, trace=table))
    assert work_gpus(replayed) < work_gpus(problem)


@pytest.mark.parametrize("seed", range(6))
def test_no_division_of_the_work_among_gpu_types_costs_less_than_the_bound(seed: int) -> None:
    """Whoever is on which type: as many whole GPUs as their work needs there cost no less."""
    generator = np.random.default_rng(seed)
    small = GPU.model_copy(
        update={"name": "small", "memory_gib": 40.0, "cost_per_hour": float(generator.uniform(1, 4))}
    )
    adapters = [
        make_adapter(f"a{index}", rank=RANKS[index % 4], rate_rps=float(generator.uniform(0.1, 3.0)))
        for index in range(30)
    ]
    problem = make_problem(adapters, gpu_types=(GPU, small))
    least = work_bound(problem).cost_per_hour
    assert least is not None
    for _ in range(20):
        is_small = generator.random(30) < generator.random()
        cost = 0.0
        for gpu_type, chosen in ((GPU, ~is_small), (small, is_small)):
            mine = [adapter for adapter, holds in zip(adapters, chosen, strict=True) if holds]
            if mine:
                cost += gpu_type.cost_per_hour * work_bound(make_problem(mine, gpu_types=(gpu_type,))).value
        assert least <= cost * (1 + 1e-9)


def test_with_one_gpu_type_the_bound_on_the_cost_is_that_of_whole_gpus() -> None:
    """Nothing is cheaper than the fewest GPUs at their price."""
    bound = work_bound(make_problem([make_adapter(f"a{index}", rate_rps=3.0) for index in range(20)]))
    assert bound.cost_per_hour == bound.value * GPU.cost_per_hour
