"""One replica run by vLLM's own scheduler and LoRA caches under a virtual clock, by the loop of twin/semantics.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from vllm import SamplingParams
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request as VllmRequest

from twin.errors import TwinError
from twin.headless.adapters import AdapterCaches, BatchOfV2, PersistentBatch, lora_requests
from twin.headless.configuration import make_config, make_scheduler
from twin.recorder import Request, Step, TraceRecorder
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.step_clock import StepClock

# What is sampled, and what prompts consist of.
TOKEN = 0


@dataclass(frozen=True)
class _Scheduled:
    """A step that vLLM has scheduled: its output, the same in the twin's terms, and which requests sample a token."""

    output: Any
    step: Step
    are_sampled: list[bool]

    @property
    def is_empty(self) -> bool:
        """Whether no request takes part in it."""
        return not self.step.tokens


class HeadlessReplica:
    """vLLM without a model.

    Parameters
    ----------
    inputs
        Requests, adapters and settings.
    log_steps, keep_step_table
        See `twin.kernel.run_kernel`.
    """

    def __init__(self, inputs: ReplicaInputs, *, log_steps: bool, keep_step_table: bool) -> None:
        self._inputs = inputs
        self._log_steps = log_steps
        config = make_config(inputs)
        self._scheduler = make_scheduler(config, inputs)
        self._batch = BatchOfV2() if inputs.use_v2_model_runner else PersistentBatch(inputs)
        self._caches = AdapterCaches(config) if inputs.num_slots > 0 else None
        self._lora_requests = lora_requests(inputs.adapter_names)
        columns = (inputs.adapter, inputs.prompt_tokens, inputs.output_tokens)
        self._requests = [Request(row, *map(int, values)) for row, values in enumerate(zip(*columns, strict=True))]
        self._clock = StepClock(inputs)
        self._recorder = TraceRecorder(
            num_adapters=len(inputs.gpu_load_ns),
            horizon_ns=inputs.horizon_ns,
            sample_interval_ns=inputs.sample_interval_ns,
            log_steps=log_steps,
            keep_step_table=keep_step_table,
        )

    def run(self, report: Callable[[int], None]) -> ReplicaTrace:
        """Run until the horizon; `report` is called with the time of each step boundary, in ns.

        Raises
        ------
        TwinError
            When a step schedules nothing although requests run or wait.
        """
        inputs = self._inputs
        arrivals: list[int] = inputs.arrival_ns.tolist()
        num_arrived = now_ns = 0
        # With asynchronous scheduling, the step after the one that begins, as `step_with_batch_queue` of
        # v1/engine/core.py schedules it; one in which nothing is scheduled passes before the next is.
        ahead: _Scheduled | None = None
        while True:
            while num_arrived < len(arrivals) and arrivals[num_arrived] <= now_ns:
                self._scheduler.add_request(self._vllm_request(self._requests[num_arrived]))
                num_arrived += 1
            if now_ns >= inputs.horizon_ns:
                break
            if not self._scheduler.has_unfinished_requests():
                if num_arrived == len(arrivals):
                    break
                now_ns = min(arrivals[num_arrived], inputs.horizon_ns)
                continue
            report(now_ns)
            self._sample(now_ns)
            if ahead is not None and ahead.is_empty:
                self._apply_results(ahead, now_ns)
                ahead = None
            current = ahead or self._schedule(now_ns)
            if current.is_empty:
                self._raise_stall(now_ns)
            end_ns = now_ns + current.step.duration_ns
            if end_ns > inputs.horizon_ns:
                break
            ahead = self._schedule(end_ns) if inputs.async_scheduling and end_ns < inputs.horizon_ns else None
            self._apply_results(current, end_ns)
            now_ns = end_ns
        return self._recorder.trace(self._requests, self._running())

    def _vllm_request(self, request: Request) -> VllmRequest:
        # Prefix caching is off, so that it does not matter that all prompts are alike.
        return VllmRequest(
            request_id=str(request.row),
            prompt_token_ids=[TOKEN] * request.prompt_tokens,
            sampling_params=SamplingParams(max_tokens=request.output_tokens, ignore_eos=True),
            pooling_params=None,
            arrival_time=float(request.row),
            lora_request=self._lora_requests[request.adapter] if request.adapter >= 0 else None,
        )

    def _sample(self, now_ns: int) -> None:
        self._recorder.sample(
            now_ns,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            used_blocks=self._used_blocks(),
        )

    def _raise_stall(self, now_ns: int) -> NoReturn:
        raise TwinError(
            f"a step must schedule a token of some request. At {now_ns / 1e9:.6f} s vLLM's scheduler schedules none, "
            f"with {len(self._scheduler.running)} requests running and {len(self._scheduler.waiting)} waiting.",
            field="num_blocks",
            value=self._inputs.num_blocks,
            hint="give the replica KV blocks for max_model_len beside the null block, and slots for adapters",
        )

    def _schedule(self, start_ns: int) -> _Scheduled:
        """Let vLLM decide the step that begins then and load its adapters, and write both down."""
        scheduler = self._scheduler
        output = scheduler.schedule()
        step = self._step(output, start_ns)
        are_sampled = [not scheduler.requests[name].is_prefill_chunk for name in output.num_scheduled_tokens]
        scheduled = _Scheduled(output, step, are_sampled)
        self._load_adapters(output, step)
        if scheduled.is_empty:
            self._recorder.preemptions(step.num_preemptions)
            return scheduled
        waiting = [self._request(request.request_id) for request in scheduler.waiting]
        self._clock.time(step, num_waiting=len(waiting))
        used = self._used_blocks()
        free = self._inputs.num_blocks - 1 - used
        self._recorder.step(step, self._running(), waiting, used=used, free=free)
        return scheduled

    def _step(self, output: Any, start_ns: int) -> Step:
        """Return what the scheduler decided, in the twin's terms; its requests get what they had computed before."""
        step = Step(start_ns=start_ns, budget=0, threshold=0)
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self._request(request_id)
            step.tokens[request] = num_tokens
            vllm_request = self._scheduler.requests[request_id]
            own_placeholder = 0 if vllm_request.is_prefill_chunk else 1
            request.placeholders = max(vllm_request.num_output_placeholders - own_placeholder, 0)
        for new in output.scheduled_new_reqs:
            self._request(new.req_id).num_computed = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for request_id, num_computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            self._request(request_id).num_computed = num_computed
        for request in step.tokens:
            if request.first_scheduled_ns < 0:
                request.first_scheduled_ns = start_ns
        for request_id in output.preempted_req_ids or ():
            self._request(request_id).num_preemptions += 1
            step.num_preemptions += 1
        return step

    def _load_adapters(self, output: Any, step: Step) -> None:
        if self._caches is None:
            return
        inputs = self._inputs
        adapters = self._batch.adapters(output)
        if not step.tokens:
            return
        step.gpu_loads, step.disk_loads = self._caches.load(adapters)
        step.load_ns = sum(int(inputs.gpu_load_ns[adapter]) for adapter in step.gpu_loads)
        step.load_ns += sum(int(inputs.disk_load_ns[adapter]) for adapter in step.disk_loads)
        if self._log_steps and inputs.evicts_adapters:
            step.slots = self._caches.slots
        if self._log_steps and inputs.evicts_cached_adapters:
            step.cached = self._caches.cached

    def _apply_results(self, scheduled: _Scheduled, now_ns: int) -> None:
        """Give a token to every request that has no prompt left to compute, as a model would, and see who finishes."""
        request_ids = list(scheduled.output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=request_ids,
            req_id_to_index={name: index for index, name in enumerate(request_ids)},
            sampled_token_ids=[[TOKEN] if is_sampled else [] for is_sampled in scheduled.are_sampled],
        )
        for outputs in self._scheduler.update_from_output(scheduled.output, result).values():
            for request_output in outputs.outputs:
                request = self._request(request_output.request_id)
                for _ in request_output.new_token_ids:
                    self._recorder.token(request, now_ns)
                if request_output.finish_reason is not None:
                    self._recorder.finish(request, now_ns)

    def _running(self) -> list[Request]:
        return [self._request(request.request_id) for request in self._scheduler.running]

    def _request(self, request_id: str) -> Request:
        return self._requests[int(request_id)]

    def _used_blocks(self) -> int:
        return int(self._inputs.num_blocks - 1 - self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())
