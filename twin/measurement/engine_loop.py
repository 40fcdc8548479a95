"""Drive an engine step by step through a schedule, and record requests, steps and loads.

Runs in vLLM's interpreter: only the standard library is used here, and the engine is behind a protocol.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from twin.measurement.clocks import MeasurementClock
from twin.measurement.records import GROUP_S, OK, SENT, UNFINISHED, ShardWriter, milliseconds, seconds

REPORT_INTERVAL_S = 1.0


@dataclass(frozen=True)
class DueRequest:
    """A request of the schedule; `adapter` is an index, -1 the base model."""

    number: int
    arrival_s: float
    adapter: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Batch:
    """What a step scheduled, and how the engine looked after scheduling.

    Attributes
    ----------
    first_scheduled, preempted
        Numbers of requests.
    has_prefill
        A request has no token yet, or got more than one scheduled.
    """

    tokens: int
    requests: int
    context_tokens: int
    adapters: int
    has_prefill: bool
    running: int
    waiting: int
    free_blocks: int
    first_scheduled: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Load:
    """An adapter that a step loaded; times in seconds of the measurement's clock, ``None`` for what was not needed."""

    adapter: int
    rank: int
    cpu_to_gpu_s: float | None
    disk_to_cpu_s: float | None

    def scaled(self, scale: float) -> Load:
        """Return the load with its times multiplied."""
        times = (self.cpu_to_gpu_s, self.disk_to_cpu_s)
        return Load(self.adapter, self.rank, *(None if value is None else scale * value for value in times))


@dataclass(frozen=True)
class StepResult:
    """What a step did: tokens per request in the order of the outputs, and the requests that are done."""

    batch: Batch
    tokens: tuple[tuple[int, int], ...]
    finished: tuple[int, ...]
    loads: tuple[Load, ...]
    cached_adapters: int


class RefusedRequestError(Exception):
    """The engine does not take a request."""


