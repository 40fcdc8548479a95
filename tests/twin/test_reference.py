"""The rules of twin/semantics.md, one by one, on replicas small enough to follow by hand.

A KV block holds one token in most of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tests.twin.handmade import STEP_NS, LoggedStep, coefficients, logged_steps, make_inputs
from tests.twin.strategies import assert_traces_equal, replica_inputs
from twin.errors import TwinError
from twin.recorder import gap_bin
from twin.reference import AdapterCaches, run_reference
from twin.replica import (
    ADAPTER_BIN_FACTOR,
    NUM_GAP_BINS,
    SAMPLE_COLUMNS,
    STEP_TABLE_COLUMNS,
    ReplicaInputs,
    ReplicaTrace,
)

LONG_NS = 10**15


def first_steps(requests: Sequence[tuple[int, int, int, int]], count: int, **changes: Any) -> list[dict[int, int]]:
    """Return the tokens per scheduled request of the first steps."""
    trace = run_reference(make_inputs(requests, **changes), log_steps=True)
    return [step.tokens for step in logged_steps(trace)[:count]]


def first_step(requests: Sequence[tuple[int, int, int, int]], **changes: Any) -> LoggedStep:
    """Return the first step."""
    return logged_steps(run_reference(make_inputs(requests, **changes), log_steps=True))[0]


def test_one_request_prefills_once_and_then_decodes_one_token_per_step() -> None:
    """The prefill samples the first token; each decode step one more; the last token needs no KV."""
    trace = run_reference(make_inputs([(0, 0, 5, 3)]), log_steps=True)
    steps = logged_steps(trace)
    assert [step.tokens for step in steps] == [{0: 5}, {0: 1}, {0: 1}]
    assert [step.free_blocks for step in steps] == [995, 994, 993]
    assert trace.first_scheduled_ns.tolist() == [0]
    assert trace.first_token_ns.tolist() == [STEP_NS]
    assert trace.finish_ns.tolist() == [3 * STEP_NS]
    assert trace.generated_tokens.tolist() == [3]
    assert trace.adapter_gap_sum_ns.tolist() == [2 * STEP_NS, 0, 0, 0, 0]
    assert trace.gap_histogram[gap_bin(STEP_NS)] == trace.gap_histogram.sum() == 2


def test_blocks_hold_several_tokens() -> None:
    """A request takes a new block only when its last one is full."""
    trace = run_reference(make_inputs([(0, -1, 3, 4)], block_size=4, num_blocks=11), log_steps=True)
    assert [step.free_blocks for step in logged_steps(trace)] == [9, 9, 8, 8]


def test_a_long_prompt_is_cut_into_chunks_that_fill_the_budget() -> None:
    """The rest of the budget goes to the next waiting request; a chunk that does not end the prompt samples nothing."""
    requests = [(0, -1, 20, 2), (0, -1, 3, 2)]
    expected = [{0: 8}, {0: 8}, {0: 4, 1: 3}, {0: 1, 1: 1}]
    assert first_steps(requests, 9, max_num_batched_tokens=8) == expected


def test_decodes_come_before_waiting_prompts() -> None:
    """Running requests get their tokens first, the prompt what is left of the budget."""
    requests = [(0, -1, 2, 5), (0, -1, 2, 5), (1, -1, 10, 1)]
    expected = [{0: 2, 1: 2}, {0: 1, 1: 1, 2: 4}, {0: 1, 1: 1, 2: 4}, {0: 1, 1: 1, 2: 2}]
    assert first_steps(requests, 4, max_num_batched_tokens=6) == expected


def test_requests_join_at_step_boundaries_in_table_order() -> None:
    """What arrives during a step, or exactly at its end, is scheduled in the next one."""
    requests = [(0, -1, 2, 4), (STEP_NS // 2, -1, 2, 1), (STEP_NS, -1, 2, 1), (STEP_NS + 1, -1, 2, 1)]
    assert first_steps(requests, 3) == [{0: 2}, {0: 1, 1: 2, 2: 2}, {0: 1, 3: 2}]


def test_an_idle_replica_jumps_to_the_next_arrival() -> None:
    """A step starts when a request arrives at an idle replica; idle time is not busy time."""
    trace = run_reference(make_inputs([(0, -1, 1, 1), (7_000_001, -1, 1, 1), (7_000_001, -1, 1, 1)]), log_steps=True)
    assert [step.start_ns for step in logged_steps(trace)] == [0, 7_000_001]
    assert trace.first_scheduled_ns.tolist() == [0, 7_000_001, 7_000_001]
    assert trace.busy_ns == 2 * STEP_NS


@pytest.mark.parametrize(
    ("threshold_when_alone", "num_requests", "expected"),
    [
        (False, 1, {0: 10}),
        (True, 1, {0: 3}),
        (False, 2, {0: 3, 1: 3}),
        (True, 2, {0: 3, 1: 3}),
    ],
)
def test_the_long_prefill_threshold_of_both_rule_sets(
    threshold_when_alone: bool,  # noqa: FBT001 - a column of the table
    num_requests: int,
    expected: dict[int, int],
) -> None:
    """0.32 lifts the threshold for the only request of a replica, 0.8.5 does not."""
    requests = [(0, -1, 10, 1)] * num_requests
    step = first_step(requests, long_prefill_token_threshold=3, threshold_when_alone=threshold_when_alone)
    assert step.tokens == expected


def test_the_threshold_counts_waiting_requests_as_company() -> None:
    """A running prefill stays cut while another request waits, though it cannot be admitted, and is freed after it."""
    requests = [(0, -1, 12, 1), (0, -1, 4, 1)]
    expected = [{0: 3}, {0: 3}, {0: 3}, {0: 3}, {1: 4}]
    assert first_steps(requests, 9, long_prefill_token_threshold=3, max_num_seqs=1) == expected


def test_the_threshold_cuts_recomputed_tokens_too() -> None:
    """A preempted request that comes back has prompt and output to compute; the threshold holds for their sum."""
    inputs = make_inputs(
        [(0, -1, 4, 5), (0, -1, 4, 4)], num_blocks=11, max_model_len=10, long_prefill_token_threshold=4
    )
    steps = logged_steps(run_reference(replace(inputs, threshold_when_alone=True), log_steps=True))
    assert [step.tokens for step in steps] == [
        {0: 4, 1: 4},
        {0: 1, 1: 1},
        {0: 1},
        {0: 1},
        {0: 1},
        {1: 4},
        {1: 2},
        {1: 1},
    ]


def test_the_last_running_request_is_preempted_and_recomputed() -> None:
    """Its blocks go to the one before it; later it recomputes prompt and output in one prefill and goes on."""
    trace = run_reference(make_inputs([(0, -1, 4, 6), (0, -1, 4, 5)], num_blocks=11, max_model_len=11), log_steps=True)
    steps = logged_steps(trace)
    decode = {0: 1}
    assert [step.tokens for step in steps] == [
        {0: 4, 1: 4},
        {0: 1, 1: 1},
        decode,
        decode,
        decode,
        decode,
        {1: 6},
        {1: 1},
        {1: 1},
    ]
    assert [step.waiting for step in steps] == [[], [], [1], [1], [1], [1], [], [], []]
    assert [step.free_blocks for step in steps] == [2, 0, 4, 3, 2, 1, 4, 3, 2]
    assert [step.preemptions for step in steps] == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert trace.request_preemptions.tolist() == [0, 1]
    assert trace.generated_tokens.tolist() == [6, 5]
    assert trace.first_scheduled_ns.tolist() == [0, 0]
    # The gap over the preemption runs from the second token, at the end of step 1, to the third, at the end of step 6.
    assert trace.adapter_gap_sum_ns[-1] == (5 + 1 + 5 + 1 + 1) * STEP_NS
    assert trace.gap_histogram[gap_bin(5 * STEP_NS)] == 1


def test_several_victims_wait_in_the_order_in_which_they_ran() -> None:
    """Each victim goes to the head of the queue, the last of the running list first: their order is kept."""
    requests = [(0, -1, 11, 1), (0, -1, 2, 3), (0, -1, 2, 3), (1, -1, 1, 1)]
    trace = run_reference(
        make_inputs(requests, num_blocks=13, max_model_len=12, long_prefill_token_threshold=6, reserve_full_isl=False),
        log_steps=True,
    )
    steps = logged_steps(trace)
    assert steps[0].tokens == {0: 6, 1: 2, 2: 2}
    assert steps[1].tokens == {0: 5}
    assert steps[1].waiting == [1, 2, 3]
    assert (steps[1].preemptions, steps[1].free_blocks) == (2, 1)


def test_a_request_that_finds_no_blocks_and_is_the_last_preempts_itself() -> None:
    """Its blocks stay free for the rest of the step: the one before it has its tokens already."""
    requests = [(0, -1, 4, 3), (0, -1, 4, 3), (1, -1, 1, 1)]
    steps = logged_steps(run_reference(make_inputs(requests, num_blocks=10, max_model_len=8), log_steps=True))
    assert steps[1].tokens == {0: 1}
    assert steps[1].waiting == [1, 2]
    assert steps[1].free_blocks == 4


def test_nothing_is_admitted_in_a_step_that_preempts() -> None:
    """The freed blocks would hold the first chunk of the preempted request; it comes back one step later."""
    inputs = make_inputs(
        [(0, -1, 4, 4), (0, -1, 4, 4)],
        num_blocks=10,
        max_model_len=8,
        long_prefill_token_threshold=3,
        reserve_full_isl=False,
    )
    steps = logged_steps(run_reference(inputs, log_steps=True))
    assert [step.tokens for step in steps[:4]] == [{0: 3, 1: 3}, {0: 1, 1: 1}, {0: 1}, {0: 1, 1: 3}]
    assert [step.waiting for step in steps[:4]] == [[], [], [1], []]
    assert [step.free_blocks for step in steps[:4]] == [3, 1, 4, 0]


def test_requests_without_a_slot_for_their_adapter_are_passed_over() -> None:
    """They keep their places; the same adapter and the base model behind them are admitted."""
    requests = [(0, 0, 2, 2), (0, 1, 2, 1), (0, 0, 2, 2), (0, -1, 2, 1), (0, 2, 2, 1), (0, 1, 2, 1)]
    trace = run_reference(make_inputs(requests, num_slots=1, cpu_capacity=3), log_steps=True)
    steps = logged_steps(trace)
    assert [step.tokens for step in steps] == [{0: 2, 2: 2, 3: 2}, {0: 1, 2: 1}, {1: 2, 5: 2}, {4: 2}]
    assert [step.waiting for step in steps] == [[1, 4, 5], [1, 4, 5], [4], []]


def test_base_model_requests_take_no_slot() -> None:
    """With all running requests on the base model, an adapter finds its slot free."""
    requests = [(0, -1, 2, 2), (0, -1, 2, 2), (0, 3, 2, 2)]
    assert first_step(requests, num_slots=1, cpu_capacity=1).tokens == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize(
    ("reserve_full_isl", "tokens", "waiting"),
    [(True, {0: 4}, [1, 2]), (False, {0: 4, 1: 2}, [2])],
)
def test_the_full_sequence_check_of_both_rule_sets(
    reserve_full_isl: bool,  # noqa: FBT001 - a column of the table
    tokens: dict[int, int],
    waiting: list[int],
) -> None:
    """0.32 admits a request only if all its tokens fit the free blocks; 0.8.5 looks at the first chunk.

    Either way a request that does not fit blocks those behind it.
    """
    requests = [(0, -1, 4, 1), (0, -1, 7, 1), (0, -1, 1, 1)]
    changes = {"num_blocks": 9, "max_model_len": 8, "max_num_batched_tokens": 6}
    step = first_step(requests, reserve_full_isl=reserve_full_isl, **changes)
    assert (step.tokens, step.waiting) == (tokens, waiting)


def test_the_full_sequence_check_reserves_nothing() -> None:
    """Blocks are allocated for the chunk only; the next request is checked against what is really free."""
    requests = [(0, -1, 7, 1), (0, -1, 5, 1)]
    step = first_step(requests, num_blocks=9, max_model_len=8, long_prefill_token_threshold=3)
    assert (step.tokens, step.free_blocks) == ({0: 3, 1: 3}, 2)


def test_without_the_check_a_chunk_that_does_not_fit_ends_the_admissions() -> None:
    """The request behind it would fit, but the queue is first come, first served."""
    requests = [(0, -1, 6, 1), (0, -1, 3, 1), (0, -1, 1, 1)]
    step = first_step(requests, num_blocks=9, max_model_len=8, reserve_full_isl=False)
    assert (step.tokens, step.waiting) == ({0: 6}, [1, 2])


@pytest.mark.parametrize("reserve_full_isl", [True, False])
@pytest.mark.parametrize(("watermark_blocks", "tokens"), [(0, {0: 4, 1: 3}), (1, {0: 4, 1: 3}), (2, {0: 4})])
def test_the_watermark_keeps_blocks_free_while_something_runs(
    reserve_full_isl: bool,  # noqa: FBT001 - a column of the table
    watermark_blocks: int,
    tokens: dict[int, int],
) -> None:
    """It counts requests that were admitted in the same step as running."""
    changes = {"num_blocks": 9, "max_model_len": 8, "reserve_full_isl": reserve_full_isl}
    step = first_step([(0, -1, 4, 1), (0, -1, 3, 1)], watermark_blocks=watermark_blocks, **changes)
    assert step.tokens == tokens


def test_the_watermark_is_no_obstacle_for_the_only_request_nor_for_running_ones() -> None:
    """A lone request may fill the cache."""
    assert first_steps([(0, -1, 7, 2)], 9, num_blocks=9, max_model_len=9, watermark_blocks=5) == [{0: 7}, {0: 1}]


def test_no_more_than_max_num_seqs_run() -> None:
    """Finished requests make room in the next step."""
    assert first_steps([(0, -1, 2, 1)] * 5, 9, max_num_seqs=2) == [{0: 2, 1: 2}, {2: 2, 3: 2}, {4: 2}]


@pytest.mark.parametrize("keep_last_token_free", [True, False])
def test_a_sequence_ends_at_max_model_len(keep_last_token_free: bool) -> None:  # noqa: FBT001 - a column of the table
    """Prompt and output together reach `max_model_len` and no further."""
    inputs = make_inputs([(0, -1, 5, 90)], max_model_len=8, keep_last_token_free=keep_last_token_free)
    trace = run_reference(inputs)
    assert (trace.generated_tokens.tolist(), trace.finish_ns.tolist()) == ([3], [3 * STEP_NS])


@settings(max_examples=50, deadline=None)
@given(replica_inputs(is_synchronous=True))
def test_the_cap_of_both_rule_sets_is_never_reached(inputs: ReplicaInputs) -> None:
    """Without speculative or asynchronous steps a running request has less than `max_model_len` tokens to compute."""
    left = run_reference(replace(inputs, keep_last_token_free=True), log_steps=True)
    right = run_reference(replace(inputs, keep_last_token_free=False), log_steps=True)
    assert_traces_equal(left, right)


def test_a_replica_that_can_schedule_nothing_is_an_error() -> None:
    """A sequence that can never fit its KV blocks must not loop forever or end quietly."""
    with pytest.raises(TwinError, match="must schedule a token"):
        run_reference(make_inputs([(0, -1, 5, 1)], num_blocks=5, max_model_len=8))


def test_the_step_time_sees_what_is_in_the_batch() -> None:
    """Tokens, requests, context before the step, distinct adapters, and whether there is a prefill."""
    times = coefficients(
        token_ms=1.0, request_ms=100.0, context_token_ms=1e4, adapter_ms=1e6, mixed_context_token_ms=1e8
    )
    requests = [(0, 0, 3, 2), (0, 0, 4, 2), (0, -1, 5, 2), (1, -1, 7, 1)]
    trace = run_reference(make_inputs(requests, step_coefficients=times, horizon_ns=LONG_NS), log_steps=True)
    durations_ms = [step.duration_ns / 1e6 for step in logged_steps(trace)]
    assert durations_ms == [12 + 300 + 1e6, 10 + 400 + 12e4 + 1e6 + 12e8]


def test_a_batch_is_changed_by_prefills_before_and_now_and_by_its_size() -> None:
    """Two decode alone, a third joins and leaves, the two go on: in the table as in the step time."""
    times = coefficients(base_ms=1.0, changed_request_ms=10.0)
    requests = [(0, 0, 2, 6), (0, 1, 2, 6), (40 * STEP_NS, 2, 2, 2)]
    trace = run_reference(make_inputs(requests, step_coefficients=times), log_steps=True, keep_step_table=True)
    assert trace.step_table is not None
    column = {name: trace.step_table[:, index].tolist() for index, name in enumerate(STEP_TABLE_COLUMNS)}
    assert column["requests"] == [2, 2, 3, 3, 2, 2]
    assert column["has_prefill"] == [1, 0, 1, 0, 0, 0]
    assert column["is_batch_changed"] == [1, 1, 1, 1, 1, 0]
    durations_ms = [step.duration_ns / 1e6 for step in logged_steps(trace)]
    assert durations_ms == [21, 21, 31, 31, 21, 1]


def test_a_recomputed_single_token_counts_as_decode() -> None:
    """A chunk of one token is a prefill only while its request has no output yet."""
    inputs = make_inputs([(0, -1, 1, 2), (0, -1, 3, 2)], long_prefill_token_threshold=1)
    table = run_reference(inputs, keep_step_table=True).step_table
    assert table is not None
    # The second prompt takes three single-token chunks, the last two of them (alone by then) at once.
    assert table[:, STEP_TABLE_COLUMNS.index("has_prefill")].tolist() == [1, 1, 1, 0]


def test_blocked_requests_count_only_when_all_slots_are_taken() -> None:
    """The scan over a blocked queue costs time while the batch's adapters fill the slots."""
    times = coefficients(base_ms=1.0, blocked_waiting_ms=10.0)
    requests = [(0, 0, 2, 1), (0, 1, 2, 1), (0, 2, 2, 1), (0, 2, 2, 1), (0, 2, 2, 1)]
    full = run_reference(make_inputs(requests, step_coefficients=times, num_slots=2), log_steps=True)
    assert [step.duration_ns / 1e6 for step in logged_steps(full)] == [31, 1]
    roomy = run_reference(make_inputs(requests, step_coefficients=times, max_num_seqs=2), log_steps=True)
    assert [step.duration_ns / 1e6 for step in logged_steps(roomy)] == [1, 1, 1]


