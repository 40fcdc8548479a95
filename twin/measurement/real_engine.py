"""vLLM's own engine behind the protocol of `twin.measurement.engine_loop`: real scheduler, real model, real adapters.

Imports vLLM, and reaches into its internals to see what a step scheduled and loaded; see TESTED_VERSIONS in
`twin.vllm_python`. Paths in comments are inside the `vllm` package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from twin.measurement.engine_loop import Batch, DueRequest, Load, RefusedRequestError, StepResult
from twin.measurement.prompts import prompt_token_ids

WARMUP_PROMPT_TOKENS = 64
WARMUP_OUTPUT_TOKENS = 8


@dataclass(frozen=True)
class EngineAdapter:
    """An adapter that the engine can load."""

    name: str
    path: str
    rank: int


class VllmEngine:
    """An `LLMEngine` that runs in this process.

    Parameters
    ----------
    vllm_config
        vLLM's resolved configuration.
    adapters
        By index.
    work
        Clock that times loads, in seconds.
    seed
        Of the prompts' token ids.

    Raises
    ------
    Exception
        Whatever vLLM raises when the engine does not start.
    """

    def __init__(
        self, vllm_config: Any, adapters: Sequence[EngineAdapter], work: Callable[[], float], seed: int
    ) -> None:
        self.config = vllm_config
        self._engine = LLMEngine.from_vllm_config(vllm_config, disable_log_stats=True)
        core = self._engine.engine_core.engine_core
        self._scheduler = core.scheduler
        self._requests = [LoRARequest(adapter.name, index + 1, adapter.path) for index, adapter in enumerate(adapters)]
        self._vocab_size = vllm_config.model_config.get_vocab_size()
        self._seed = seed
        # vLLM appends a random suffix to the names of requests.
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._adapter_of: dict[int, int] = {}
        self._probe = _ScheduleProbe(self._scheduler, self._adapter_of_request, self._numbers)
        self._loads: _LoadProbe | None = None
        if vllm_config.lora_config is not None:
            manager = core.model_executor.driver_worker.worker.model_runner.lora_manager
            self._loads = _LoadProbe(manager, [adapter.rank for adapter in adapters], work)

    @property
    def slots(self) -> tuple[int, int]:
        """``(max_loras, max_lora_rank)``; zeros without LoRA."""
        lora = self.config.lora_config
        return (0, 0) if lora is None else (int(lora.max_loras), int(lora.max_lora_rank))

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._engine.has_unfinished_requests())

    def add(self, request: DueRequest) -> None:
        """Put a request with a random prompt into the queue (RefusedRequestError)."""
        prompt = prompt_token_ids(self._seed, request.number, request.prompt_tokens, self._vocab_size)
        lora = self._requests[request.adapter] if request.adapter >= 0 else None
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        try:
            name = self._engine.add_request(str(request.number), tokens_input(prompt), params, lora_request=lora)
        except ValueError as error:
            raise RefusedRequestError(str(error)) from error
        self._numbers[name] = request.number
        self._names[request.number] = name
        self._adapter_of[request.number] = request.adapter

    def step(self) -> StepResult:
        """Do one step, and say what was in it."""
        outputs = self._engine.step()
        tokens, finished = [], []
        for output in outputs:
            number = int(output.request_id)
            tokens.append((number, sum(len(completion.token_ids) for completion in output.outputs)))
            if output.finished:
                finished.append(number)
                del self._adapter_of[number], self._numbers[self._names.pop(number)]
        return StepResult(
            batch=self._probe.take(),
            tokens=tuple(tokens),
            finished=tuple(finished),
            loads=() if self._loads is None else self._loads.take(),
            cached_adapters=0 if self._loads is None else self._loads.cached,
        )

    def warm_up(self, num_requests: int) -> None:
        """Serve some requests, so that what happens once is over, and unload their adapters again."""
        # A sequence that is as long as the engine takes has one token of output at least.
        longest = self.config.model_config.max_model_len
        output_tokens = min(WARMUP_OUTPUT_TOKENS, max(longest // 2, 1))
        prompt_tokens = min(WARMUP_PROMPT_TOKENS, longest - output_tokens)
        for number in range(num_requests):
            adapter = number % len(self._requests) if self._requests else -1
            self.add(DueRequest(-1 - number, 0.0, adapter, prompt_tokens, output_tokens))
        while self.has_unfinished:
            self.step()
        for lora in self._requests[:num_requests]:
            self._engine.remove_lora(lora.lora_int_id)

    def _adapter_of_request(self, number: int) -> int:
        return self._adapter_of[number]


class _ScheduleProbe:
    """Looks at what the scheduler decides (v1/core/sched/scheduler.py `schedule`), each time it is asked."""

    def __init__(self, scheduler: Any, adapter_of: Callable[[int], int], numbers: dict[str, int]) -> None:
        self._batches: list[Batch] = []
        self._scheduler = scheduler
        self._adapter_of = adapter_of
        self._numbers = numbers
        self._schedule = scheduler.schedule
        scheduler.schedule = self._schedule_and_look

    def take(self) -> Batch:
        """Return what the step scheduled."""
        (batch,) = self._batches
        self._batches.clear()
        return batch

    def _schedule_and_look(self, *arguments: Any) -> Any:
        output = self._schedule(*arguments)
        self._batches.append(self._look(output))
        return output

    def _look(self, output: Any) -> Batch:
        scheduled = output.num_scheduled_tokens
        cached = output.scheduled_cached_reqs
        # These are from before the step; the scheduler has moved its own numbers on already.
        context = sum(new.num_computed_tokens for new in output.scheduled_new_reqs) + sum(cached.num_computed_tokens)
        numbers = self._numbers
        adapters = {self._adapter_of(numbers[name]) for name in scheduled} - {-1}
        running, waiting = self._scheduler.get_request_counts()
        requests = self._scheduler.requests
        return Batch(
            tokens=output.total_num_scheduled_tokens,
            requests=len(scheduled),
            context_tokens=context,
            adapters=len(adapters),
            has_prefill=any(count > 1 or requests[name].num_output_tokens == 0 for name, count in scheduled.items()),
            running=running,
            waiting=waiting,
            free_blocks=self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            first_scheduled=tuple(numbers[new.req_id] for new in output.scheduled_new_reqs),
            preempted=tuple(numbers[name] for name in output.preempted_req_ids or ()),
        )


class _LoadProbe:
    """Times the worker's LRU manager (lora/worker_manager.py) where it reads adapters and copies them into slots."""

    def __init__(self, manager: Any, ranks: Sequence[int], work: Callable[[], float]) -> None:
        self._done: list[Load] = []
        self._manager = manager
        self._ranks = ranks
        self._work = work
        self._add, self._read = manager.add_adapter, manager._load_adapter
        self._activate = manager._adapter_manager.activate_adapter
        self._num_reads = 0
        self._copies_s: list[float] = []
        manager.add_adapter = self._timed_add
        manager._load_adapter = self._noted_read
        manager._adapter_manager.activate_adapter = self._timed_activate

    @property
    def cached(self) -> int:
        """Adapters in the CPU cache."""
        return len(self._manager._adapter_manager)

    def take(self) -> tuple[Load, ...]:
        """Return the loads of the step."""
        done = tuple(self._done)
        self._done.clear()
        return done

    def _timed_add(self, request: Any) -> Any:
        """Touch an adapter, or read and copy it: what is not the copy counts as reading, packing included."""
        num_reads = self._num_reads
        self._copies_s.clear()
        begin = self._work()
        result = self._add(request)
        total_s = self._work() - begin
        copy_s = sum(self._copies_s) if self._copies_s else None
        read_s = total_s - (copy_s or 0.0) if self._num_reads > num_reads else None
        if copy_s is not None or read_s is not None:
            index = request.lora_int_id - 1
            self._done.append(Load(index, self._ranks[index], copy_s, read_s))
        return result

    def _noted_read(self, request: Any) -> Any:
        self._num_reads += 1
        return self._read(request)

    def _timed_activate(self, adapter_id: int) -> Any:
        if adapter_id in self._manager._adapter_manager._active_adapters:
            return self._activate(adapter_id)
        _synchronize()
        begin = self._work()
        result = self._activate(adapter_id)
        _synchronize()
        self._copies_s.append(self._work() - begin)
        return result


def device_facts() -> dict[str, Any]:
    """Return what the engine computes on."""
    if current_platform.is_cuda_alike():
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "device_memory_gib": round(properties.total_memory / 2**30, 3),
            "cuda": torch.version.cuda,
        }
    return {"device": current_platform.device_type, "threads": torch.get_num_threads()}


def is_cpu() -> bool:
    """Return whether vLLM computes on the CPU."""
    return bool(current_platform.is_cpu())


def _synchronize() -> None:
    """Wait for the GPU, so that a copy is timed alone."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