class Engine(Protocol):
    """An engine that serves requests in steps."""

    @property
    def slots(self) -> tuple[int, int]:
        """``(max_loras, max_lora_rank)``; zeros without LoRA."""

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has something to do."""

    def add(self, request: DueRequest) -> None:
        """Put a request into the queue (RefusedRequestError)."""

    def step(self) -> StepResult:
        """Do one step."""


@dataclass
class Counts:
    """What was done so far."""

    sent: int = 0
    finished: int = 0
    failed: int = 0
    steps: int = 0
    empty_steps: int = 0


@dataclass
class _Track:
    request: DueRequest
    first_scheduled_s: float | None = None
    token_times: list[float] = field(default_factory=list)
    preemptions: int = 0


class EngineLoop:
    """Serve a schedule and record it.

    Parameters
    ----------
    engine, clock, writer
        What serves, what time is, and where records go.
    names
        Adapters by index.
    segment, limit_s
        Number for the groups of steps; time at which the loop ends in any case.
    """

    def __init__(
        self,
        engine: Engine,
        clock: MeasurementClock,
        writer: ShardWriter,
        names: tuple[str, ...],
        *,
        segment: int,
        limit_s: float,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._writer = writer
        self._names = names
        self._segment = segment
        self._limit_s = limit_s
        self._tracks: dict[int, _Track] = {}
        self._had_prefill = True
        self._last_requests = -1
        self.counts = Counts()

    def run(
        self, schedule: Iterable[DueRequest], must_stop: Callable[[], bool], report: Callable[[float, Counts], None]
    ) -> float:
        """Serve the schedule until all is done, the limit is reached or `must_stop`, and return the time.

        What is not finished then is recorded as it is.
        """
        self._clock.begin()
        try:
            self._serve(deque(schedule), must_stop, report)
        finally:
            end_s = self._clock.now()
            for number in tuple(self._tracks):
                self._finish(number, UNFINISHED, end_s)
            report(end_s, self.counts)
        return end_s

    def _serve(
        self, pending: deque[DueRequest], must_stop: Callable[[], bool], report: Callable[[float, Counts], None]
    ) -> None:
        reported = time.monotonic()
        while not must_stop():
            now = self._clock.now()
            if now >= self._limit_s:
                # Those that were due while the last step ran wait, too, when everything ends.
                self._add_due(pending, self._limit_s)
                return
            self._add_due(pending, now)
            if self._engine.has_unfinished:
                self._step()
            elif pending:
                self._clock.wait_until(min(pending[0].arrival_s, self._limit_s))
            else:
                return
            if time.monotonic() - reported >= REPORT_INTERVAL_S:
                reported = time.monotonic()
                report(self._clock.now(), self.counts)

    def _add_due(self, pending: deque[DueRequest], now: float) -> None:
        while pending and pending[0].arrival_s <= now:
            self._add(pending.popleft(), now)

    def _add(self, request: DueRequest, now: float) -> None:
        self.counts.sent += 1
        track = _Track(request)
        self._writer.write(SENT, self._description(track))
        try:
            self._engine.add(request)
        except RefusedRequestError as error:
            self.counts.failed += 1
            self._record(track, "error", now, str(error))
            return
        self._tracks[request.number] = track

    def _step(self) -> None:
        start = self._clock.now()
        wall, cpu, work = time.perf_counter(), time.process_time(), self._clock.work()
        result = self._engine.step()
        work_s = self._clock.work() - work
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
        scale = self._clock.scale()
        work_s *= scale
        result = replace(result, loads=tuple(load.scaled(scale) for load in result.loads))
        self._clock.spend(work_s)
        for number in result.batch.first_scheduled:
            if self._tracks[number].first_scheduled_s is None:
                self._tracks[number].first_scheduled_s = start
        for number in result.batch.preempted:
            self._tracks[number].preemptions += 1
        end = start + work_s
        for number, count in result.tokens:
            self._tracks[number].token_times.extend([end] * count)
        if result.batch.tokens:
            self._record_step(result, start, work_s, {"wall_ms": wall_s, "cpu_ms": cpu_s}, scale)
        else:
            self.counts.empty_steps += 1
        for number in result.finished:
            self.counts.finished += 1
            self._finish(number, OK, end)

    def _record_step(
        self, result: StepResult, start: float, work_s: float, raw_s: dict[str, float], scale: float
    ) -> None:
        batch, (slots, slot_rank) = result.batch, self._engine.slots
        is_changed = batch.has_prefill or self._had_prefill or batch.requests != self._last_requests
        self._had_prefill, self._last_requests = batch.has_prefill, batch.requests
        copied = [load for load in result.loads if load.cpu_to_gpu_s is not None]
        read = [load for load in result.loads if load.disk_to_cpu_s is not None]
        load_s = sum((load.cpu_to_gpu_s or 0.0) + (load.disk_to_cpu_s or 0.0) for load in result.loads)
        record = {
            "step": self.counts.steps,
            "start_s": seconds(start),
            "time_ms": milliseconds(work_s - load_s),
            "duration_ms": milliseconds(work_s),
            "load_ms": milliseconds(load_s),
            **{name: milliseconds(value) for name, value in raw_s.items()},
            "scale": round(scale, 6),
            "tokens": batch.tokens,
            "requests": batch.requests,
            "context_tokens": batch.context_tokens,
            "adapters": batch.adapters,
            "max_loras": slots,
            "max_lora_rank": slot_rank,
            "has_prefill": batch.has_prefill,
            "is_batch_changed": is_changed,
            "waiting": batch.waiting,
            "running": batch.running,
            "cached_adapters": result.cached_adapters,
            "free_blocks": batch.free_blocks,
            "preemptions": len(batch.preempted),
            "group": f"{self._segment}-{int(start // GROUP_S)}",
            "gpu_loads": len(copied),
            "disk_loads": len(read),
            "gpu_load_ranks": [load.rank for load in copied],
            "disk_load_ranks": [load.rank for load in read],
        }
        self._writer.write("steps", record)
        for load in result.loads:
            self._record_load(load, start, slot_rank)
        self.counts.steps += 1

    def _record_load(self, load: Load, start: float, slot_rank: int) -> None:
        times = {"cpu_to_gpu_ms": load.cpu_to_gpu_s, "disk_to_cpu_ms": load.disk_to_cpu_s}
        self._writer.write(
            "loads",
            {name: None if value is None else milliseconds(value) for name, value in times.items()}
            | {
                "rank": load.rank,
                "max_lora_rank": slot_rank,
                "adapter": self._names[load.adapter],
                "step": self.counts.steps,
                "start_s": seconds(start),
            },
        )

    def _finish(self, number: int, status: str, end: float) -> None:
        self._record(self._tracks.pop(number), status, end, None)

    def _record(self, track: _Track, status: str, end: float, error: str | None) -> None:
        times = track.token_times
        self._writer.write(
            "requests",
            self._description(track)
            | {
                "generated_tokens": len(times),
                "first_scheduled_s": None if track.first_scheduled_s is None else seconds(track.first_scheduled_s),
                "ttft_s": seconds(times[0] - track.request.arrival_s) if times else None,
                "itl_s": [seconds(after - before) for before, after in itertools.pairwise(times)],
                "finish_s": seconds(end),
                "status": status,
                "error": error,
                "preemptions": track.preemptions,
            },
        )

    def _description(self, track: _Track) -> dict[str, object]:
        request = track.request
        return {
            "request": request.number,
            "attempt": 0,
            "adapter": self._names[request.adapter] if request.adapter >= 0 else None,
            "prompt_tokens": request.prompt_tokens,
            "output_tokens": request.output_tokens,
            "arrival_s": seconds(request.arrival_s),
            "sent_s": seconds(request.arrival_s),
        }