def test_steps_last_whole_nanoseconds_rounded_half_up() -> None:
    """The clock is an integer."""
    inputs = make_inputs([(0, -1, 1, 1)], step_coefficients=coefficients(base_ms=2.5e-6))
    assert [step.duration_ns for step in logged_steps(run_reference(inputs, log_steps=True))] == [3]


def test_loads_lengthen_the_step_that_first_schedules_an_adapter() -> None:
    """From disk and into a slot the first time; nothing while it stays; the batch waits for all its loads."""
    requests = [(0, 0, 2, 2), (0, 1, 2, 1), (0, -1, 2, 1)]
    trace = run_reference(make_inputs(requests, gpu_load_ns=7, disk_load_ns=1000), log_steps=True)
    steps = logged_steps(trace)
    assert [step.duration_ns - STEP_NS for step in steps] == [2 * 1007, 0]
    assert [(step.gpu_loads, step.disk_loads) for step in steps] == [(2, 2), (0, 0)]
    assert trace.load_ns == 2 * 1007
    assert trace.adapter_gpu_loads.tolist() == trace.adapter_disk_loads.tolist() == [1, 1, 0, 0]


def test_the_least_recently_used_adapter_is_evicted() -> None:
    """A touch counts as use, in CPU memory and in the slots."""
    caches = AdapterCaches(num_slots=2, cpu_capacity=2)
    loaded, kept = (True, True), (False, False)
    # Adapter 2 evicts 1, since 0 was touched; 1 then evicts 0.
    assert [caches.load(adapter) for adapter in (0, 1, 0, 2, 1)] == [loaded, loaded, kept, loaded, loaded]
    assert [caches.has_slot(adapter) for adapter in (0, 1, 2)] == [False, True, True]


