"""The readable engine: one SimPy process per replica, by the rules of twin/semantics.md.

It is the oracle of the compiled engine (twin/kernel.py) and the replica of the multi-replica twin (twin/fleet.py).
SimPy's clock holds integer nanoseconds. Requests are pushed into a replica by another process: `run_reference` pushes
the rows of a table, a fleet's router pushes what it assigns.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from typing import Any

from simpy import Environment
from simpy.events import URGENT, Event

from twin.errors import TwinError
from twin.load_order import LoadOrder
from twin.recorder import Request, Step, TraceRecorder
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.step_clock import StepClock


def run_reference(inputs: ReplicaInputs, *, log_steps: bool = False, keep_step_table: bool = False) -> ReplicaTrace:
    """Simulate one replica on its own requests.

    Parameters
    ----------
    inputs
        Requests, adapters and settings.
    log_steps
        Whether the trace gets a `StepLog`.

    Raises
    ------
    TwinError
        When requests run or wait and none of them can be scheduled.
    """
    environment = Environment()
    replica = ReplicaProcess(environment, inputs, log_steps=log_steps, keep_step_table=keep_step_table)
    columns = (inputs.adapter, inputs.prompt_tokens, inputs.output_tokens)
    requests = [Request(row, *map(int, values)) for row, values in enumerate(zip(*columns, strict=True))]
    environment.process(_push_table(environment, replica, requests, inputs))
    environment.process(replica.run())
    environment.run()
    return replica.trace(requests)


def _push_table(
    environment: Environment, replica: ReplicaProcess, requests: Sequence[Request], inputs: ReplicaInputs
) -> Generator[Event, Any, None]:
    """Push the rows of the inputs' table into `replica` at their arrivals."""
    for request, arrival_ns in zip(requests, inputs.arrival_ns.tolist(), strict=True):
        if arrival_ns >= inputs.horizon_ns:
            return
        if arrival_ns > environment.now:
            yield Arrival(environment, arrival_ns)
        replica.push(request)


class Arrival(Event):
    """Happens at `time_ns`, before the steps that end at the same time.

    SimPy orders events by (time, priority, sequence); a timeout would get the priority of the ends of steps.
    """

    def __init__(self, environment: Environment, time_ns: int) -> None:
        super().__init__(environment)
        self._ok = True
        self._value = None
        environment.schedule(self, URGENT, time_ns - int(environment.now))


class AdapterCaches:
    """The adapters in CPU memory and those in slots, both least recently used first.

    Parameters
    ----------
    num_slots, cpu_capacity
        Adapters that the slots and the CPU memory hold.
    """

    def __init__(self, *, num_slots: int, cpu_capacity: int) -> None:
        self._num_slots = num_slots
        self._cpu_capacity = cpu_capacity
        self._cpu: OrderedDict[int, None] = OrderedDict()
        self._slots: OrderedDict[int, None] = OrderedDict()

    def load(self, adapter: int) -> tuple[bool, bool]:
        """Bring `adapter` into a slot and mark it as used last.

        Returns whether it was read from disk, and whether it was copied to a slot.
        """
        from_disk = adapter not in self._cpu
        if from_disk:
            if len(self._cpu) >= self._cpu_capacity:
                evicted, _ = self._cpu.popitem(last=False)
                self._slots.pop(evicted, None)
            self._cpu[adapter] = None
        self._cpu.move_to_end(adapter)
        to_slot = adapter not in self._slots
        if to_slot:
            if len(self._slots) >= self._num_slots:
                self._slots.popitem(last=False)
            self._slots[adapter] = None
        self._slots.move_to_end(adapter)
        return from_disk, to_slot

    def has_slot(self, adapter: int) -> bool:
        """Return whether `adapter` is in a slot."""
        return adapter in self._slots

    @property
    def slots(self) -> tuple[int, ...]:
        """Adapters in slots, least recently used first."""
        return tuple(self._slots)

    @property
    def cached(self) -> tuple[int, ...]:
        """Adapters in CPU memory, least recently used first."""
        return tuple(self._cpu)


