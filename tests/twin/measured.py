"""A small engine and a driver for tests of measuring: they serve requests for real, by rules that fit on a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from twin.engine import LoraRank
from twin.errors import TwinError
from twin.lengths import LengthDistribution
from twin.measurement.engine_loop import Batch, Counts, DueRequest, EngineLoop, Load, RefusedRequestError, StepResult
from twin.measurement.folder import MeasurementFolder, create_folder
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import EndpointSettings, InProcessSettings, Manifest, ServerFacts, WorkloadFacts
from twin.measurement.records import ShardWriter
from twin.measurement.session import Progress, SegmentFacts, SegmentOutcome, SegmentTask
from twin.workload import NANOSECONDS, Adapter, Workload

STEP_S = 0.25
LOAD_S = 0.0625
NOTHING_SAID = ServerFacts()
RANKS: tuple[LoraRank, ...] = (8, 16)


class StepClock:
    """Time that moves by what the engine says it worked; idle time is skipped."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s
        self.worked_s = 0.0

    def work(self) -> float:
        """Return the seconds worked so far."""
        return self.worked_s

    def begin(self) -> None:
        """Do nothing."""

    def now(self) -> float:
        """Return the time."""
        return self._now

    def spend(self, work_s: float) -> None:
        """Let a step pass."""
        self._now += work_s

    def wait_until(self, time_s: float) -> None:
        """Be there."""
        self._now = max(self._now, time_s)

    def scale(self) -> float:
        """Return 1: its work is its own measure."""
        return 1.0


class QueueEngine:
    """Serves up to `most` requests at once, first come first served: a step of `STEP_S` gives each of them a token.

    An adapter is loaded when it is first needed, in `LOAD_S`. A request of more than `longest` prompt tokens is
    refused, and the request `loses_blocks` is preempted once, after its first token. The engine breaks at step
    `breaks_at`.
    """

    slots = (4, 16)

    def __init__(
        self,
        clock: StepClock,
        *,
        most: int = 2,
        longest: int = 1000,
        loses_blocks: int = -1,
        breaks_at: int = -1,
        before_step: Callable[[int], object] = id,
    ) -> None:
        self._clock = clock
        self._most = most
        self._longest = longest
        self._loses_blocks = loses_blocks
        self._breaks_at = breaks_at
        self._before_step = before_step
        self._waiting: list[DueRequest] = []
        self._running: list[DueRequest] = []
        self._generated: dict[int, int] = {}
        self._loaded: set[int] = set()
        self._steps = 0

    @property
    def has_unfinished(self) -> bool:
        """Whether somebody is served or waits."""
        return bool(self._waiting or self._running)

    def add(self, request: DueRequest) -> None:
        """Put a request into the queue."""
        if request.prompt_tokens > self._longest:
            raise RefusedRequestError(f"a prompt of {request.prompt_tokens} tokens is too long")
        self._waiting.append(request)
        self._generated[request.number] = 0

    def step(self) -> StepResult:
        """Give each running request a token."""
        self._before_step(self._steps)
        if self._steps == self._breaks_at:
            raise TwinError("the engine broke")
        self._steps += 1
        preempted = [
            request for request in self._running if request.number == self._loses_blocks and len(self._running) > 1
        ]
        if preempted:
            self._loses_blocks = -1
            self._running.remove(preempted[0])
            self._waiting.insert(0, preempted[0])
        first = []
        while self._waiting and len(self._running) < self._most and not preempted:
            self._running.append(self._waiting.pop(0))
            if self._generated[self._running[-1].number] == 0:
                first.append(self._running[-1])
        loads = self._load()
        self._clock.worked_s += STEP_S + LOAD_S * len(loads)
        is_new = {request.number for request in self._running if self._generated[request.number] == 0}
        batch = Batch(
            tokens=sum(request.prompt_tokens if request.number in is_new else 1 for request in self._running),
            requests=len(self._running),
            context_tokens=sum(
                request.prompt_tokens + self._generated[request.number]
                for request in self._running
                if request.number not in is_new
            ),
            adapters=len({request.adapter for request in self._running} - {-1}),
            has_prefill=bool(is_new),
            running=len(self._running),
            waiting=len(self._waiting),
            free_blocks=100 - len(self._running),
            first_scheduled=tuple(request.number for request in first),
            preempted=tuple(request.number for request in preempted),
        )
        return StepResult(batch, *self._sample(), loads, len(self._loaded))

    def _load(self) -> tuple[Load, ...]:
        needed = sorted({request.adapter for request in self._running} - {-1} - self._loaded)
        self._loaded.update(needed)
        return tuple(Load(adapter, RANKS[adapter % 2], None, LOAD_S) for adapter in needed)

    def _sample(self) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        tokens, finished = [], []
        for request in self._running:
            self._generated[request.number] += 1
            tokens.append((request.number, 1))
            if self._generated[request.number] == request.output_tokens:
                finished.append(request.number)
        self._running = [request for request in self._running if request.number not in finished]
        return tuple(tokens), tuple(finished)