def test_an_adapter_evicted_from_cpu_memory_loses_its_slot() -> None:
    """Only seen with less CPU memory than slots, which vLLM refuses: else the slots evict it at the same moment."""
    caches = AdapterCaches(num_slots=2, cpu_capacity=1)
    assert [caches.load(adapter) for adapter in (0, 1, 0)] == [(True, True)] * 3
    assert [caches.has_slot(adapter) for adapter in (0, 1)] == [True, False]


def test_an_adapter_in_cpu_memory_is_only_copied() -> None:
    """With more CPU memory than slots, a swap costs a copy but no read."""
    caches = AdapterCaches(num_slots=1, cpu_capacity=2)
    assert [caches.load(adapter) for adapter in (0, 1, 0)] == [(True, True), (True, True), (False, True)]


def _replay_loads(inputs: ReplicaInputs, trace: ReplicaTrace) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Return loads per step and per adapter, replayed with lists in the order of real Python sets of the hashes."""
    adapter_of_hash = {value: index for index, value in enumerate(inputs.adapter_hash.tolist())}
    cpu: list[int] = []
    slots: list[int] = []
    per_step = []
    gpu_loads, disk_loads = [0] * len(adapter_of_hash), [0] * len(adapter_of_hash)
    for step in logged_steps(trace):
        adapters = [int(inputs.adapter[request]) for request in step.tokens if inputs.adapter[request] >= 0]
        order = list(dict.fromkeys(adapters))
        if inputs.load_in_set_order:
            hashes: set[int] = set()
            for adapter in adapters:
                hashes.add(int(inputs.adapter_hash[adapter]))
            order = [adapter_of_hash[value] for value in hashes]
        before = (sum(gpu_loads), sum(disk_loads))
        for adapter in order:
            if adapter not in cpu:
                disk_loads[adapter] += 1
                if len(cpu) == inputs.cpu_capacity:
                    slots = [other for other in slots if other != cpu[0]]
                    cpu = cpu[1:]
            cpu = [other for other in cpu if other != adapter] + [adapter]
            if adapter not in slots:
                gpu_loads[adapter] += 1
                slots = slots[1:] if len(slots) == inputs.num_slots else slots
            slots = [other for other in slots if other != adapter] + [adapter]
        per_step.append((sum(gpu_loads) - before[0], sum(disk_loads) - before[1]))
    return per_step, gpu_loads, disk_loads


@pytest.mark.parametrize("load_in_set_order", [True, False])
@pytest.mark.parametrize(("num_slots", "cpu_capacity"), [(2, 2), (3, 5), (6, 7)])
def test_loads_follow_the_order_of_a_real_set_of_hashes(
    load_in_set_order: bool,  # noqa: FBT001 - a column of the table
    num_slots: int,
    cpu_capacity: int,
) -> None:
    """Hashes that do not collide in any table leave CPython no choice of order; an int below 2**61 is its own hash."""
    generator = np.random.default_rng(num_slots)
    hashes = generator.integers(0, 2**57, 8) * 8 + generator.permutation(8)
    arrivals = np.sort(generator.integers(0, 400 * STEP_NS, 300))
    columns = (arrivals, generator.integers(0, 8, 300), generator.integers(1, 9, 300), generator.integers(1, 9, 300))
    inputs = make_inputs(
        np.stack(columns, axis=1).tolist(),
        hashes=hashes.tolist(),
        gpu_load_ns=3,
        disk_load_ns=5,
        num_slots=num_slots,
        cpu_capacity=cpu_capacity,
        max_num_seqs=12,
        load_in_set_order=load_in_set_order,
    )
    trace = run_reference(inputs, log_steps=True)
    per_step, gpu_loads, disk_loads = _replay_loads(inputs, trace)
    assert [(step.gpu_loads, step.disk_loads) for step in logged_steps(trace)] == per_step
    assert (trace.adapter_gpu_loads.tolist(), trace.adapter_disk_loads.tolist()) == (gpu_loads, disk_loads)
    assert trace.load_ns == 3 * sum(gpu_loads) + 5 * sum(disk_loads)
    assert sum(gpu_loads) > num_slots


@pytest.mark.parametrize(
    ("horizon_ns", "generated", "num_steps"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (3 * STEP_NS - 1, 2, 3),
        (3 * STEP_NS, 3, 3),
        (3 * STEP_NS + 1, 3, 4),
    ],
)
def test_results_after_the_horizon_do_not_count(horizon_ns: int, generated: int, num_steps: int) -> None:
    """A step that ends at the horizon is seen, a later end is not; its scheduling is, clipped at the horizon."""
    trace = run_reference(make_inputs([(0, 0, 4, 50)], horizon_ns=horizon_ns, disk_load_ns=0))
    assert (int(trace.generated_tokens[0]), trace.num_steps) == (generated, num_steps)
    assert trace.busy_ns == trace.running_integral == trace.end_ns == horizon_ns
    assert trace.scheduled_tokens == (num_steps + 3 if num_steps else 0)
    assert trace.is_running.tolist() == [num_steps > 0]
    assert trace.finish_ns.tolist() == [-1]
    assert trace.first_scheduled_ns.tolist() == [0 if num_steps else -1]


def test_load_time_is_not_clipped_at_the_horizon() -> None:
    """A step whose loads last beyond the horizon is busy until then, and all of its loads count."""
    trace = run_reference(make_inputs([(0, 0, 4, 50)], horizon_ns=10, gpu_load_ns=500))
    assert (trace.busy_ns, trace.load_ns) == (10, 500)


def test_requests_that_arrive_at_or_after_the_horizon_leave_no_trace() -> None:
    """An idle replica stops at the horizon instead of jumping over it."""
    trace = run_reference(make_inputs([(0, -1, 1, 1), (5 * STEP_NS, -1, 1, 1)], horizon_ns=5 * STEP_NS))
    assert trace.finish_ns.tolist() == [STEP_NS, -1]
    assert trace.first_scheduled_ns.tolist() == [0, -1]
    assert (trace.num_steps, trace.end_ns) == (1, 5 * STEP_NS)


def test_samples_are_taken_at_the_first_boundary_after_each_multiple() -> None:
    """One row per interval at most; none while idle; the state is that before scheduling."""
    half = STEP_NS // 2
    requests = [(half, 0, 2, 3), (half, 1, 2, 3), (half, 2, 2, 1), (20 * STEP_NS, 0, 2, 1)]
    trace = run_reference(make_inputs(requests, sample_interval_ns=2 * STEP_NS, max_num_seqs=2, max_model_len=4))
    assert [dict(zip(SAMPLE_COLUMNS, row, strict=True)) for row in trace.samples.tolist()] == [
        {"time_ns": half, "running": 0, "waiting": 3, "used_blocks": 0}
        | {"finished_requests": 0, "finished_tokens": 0, "preemptions": 0, "gpu_loads": 0},
        {"time_ns": half + 2 * STEP_NS, "running": 0, "waiting": 1, "used_blocks": 0}
        | {"finished_requests": 2, "finished_tokens": 8, "preemptions": 0, "gpu_loads": 2},
        {"time_ns": 20 * STEP_NS, "running": 0, "waiting": 1, "used_blocks": 0}
        | {"finished_requests": 3, "finished_tokens": 11, "preemptions": 0, "gpu_loads": 3},
    ]


def test_gap_bins_are_logarithmic_and_clamped() -> None:
    """1024 bins over 0.1 ms to 1000 s; everything outside falls into the outermost."""
    assert [gap_bin(gap) for gap in (0, 1, 99_999, 100_000)] == [0, 0, 0, 0]
    assert [gap_bin(gap) for gap in (10**12, 10**15)] == [NUM_GAP_BINS - 1] * 2
    assert gap_bin(10**5 * 10) == NUM_GAP_BINS // 7
    gaps = np.unique(np.logspace(5, 12, 5000).astype(np.int64))
    bins = [gap_bin(int(gap)) for gap in gaps]
    assert bins == sorted(bins)
    assert set(bins) == set(range(NUM_GAP_BINS))


def test_gaps_are_counted_per_adapter_with_the_base_model_last() -> None:
    """Coarser bins per adapter, the same gaps."""
    trace = run_reference(make_inputs([(0, 1, 2, 4), (0, -1, 2, 3)]))
    column = gap_bin(STEP_NS) // ADAPTER_BIN_FACTOR
    assert trace.adapter_gap_histogram[:, column].tolist() == [0, 3, 0, 0, 2]
    assert trace.adapter_gap_count.tolist() == [0, 3, 0, 0, 2]
    assert trace.adapter_gap_sum_ns.tolist() == [0, 3 * STEP_NS, 0, 0, 2 * STEP_NS]
    assert trace.adapter_gap_histogram.sum() == trace.gap_histogram.sum() == 5


@settings(max_examples=100, deadline=None)
@given(replica_inputs(is_synchronous=True))
def test_the_totals_agree_with_the_step_log(inputs: ReplicaInputs) -> None:
    """Integrals, peaks and counts are sums over the steps; steps do not overlap and none starts at the horizon."""
    trace = run_reference(inputs, log_steps=True)
    steps = logged_steps(trace)
    lasting = [min(step.duration_ns, inputs.horizon_ns - step.start_ns) for step in steps]
    used = [inputs.num_blocks - 1 - step.free_blocks for step in steps]
    assert all(part > 0 for part in lasting)
    assert all(before.start_ns + before.duration_ns <= after.start_ns for before, after in pairwise(steps))
    assert trace.num_steps == len(steps)
    assert trace.busy_ns == sum(lasting)
    assert trace.scheduled_tokens == sum(sum(step.tokens.values()) for step in steps)
    assert trace.num_preemptions == sum(step.preemptions for step in steps) == trace.request_preemptions.sum()
    assert trace.adapter_gpu_loads.sum() == sum(step.gpu_loads for step in steps)
    assert trace.adapter_disk_loads.sum() == sum(step.disk_loads for step in steps)
    assert trace.running_integral == sum(len(step.running) * part for step, part in zip(steps, lasting, strict=True))
    assert trace.waiting_integral == sum(len(step.waiting) * part for step, part in zip(steps, lasting, strict=True))
    assert trace.used_blocks_integral == sum(blocks * part for blocks, part in zip(used, lasting, strict=True))
    assert trace.peak_running == max((len(step.running) for step in steps), default=0)
    assert trace.peak_waiting == max((len(step.waiting) for step in steps), default=0)
    assert trace.peak_used_blocks == max(used, default=0)


@settings(max_examples=100, deadline=None)
@given(replica_inputs())
def test_with_enough_time_every_request_gets_all_its_tokens(inputs: ReplicaInputs) -> None:
    """No set-aside, preemption or full cache loses a request or a token, and gaps add up to the time of decoding."""
    trace = run_reference(replace(inputs, horizon_ns=10**18, sample_interval_ns=0))
    expected = np.minimum(inputs.output_tokens, inputs.max_model_len - inputs.prompt_tokens)
    assert trace.generated_tokens.tolist() == expected.tolist()
    assert np.all(trace.finish_ns >= trace.first_token_ns)
    assert np.all(trace.first_token_ns > trace.first_scheduled_ns)
    assert np.all(trace.first_scheduled_ns >= inputs.arrival_ns)
    assert not trace.is_running.any()
    assert trace.adapter_gap_count.sum() == trace.gap_histogram.sum() == (expected - 1).sum()
    assert trace.adapter_gap_sum_ns.sum() == (trace.finish_ns - trace.first_token_ns).sum()


@settings(max_examples=50, deadline=None)
@given(replica_inputs())
def test_the_past_does_not_depend_on_the_horizon(inputs: ReplicaInputs) -> None:
    """Cutting a run at half its horizon gives the same steps up to there."""
    cut_ns = inputs.horizon_ns // 2
    whole = logged_steps(run_reference(inputs, log_steps=True))
    half = logged_steps(run_reference(replace(inputs, horizon_ns=cut_ns), log_steps=True))
    assert half == [step for step in whole if step.start_ns < cut_ns]


def test_traces_that_differ_are_told_apart() -> None:
    """The comparison behind all differential tests names the first step that differs, and what differs in it."""
    inputs = make_inputs([(0, -1, 8, 3), (0, -1, 2, 3)])
    left = run_reference(inputs, log_steps=True)
    right = run_reference(replace(inputs, long_prefill_token_threshold=4), log_steps=True)
    with pytest.raises(AssertionError, match="step 0 differs in tokens, free_blocks"):
        assert_traces_equal(left, right)
    with pytest.raises(AssertionError, match=r"first_token_ns\[0\]"):
        assert_traces_equal(replace(left, step_log=None), replace(right, step_log=None))
    assert_traces_equal(left, run_reference(inputs, log_steps=True))
