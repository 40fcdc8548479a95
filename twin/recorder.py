"""What the readable engine writes down while it runs, and the `ReplicaTrace` made of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twin.replica import (
    ADAPTER_BIN_FACTOR,
    GAP_DECADES,
    GAP_LOWEST_NS,
    NUM_GAP_BINS,
    SAMPLE_COLUMNS,
    STEP_TABLE_COLUMNS,
    ReplicaTrace,
    StepLog,
)


@dataclass(slots=True, eq=False)
class Request:
    """One request and its progress; compared by identity.

    Attributes
    ----------
    row
        Its index in the trace's columns.
    adapter
        Index of its adapter on the replica; -1 asks the base model.
    prompt_tokens, output_tokens
        Tokens given, and tokens after which it ends.
    generated, num_tokens
        Output tokens sampled so far, and those plus the prompt.
    num_computed
        Tokens whose KV exists.
    placeholders
        Tokens that a scheduled step will sample for it and that are not known yet: 0 or 1, with asynchronous
        scheduling only (vLLM's `num_output_placeholders`).
    held_blocks
        KV blocks it holds.
    first_scheduled_ns, first_token_ns, last_token_ns, finish_ns
        -1: not yet.
    num_preemptions
        Times it lost its blocks.
    """

    row: int
    adapter: int
    prompt_tokens: int
    output_tokens: int
    generated: int = 0
    num_computed: int = 0
    placeholders: int = 0
    held_blocks: int = 0
    first_scheduled_ns: int = -1
    first_token_ns: int = -1
    last_token_ns: int = -1
    finish_ns: int = -1
    num_preemptions: int = 0

    @property
    def num_tokens(self) -> int:
        """Prompt plus generated tokens."""
        return self.prompt_tokens + self.generated


@dataclass(slots=True, eq=False)
class Step:
    """What one step schedules.

    Attributes
    ----------
    start_ns
        Its step boundary.
    budget
        Tokens that may still be scheduled.
    threshold
        Most prefill tokens of one request; 0: no limit.
    tokens
        Tokens per scheduled request, in the order of the running list.
    sampled
        Those of them that it samples a token for.
    num_preemptions
        Requests preempted while it was scheduled.
    duration_ns, load_ns
        How long it takes, and the part of it that loads adapters.
    gpu_loads, disk_loads
        Adapters copied to a slot, and read from disk, one entry per load.
    slots, cached
        Adapters in slots and in CPU memory after the loads, least recently used first; only for a `StepLog`.
    """

    start_ns: int
    budget: int
    threshold: int
    tokens: dict[Request, int] = field(default_factory=dict)
    sampled: list[Request] = field(default_factory=list)
    num_preemptions: int = 0
    duration_ns: int = 0
    load_ns: int = 0
    context_tokens: int = 0
    has_prefill: bool = False
    is_batch_changed: bool = False
    gpu_loads: list[int] = field(default_factory=list)
    disk_loads: list[int] = field(default_factory=list)
    slots: tuple[int, ...] = ()
    cached: tuple[int, ...] = ()

    @property
    def adapters(self) -> list[int]:
        """Distinct adapters of the scheduled requests, in order of first appearance."""
        return list(dict.fromkeys(request.adapter for request in self.tokens if request.adapter >= 0))


def gap_bin(gap_ns: int) -> int:
    """Return the bin of an inter-token gap, in ``[0, NUM_GAP_BINS)``; a gap of 0 ns falls into the lowest bin."""
    if gap_ns <= 0:
        return 0
    position = math.floor(math.log10(gap_ns / GAP_LOWEST_NS) * NUM_GAP_BINS / GAP_DECADES)
    return min(max(position, 0), NUM_GAP_BINS - 1)


class TraceRecorder:
    """Counters, histograms, samples and the step log of one replica.

    Parameters
    ----------
    num_adapters
        Adapters of the replica; the histograms get one more row for the base model.
    horizon_ns, sample_interval_ns
        As in `ReplicaInputs`.
    log_steps, keep_step_table
        Whether every step is kept: who was in it, and what its time depends on.
    """

    def __init__(
        self,
        *,
        num_adapters: int,
        horizon_ns: int,
        sample_interval_ns: int,
        log_steps: bool,
        keep_step_table: bool,
    ) -> None:
        self._num_adapters = num_adapters
        self._horizon_ns = horizon_ns
        self._sample_interval_ns = sample_interval_ns
        self._next_sample_ns = 0
        self._samples: list[tuple[int, ...]] = []
        self._gaps = [0] * NUM_GAP_BINS
        self._adapter_gaps = np.zeros((num_adapters + 1, NUM_GAP_BINS // ADAPTER_BIN_FACTOR), dtype=np.int64)
        self._gap_sum_ns = [0] * (num_adapters + 1)
        self._gap_count = [0] * (num_adapters + 1)
        self._gpu_loads = [0] * num_adapters
        self._disk_loads = [0] * num_adapters
        self._num_steps = self._busy_ns = self._load_ns = self._scheduled_tokens = self._num_preemptions = 0
        self._running_integral = self._waiting_integral = self._used_blocks_integral = 0
        self._peak_used_blocks = self._peak_running = self._peak_waiting = 0
        self.finished_requests = 0
        self._finished_tokens = 0
        self._log = _StepLogLists() if log_steps else None
        self._table: list[tuple[int, ...]] | None = [] if keep_step_table else None

    def sample(self, now_ns: int, *, num_running: int, num_waiting: int, used_blocks: int) -> None:
        """Add a row to the time series if one is due at this step boundary."""
        if self._sample_interval_ns == 0 or now_ns < self._next_sample_ns:
            return
        self._next_sample_ns = (now_ns // self._sample_interval_ns + 1) * self._sample_interval_ns
        counts = (self.finished_requests, self._finished_tokens, self._num_preemptions, sum(self._gpu_loads))
        self._samples.append((now_ns, num_running, num_waiting, used_blocks, *counts))

    def step(self, step: Step, running: Sequence[Request], waiting: Iterable[Request], *, used: int, free: int) -> None:
        """Count a scheduled step; `used` and `free` are KV blocks, everything as it is at the end of scheduling."""
        queue = list(waiting)
        before_horizon_ns = min(step.duration_ns, self._horizon_ns - step.start_ns)
        self._num_steps += 1
        self._busy_ns += before_horizon_ns
        self._load_ns += step.load_ns
        self._scheduled_tokens += sum(step.tokens.values())
        self._num_preemptions += step.num_preemptions
        self._running_integral += len(running) * before_horizon_ns
        self._waiting_integral += len(queue) * before_horizon_ns
        self._used_blocks_integral += used * before_horizon_ns
        self._peak_running = max(self._peak_running, len(running))
        self._peak_waiting = max(self._peak_waiting, len(queue))
        self._peak_used_blocks = max(self._peak_used_blocks, used)
        for adapter in step.gpu_loads:
            self._gpu_loads[adapter] += 1
        for adapter in step.disk_loads:
            self._disk_loads[adapter] += 1
        if self._log is not None:
            self._log.append(step, running, queue, free)
        if self._table is not None:
            batch = (sum(step.tokens.values()), len(step.tokens), step.context_tokens, len(step.adapters))
            flags = (int(step.has_prefill), int(step.is_batch_changed))
            self._table.append((step.start_ns + step.duration_ns, *batch, *flags, len(queue), step.load_ns))

    def preemptions(self, count: int) -> None:
        """Count preemptions of an attempt to schedule that came to nothing."""
        self._num_preemptions += count

    def token(self, request: Request, now_ns: int) -> None:
        """Count a token that was sampled for `request` at the end of a step, and the gap before it."""
        request.generated += 1
        if request.generated == 1:
            request.first_token_ns = now_ns
        else:
            self._gap(request, now_ns - request.last_token_ns)
        request.last_token_ns = now_ns

    def finish(self, request: Request, now_ns: int) -> None:
        """Count a request that got its last token, and its prompt and output tokens."""
        request.finish_ns = now_ns
        self.finished_requests += 1
        self._finished_tokens += request.num_tokens

    def _gap(self, request: Request, gap_ns: int) -> None:
        position = gap_bin(gap_ns)
        row = request.adapter if request.adapter >= 0 else self._num_adapters
        self._gaps[position] += 1
        self._adapter_gaps[row, position // ADAPTER_BIN_FACTOR] += 1
        self._gap_sum_ns[row] += gap_ns
        self._gap_count[row] += 1

    def trace(self, requests: Sequence[Request], running: Sequence[Request]) -> ReplicaTrace:
        """Return everything recorded; row i of the trace's columns is ``requests[i]``."""
        is_running = np.zeros(len(requests), dtype=np.bool_)
        is_running[[request.row for request in running]] = True
        return ReplicaTrace(
            first_scheduled_ns=np.array([request.first_scheduled_ns for request in requests], dtype=np.int64),
            first_token_ns=np.array([request.first_token_ns for request in requests], dtype=np.int64),
            finish_ns=np.array([request.finish_ns for request in requests], dtype=np.int64),
            generated_tokens=np.array([request.generated for request in requests], dtype=np.int32),
            is_running=is_running,
            request_preemptions=np.array([request.num_preemptions for request in requests], dtype=np.int32),
            gap_histogram=np.array(self._gaps, dtype=np.int64),
            adapter_gap_histogram=self._adapter_gaps,
            adapter_gap_sum_ns=np.array(self._gap_sum_ns, dtype=np.int64),
            adapter_gap_count=np.array(self._gap_count, dtype=np.int64),
            adapter_gpu_loads=np.array(self._gpu_loads, dtype=np.int32),
            adapter_disk_loads=np.array(self._disk_loads, dtype=np.int32),
            num_steps=self._num_steps,
            busy_ns=self._busy_ns,
            load_ns=self._load_ns,
            scheduled_tokens=self._scheduled_tokens,
            running_integral=float(self._running_integral),
            waiting_integral=float(self._waiting_integral),
            used_blocks_integral=float(self._used_blocks_integral),
            num_preemptions=self._num_preemptions,
            peak_used_blocks=self._peak_used_blocks,
            peak_running=self._peak_running,
            peak_waiting=self._peak_waiting,
            samples=np.array(self._samples, dtype=np.int64).reshape(-1, len(SAMPLE_COLUMNS)),
            end_ns=self._horizon_ns,
            step_log=self._log.arrays() if self._log is not None else None,
            step_table=self._table_array(),
        )

    def _table_array(self) -> NDArray[np.int64] | None:
        if self._table is None:
            return None
        return np.array(self._table, dtype=np.int64).reshape(-1, len(STEP_TABLE_COLUMNS))


class _StepLogLists:
    """The columns of a `StepLog` while they grow."""

    def __init__(self) -> None:
        # start, duration, free blocks, GPU loads, disk loads, preemptions
        self._scalars: list[tuple[int, int, int, int, int, int]] = []
        self._running_tokens: list[int] = []
        self._running, self._waiting, self._slots, self._cached = (_Lists() for _ in range(4))

    def append(self, step: Step, running: Sequence[Request], waiting: Sequence[Request], free_blocks: int) -> None:
        """Add one step."""
        loads = (len(step.gpu_loads), len(step.disk_loads))
        self._scalars.append((step.start_ns, step.duration_ns, free_blocks, *loads, step.num_preemptions))
        self._running.append([request.row for request in running])
        self._running_tokens.extend(step.tokens.get(request, 0) for request in running)
        self._waiting.append([request.row for request in waiting])
        self._slots.append(step.slots)
        self._cached.append(step.cached)

    def arrays(self) -> StepLog:
        """Return the columns as arrays."""
        scalars = np.array(self._scalars, dtype=np.int64).reshape(-1, 6)
        return StepLog(
            start_ns=scalars[:, 0].copy(),
            duration_ns=scalars[:, 1].copy(),
            free_blocks=scalars[:, 2].astype(np.int32),
            running_offset=self._running.offsets(),
            running_request=self._running.members(),
            running_tokens=np.array(self._running_tokens, dtype=np.int32),
            waiting_offset=self._waiting.offsets(),
            waiting_request=self._waiting.members(),
            slot_offset=self._slots.offsets(),
            slot_adapter=self._slots.members(),
            cached_offset=self._cached.offsets(),
            cached_adapter=self._cached.members(),
            gpu_loads=scalars[:, 3].astype(np.int32),
            disk_loads=scalars[:, 4].astype(np.int32),
            preemptions=scalars[:, 5].astype(np.int32),
        )


class _Lists:
    """One list of numbers per step, one behind the other."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._members: list[int] = []

    def append(self, members: Sequence[int]) -> None:
        self._sizes.append(len(members))
        self._members.extend(members)

    def offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(np.array(self._sizes, dtype=np.int64))]).astype(np.int64)

    def members(self) -> NDArray[np.int32]:
        return np.array(self._members, dtype=np.int32)