class QueueDriver:
    """Runs segments on a `QueueEngine`.

    Parameters
    ----------
    stops_at
        Request a stop before this step.
    server
        What it says about the engine.
    options
        Of the engine.
    """

    def __init__(
        self, *, stops_at: int = -1, most: int = 2, breaks_at: int = -1, server: ServerFacts = NOTHING_SAID
    ) -> None:
        self._facts = SegmentFacts(server=server)
        self._stops_at = stops_at
        self._most = most
        self._breaks_at = breaks_at

    def run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        """Run a segment to its end."""

        def before_step(step: int) -> None:
            if step == self._stops_at:
                stop.make("interrupted by the test")

        clock = StepClock(task.start_s)
        engine = QueueEngine(clock, most=self._most, breaks_at=self._breaks_at, before_step=before_step)
        names = tuple(adapter.name for adapter in task.workload.adapters)
        writer = ShardWriter(task.shards, task.number)
        task.on_ready(self._facts)
        loop = EngineLoop(engine, clock, writer, names, segment=task.number, limit_s=task.horizon_s + 60.0)
        end_s = loop.run(due_requests(task), lambda: stop.is_made, say_nothing)
        writer.close()
        if stop.is_made:
            return SegmentOutcome(end_s=end_s, reason=stop.reason, cause="interrupted", facts=self._facts)
        return SegmentOutcome(end_s=end_s, facts=self._facts)


def ignore_progress(progress: Progress) -> None:
    """Watch nothing."""
    del progress


def due_requests(task: SegmentTask) -> list[DueRequest]:
    """Return the requests of a task one by one."""
    table = task.requests
    return [
        DueRequest(
            int(task.rows[row]),
            int(table.arrival_ns[row]) / NANOSECONDS,
            int(table.adapter[row]),
            int(table.prompt_tokens[row]),
            int(table.output_tokens[row]),
        )
        for row in range(len(table))
    ]


def small_workload(*, rates_rps: Sequence[float] = (0.5, 0.5, 0.5), prompt: int = 20, output: int = 4) -> Workload:
    """Return adapters of ranks 8 and 16, all requests of one length."""
    return Workload(
        adapters=tuple(
            Adapter(
                name=f"a{index}",
                rank=RANKS[index % 2],
                rate_rps=rate,
                prompt_tokens=LengthDistribution(mean=prompt),
                output_tokens=LengthDistribution(mean=output),
            )
            for index, rate in enumerate(rates_rps)
        )
    )


def new_folder(
    path: Path,
    workload: Workload,
    *,
    horizon_s: float = 20.0,
    settings: InProcessSettings | EndpointSettings | None = None,
) -> MeasurementFolder:
    """Return the folder of a new measurement of a workload, seed 0."""
    requests = workload.requests(horizon_s=horizon_s, seed=0)
    facts = WorkloadFacts(adapters=workload.adapters, num_requests=len(requests), horizon_s=horizon_s, seed=0)
    manifest = Manifest(workload=facts, settings=settings or InProcessSettings(model="model"))
    return create_folder(path, manifest, requests, workload)


def say_nothing(time_s: float, counts: Counts) -> None:
    """Report progress to nobody."""
    del time_s, counts
