"""One replica run by vLLM's own scheduler and LoRA caches under a virtual clock, by the loop of twin/semantics.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        arrivals: list[int] = self._inputs.arrival_ns.tolist()
        num_arrived = now_ns = 0
        while True:
            while num_arrived < len(arrivals) and arrivals[num_arrived] <= now_ns:
                self._scheduler.add_request(self._vllm_request(self._requests[num_arrived]))
                num_arrived += 1
            if now_ns >= self._inputs.horizon_ns:
                break
            if not self._scheduler.has_unfinished_requests():
                if num_arrived == len(arrivals):
                    break
                now_ns = min(arrivals[num_arrived], self._inputs.horizon_ns)
                continue
            report(now_ns)
            output, step = self._schedule(now_ns)
            now_ns += step.duration_ns
            if now_ns > self._inputs.horizon_ns:
                break
            self._apply_results(output, now_ns)
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

    def _schedule(self, now_ns: int) -> tuple[Any, Step]:
        """Let vLLM decide a step and load its adapters, and write both down."""
        scheduler = self._scheduler
        self._recorder.sample(
            now_ns,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            used_blocks=self._used_blocks(),
        )
        output = scheduler.schedule()
        if output.total_num_scheduled_tokens == 0:
            raise TwinError(
                f"a step must schedule a token of some request. At {now_ns / 1e9:.6f} s vLLM's scheduler schedules "
                f"none, with {len(scheduler.running)} requests running and {len(scheduler.waiting)} waiting.",
                field="num_blocks",
                value=self._inputs.num_blocks,
                hint="give the replica KV blocks for max_model_len beside the null block, and slots for adapters",
            )
        step = self._step(output, now_ns)
        self._load_adapters(output, step)
        waiting = [self._request(request.request_id) for request in scheduler.waiting]
        self._clock.time(step, num_waiting=len(waiting))
        used = self._used_blocks()
        free = self._inputs.num_blocks - 1 - used
        self._recorder.step(step, self._running(), waiting, used=used, free=free)
        return output, step

    def _step(self, output: Any, now_ns: int) -> Step:
        """Return what the scheduler decided, in the twin's terms; its requests get what they had computed before."""
        step = Step(start_ns=now_ns, budget=0, threshold=0)
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            step.tokens[self._request(request_id)] = num_tokens
        for new in output.scheduled_new_reqs:
            self._request(new.req_id).num_computed = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for request_id, num_computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            self._request(request_id).num_computed = num_computed
        for request in step.tokens:
            if request.first_scheduled_ns < 0:
                request.first_scheduled_ns = now_ns
        for request_id in output.preempted_req_ids or ():
            self._request(request_id).num_preemptions += 1
            step.num_preemptions += 1
        return step

    def _load_adapters(self, output: Any, step: Step) -> None:
        if self._caches is None:
            return
        inputs = self._inputs
        step.gpu_loads, step.disk_loads = self._caches.load(self._batch.adapters(output))
        step.load_ns = sum(int(inputs.gpu_load_ns[adapter]) for adapter in step.gpu_loads)
        step.load_ns += sum(int(inputs.disk_load_ns[adapter]) for adapter in step.disk_loads)
        if self._log_steps and inputs.evicts_adapters:
            step.slots = self._caches.slots
        if self._log_steps and inputs.evicts_cached_adapters:
            step.cached = self._caches.cached

    def _apply_results(self, output: Any, now_ns: int) -> None:
        """Give a token to every request that has no prompt left to compute, as a model would, and see who finishes."""
        scheduler = self._scheduler
        request_ids = list(output.num_scheduled_tokens)
        sampled = [[] if scheduler.requests[name].is_prefill_chunk else [TOKEN] for name in request_ids]
        result = ModelRunnerOutput(
            req_ids=request_ids,
            req_id_to_index={name: index for index, name in enumerate(request_ids)},
            sampled_token_ids=sampled,
        )
        for outputs in scheduler.update_from_output(output, result).values():
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