class ReplicaProcess:
    """One replica: its waiting queue, running list, KV blocks and adapters.

    Parameters
    ----------
    environment
        SimPy's environment; its clock must hold integer nanoseconds, starting at 0.
    inputs
        Adapters and settings. The request columns are not read: requests come through `push`.
    log_steps
        Whether the trace gets a `StepLog`.
    """

    def __init__(
        self,
        environment: Environment,
        inputs: ReplicaInputs,
        *,
        log_steps: bool = False,
        keep_step_table: bool = False,
    ) -> None:
        self._environment = environment
        self._inputs = inputs
        self._log_steps = log_steps
        self._clock = StepClock(inputs)
        # Python ints: numpy scalars are slow and wrap around.
        self._gpu_load_ns: list[int] = inputs.gpu_load_ns.tolist()
        self._disk_load_ns: list[int] = inputs.disk_load_ns.tolist()
        self._inbox: deque[Request] = deque()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._usable_blocks = inputs.num_blocks - 1
        self._free_blocks = self._usable_blocks
        self._load_order = LoadOrder(inputs)
        self._caches = AdapterCaches(num_slots=inputs.num_slots, cpu_capacity=inputs.cpu_capacity)
        self._num_arrived = 0
        self._wake: Event | None = None
        self._recorder = TraceRecorder(
            num_adapters=len(self._gpu_load_ns),
            horizon_ns=inputs.horizon_ns,
            sample_interval_ns=inputs.sample_interval_ns,
            log_steps=log_steps,
            keep_step_table=keep_step_table,
        )

    @property
    def num_requests(self) -> int:
        """Requests that run or wait, those included that join at the next step boundary."""
        return len(self._running) + len(self._waiting) + len(self._inbox)

    def has_slot(self, adapter: int) -> bool:
        """Return whether `adapter` is in a slot now."""
        return self._caches.has_slot(adapter)

    def push(self, request: Request) -> None:
        """Give the replica a request that arrives now.

        It joins the queue at the next step boundary: at once if the replica is idle.
        """
        self._inbox.append(request)
        if self._wake is not None and not self._wake.triggered:
            self._wake.succeed()

    def trace(self, requests: Sequence[Request]) -> ReplicaTrace:
        """Return what happened; `requests` are all that were or could have been pushed, in the order of their rows."""
        return self._recorder.trace(requests, self._running)

    def run(self) -> Generator[Event, Any, None]:
        """Run the loop of twin/semantics.md as a SimPy process, until the horizon."""
        ahead: Step | None = None
        while True:
            self._num_arrived += len(self._inbox)
            self._waiting.extend(self._inbox)
            self._inbox.clear()
            now_ns = int(self._environment.now)
            if now_ns >= self._inputs.horizon_ns:
                return
            if not self._running and not self._waiting:
                self._wake = self._environment.event()
                yield self._wake
                continue
            used_blocks = self._usable_blocks - self._free_blocks
            num_waiting = len(self._waiting)
            self._recorder.sample(
                now_ns, num_running=len(self._running), num_waiting=num_waiting, used_blocks=used_blocks
            )
            step = ahead or self._plan(now_ns)
            end_ns = now_ns + step.duration_ns
            if end_ns > self._inputs.horizon_ns:
                return
            ahead = self._plan_ahead(end_ns)
            yield self._environment.timeout(step.duration_ns)
            self._apply_results(step)

    def _plan(self, start_ns: int) -> Step:
        """Schedule a step, which some request must take part in, and write it down."""
        step = self._schedule(start_ns)
        if not step.tokens:
            raise TwinError(
                f"a step must schedule a token of some request. At {start_ns / 1e9:.6f} s "
                f"{len(self._running)} requests run and {len(self._waiting)} wait, but none can go on with "
                f"{self._free_blocks} of {self._usable_blocks} KV blocks free and {self._inputs.num_slots} slots.",
                field="num_blocks",
                value=self._inputs.num_blocks,
                hint="give the replica KV blocks for max_model_len beside the null block, and slots for adapters",
            )
        self._write(step)
        return step

    def _plan_ahead(self, start_ns: int) -> Step | None:
        """Schedule the step after the one that begins now; ``None`` when that has to wait for its results."""
        if not self._inputs.async_scheduling or start_ns == self._inputs.horizon_ns:
            return None
        step = self._schedule(start_ns)
        if step.tokens:
            self._write(step)
            return step
        self._load_order.adapters(step)
        self._recorder.preemptions(step.num_preemptions)
        return None

    def _write(self, step: Step) -> None:
        """Load a step's adapters, time it, count it, and let its requests take part in it."""
        self._load_adapters(step)
        self._clock.time(step, num_waiting=len(self._waiting))
        used_blocks = self._usable_blocks - self._free_blocks
        self._recorder.step(step, self._running, self._waiting, used=used_blocks, free=self._free_blocks)
        self._check_invariants(step)
        for request, num_tokens in step.tokens.items():
            request.num_computed += num_tokens
            if request.num_computed == request.num_tokens + request.placeholders:
                step.sampled.append(request)
                request.placeholders += 1

    def _schedule(self, now_ns: int) -> Step:
        """Give tokens to running, then to waiting requests, in the step that begins at `now_ns`."""
        inputs = self._inputs
        is_alone = len(self._running) + len(self._waiting) == 1
        threshold = inputs.long_prefill_token_threshold
        if is_alone and not inputs.threshold_when_alone:
            threshold = 0
        step = Step(start_ns=now_ns, budget=inputs.max_num_batched_tokens, threshold=threshold)
        self._schedule_running(step)
        if step.num_preemptions == 0:
            self._schedule_waiting(step)
        for request in step.tokens:
            if request.first_scheduled_ns < 0:
                request.first_scheduled_ns = now_ns
        return step

    def _schedule_running(self, step: Step) -> None:
        """Go on with running requests in their order; take blocks from the last ones if there are too few."""
        cap = self._inputs.max_model_len - (1 if self._inputs.keep_last_token_free else 0)
        index = 0
        while index < len(self._running) and step.budget > 0:
            request = self._running[index]
            index += 1
            if request.placeholders and request.num_tokens + 1 >= request.prompt_tokens + request.output_tokens:
                # The step that runs gives it its last token.
                continue
            num_tokens = _first_chunk(request.num_tokens + request.placeholders - request.num_computed, step)
            num_tokens = min(num_tokens, cap - request.num_computed)
            if num_tokens <= 0:
                continue
            missing_blocks = self._blocks(request.num_computed + num_tokens) - request.held_blocks
            while missing_blocks > self._free_blocks:
                victim = self._preempt_last(step)
                if victim is request:
                    return
            self._give(request, num_tokens, step)

    def _schedule_waiting(self, step: Step) -> None:
        """Admit waiting requests in their order, past those whose adapter finds no slot."""
        inputs = self._inputs
        adapters = set(step.adapters)
        set_aside: list[Request] = []
        while step.budget > 0 and self._waiting and len(self._running) < inputs.max_num_seqs:
            request = self._waiting[0]
            if request.adapter >= 0 and len(adapters) >= inputs.num_slots and request.adapter not in adapters:
                set_aside.append(self._waiting.popleft())
                continue
            num_tokens = _first_chunk(request.num_tokens, step)
            required_blocks = self._blocks(request.num_tokens if inputs.reserve_full_isl else num_tokens)
            if self._running:
                required_blocks += inputs.watermark_blocks
            if required_blocks > self._free_blocks:
                break
            self._running.append(self._waiting.popleft())
            self._give(request, num_tokens, step)
            if request.adapter >= 0:
                adapters.add(request.adapter)
        self._waiting.extendleft(reversed(set_aside))

    def _give(self, request: Request, num_tokens: int, step: Step) -> None:
        """Schedule `num_tokens` of `request` and allocate the blocks that they need beyond those it holds."""
        held_blocks = self._blocks(request.num_computed + num_tokens)
        self._free_blocks -= held_blocks - request.held_blocks
        request.held_blocks = held_blocks
        step.tokens[request] = num_tokens
        step.budget -= num_tokens

    def _preempt_last(self, step: Step) -> Request:
        """Take the blocks of the last running request and move it to the head of the queue; it will recompute."""
        victim = self._running.pop()
        self._release(victim)
        victim.num_computed = 0
        victim.placeholders = 0
        victim.num_preemptions += 1
        step.num_preemptions += 1
        self._waiting.appendleft(victim)
        return victim

    def _release(self, request: Request) -> None:
        self._free_blocks += request.held_blocks
        request.held_blocks = 0

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._inputs.block_size)

    def _load_adapters(self, step: Step) -> None:
        """Load or touch the step's adapters in vLLM's order, and add up how long that takes."""
        if self._inputs.num_slots == 0:
            return
        for adapter in self._load_order.adapters(step):
            from_disk, to_slot = self._caches.load(adapter)
            if from_disk:
                step.disk_loads.append(adapter)
                step.load_ns += self._disk_load_ns[adapter]
            if to_slot:
                step.gpu_loads.append(adapter)
                step.load_ns += self._gpu_load_ns[adapter]
        if self._log_steps and self._inputs.evicts_adapters:
            step.slots = self._caches.slots
        if self._log_steps and self._inputs.evicts_cached_adapters:
            step.cached = self._caches.cached

    def _apply_results(self, step: Step) -> None:
        """Give the sampled tokens at the end of a step; requests that end free their blocks."""
        now_ns = int(self._environment.now)
        for request in step.sampled:
            self._recorder.token(request, now_ns)
            # None after a preemption; what was sampled before it still comes.
            request.placeholders = max(request.placeholders - 1, 0)
            if request.generated == request.output_tokens or request.num_tokens >= self._inputs.max_model_len:
                self._release(request)
                self._recorder.finish(request, now_ns)
        self._running = [request for request in self._running if request.finish_ns < 0]
        if self._inputs.async_scheduling:
            # Some were preempted with their last token on its way.
            self._waiting = deque(request for request in self._waiting if request.finish_ns < 0)

    def _check_invariants(self, step: Step) -> None:
        """Assert what every step must keep."""
        inputs = self._inputs
        held_blocks = sum(request.held_blocks for request in self._running)
        assert held_blocks + self._free_blocks == self._usable_blocks, "blocks were lost or given twice"
        num_known = self._recorder.finished_requests + len(self._running) + len(self._waiting)
        assert self._num_arrived == num_known, "requests were lost or doubled"
        assert sum(step.tokens.values()) <= inputs.max_num_batched_tokens, "a step is above its token budget"
        assert len(self._running) <= inputs.max_num_seqs, "too many requests run"
        assert len(step.adapters) <= inputs.num_slots, "a step has more adapters than slots"


def _first_chunk(num_tokens: int, step: Step) -> int:
    """Return how many of `num_tokens` the long-prefill threshold and the token budget leave for this step."""
    if 0 < step.threshold < num_tokens:
        num_tokens = step.threshold
    return min(num_tokens, step.budget)
