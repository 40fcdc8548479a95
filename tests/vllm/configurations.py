"""Named replicas that bring every rule of the scheduler and of the LoRA caches into play, with generated requests."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tests.twin.handmade import STEP_NS, make_inputs
from twin.name_hash import adapter_name_hashes
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.step_time import COEFFICIENT_NAMES

Shows = Callable[[ReplicaInputs, ReplicaTrace], bool]


@dataclass(frozen=True)
class Configuration:
    """One replica and its traffic.

    Attributes
    ----------
    name
        What it is about.
    shows
        Whether a trace of it has what the name promises.
    adapters
        How many there are; 0: all requests ask the base model.
    base_share
        Share of requests for the base model.
    requests, pause_ms
        How many, and the mean time between bursts.
    burst
        Requests that arrive at once.
    prompt, output
        Ranges of lengths in tokens, uniform.
    hash_seed
        PYTHONHASHSEED.
    settings
        Scalars of `ReplicaInputs` that differ from the defaults below.
    is_recorded
        Whether vLLM's steps are kept as a file (tests/vllm/golden.py).
    """

    name: str
    shows: Shows
    adapters: int = 6
    base_share: float = 0.0
    requests: int = 120
    pause_ms: float = 10.0
    burst: int = 1
    prompt: tuple[int, int] = (1, 60)
    output: tuple[int, int] = (1, 40)
    hash_seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    is_recorded: bool = False

    def inputs(self) -> ReplicaInputs:
        """Return what the engines take; the same each time."""
        generator = np.random.default_rng(zlib.crc32(self.name.encode()))
        num_bursts = -(-self.requests // self.burst)
        starts = np.cumsum(generator.exponential(self.pause_ms * STEP_NS, num_bursts)).astype(np.int64)
        arrivals = np.repeat(starts, self.burst)[: self.requests]
        adapter = generator.integers(0, max(self.adapters, 1), self.requests)
        asks_base = (generator.random(self.requests) < self.base_share) | (self.adapters == 0)
        rows = zip(
            arrivals.tolist(),
            np.where(asks_base, -1, adapter).tolist(),
            generator.integers(self.prompt[0], self.prompt[1] + 1, self.requests).tolist(),
            generator.integers(self.output[0], self.output[1] + 1, self.requests).tolist(),
            strict=True,
        )
        names = tuple(f"adapter-{index:03d}" for index in range(max(self.adapters, 1)))
        settings: dict[str, Any] = {
            # Every count of a step changes its duration.
            "step_coefficients": generator.uniform(1e-3, 1e-2, len(COEFFICIENT_NAMES)),
            "num_blocks": 400,
            "block_size": 16,
            "num_slots": 4,
            "cpu_capacity": 6,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 128,
            "max_model_len": 128,
            "use_v2_model_runner": True,
            "horizon_ns": 10**12,
            "sample_interval_ns": 13 * STEP_NS,
        }
        inputs = make_inputs(
            list(rows),
            hashes=adapter_name_hashes(names, self.hash_seed).tolist(),
            gpu_load_ns=STEP_NS // 3,
            disk_load_ns=2 * STEP_NS,
            **{**settings, **self.settings},
        )
        return replace(inputs, adapter_names=names, hash_seed=self.hash_seed)


def _anything(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    return bool((trace.finish_ns >= 0).sum() == len(inputs.arrival_ns))


def _preempts(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    return _anything(inputs, trace) and trace.num_preemptions > 5


def _reloads(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    return _anything(inputs, trace) and int(trace.adapter_gpu_loads.sum()) > 2 * len(inputs.gpu_load_ns)


def _rereads(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    return _reloads(inputs, trace) and int(trace.adapter_disk_loads.sum()) > 2 * len(inputs.gpu_load_ns)


def _waits(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    return _anything(inputs, trace) and trace.peak_waiting > 10


def _runs(least: int) -> Shows:
    return lambda inputs, trace: _anything(inputs, trace) and trace.peak_running >= least


def _chunks(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    """Tell whether some request that computes its prompt got fewer tokens than it has, and more in a later step."""
    log = trace.step_log
    assert log is not None
    longest = int(inputs.prompt_tokens.max())
    return _anything(inputs, trace) and 1 < int(log.running_tokens.max()) < longest


def _is_cut_off(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    return 0 < int((trace.finish_ns >= 0).sum()) < len(inputs.arrival_ns)


def _ends_at_the_longest(inputs: ReplicaInputs, trace: ReplicaTrace) -> bool:
    tokens = inputs.prompt_tokens + trace.generated_tokens
    return _anything(inputs, trace) and int((tokens == inputs.max_model_len).sum()) > 10


def _both(*shown: Shows) -> Shows:
    return lambda inputs, trace: all(shows(inputs, trace) for shows in shown)


TIGHT = {"num_blocks": 20, "max_model_len": 112}

SYNCHRONOUS: Sequence[Configuration] = (
    Configuration("nothing is scarce", _anything, settings={"num_slots": 6}),
    Configuration("base model only, LoRA off", _anything, adapters=0, settings={"num_slots": 0}),
    Configuration("base model only, LoRA on", _anything, adapters=3, base_share=1.0),
    Configuration("base model beside adapters", _reloads, base_share=0.3, settings={"num_slots": 2}, is_recorded=True),
    Configuration("slots below adapters", _reloads, settings={"num_slots": 3}),
    Configuration("CPU memory below adapters", _rereads, adapters=12, settings={"num_slots": 3, "cpu_capacity": 5}),
    Configuration(
        "CPU memory as large as the slots", _rereads, adapters=9, settings={"num_slots": 3, "cpu_capacity": 3}
    ),
    Configuration("one slot", _both(_reloads, _waits), settings={"num_slots": 1, "cpu_capacity": 6}),
    Configuration("one slot, one adapter in CPU memory", _rereads, settings={"num_slots": 1, "cpu_capacity": 1}),
    Configuration("as many slots as adapters", _anything, adapters=8, settings={"num_slots": 8, "cpu_capacity": 8}),
    Configuration("more slots than adapters", _anything, adapters=3, settings={"num_slots": 8, "cpu_capacity": 9}),
    Configuration(
        "many adapters, sets of two sizes",
        _reloads,
        adapters=40,
        requests=300,
        pause_ms=2.0,
        settings={"num_slots": 16, "cpu_capacity": 40},
    ),
    Configuration(
        "many adapters under model runner V1",
        _rereads,
        adapters=40,
        requests=300,
        pause_ms=2.0,
        settings={"num_slots": 16, "cpu_capacity": 24, "use_v2_model_runner": False},
        is_recorded=True,
    ),
    Configuration(
        "sets that grow twice",
        _reloads,
        adapters=100,
        requests=600,
        pause_ms=0.3,
        settings={
            "num_slots": 70,
            "cpu_capacity": 90,
            "max_num_seqs": 128,
            "max_num_batched_tokens": 512,
            "num_blocks": 2000,
        },
        is_recorded=True,
    ),
    Configuration("tight KV cache", _preempts, pause_ms=1.0, settings=TIGHT),
    Configuration(
        "tight KV cache under model runner V1",
        _both(_preempts, _rereads),
        adapters=12,
        pause_ms=1.0,
        settings={**TIGHT, "num_slots": 5, "cpu_capacity": 7, "use_v2_model_runner": False},
        is_recorded=True,
    ),
    Configuration(
        "tight KV cache, only the first chunk is checked",
        _preempts,
        pause_ms=1.0,
        settings={**TIGHT, "reserve_full_isl": False, "max_num_batched_tokens": 32},
        is_recorded=True,
    ),
    Configuration("blocks of one token", _preempts, pause_ms=1.0, settings={"block_size": 1, "num_blocks": 300}),
    Configuration(
        "blocks as long as requests",
        _preempts,
        prompt=(1, 100),
        settings={"block_size": 64, "num_blocks": 7},
        is_recorded=True,
    ),
    Configuration(
        "watermark", _both(_waits, _anything), pause_ms=1.0, settings={"num_blocks": 60, "watermark_blocks": 12}
    ),
    Configuration(
        "watermark, preemption and first chunks",
        _preempts,
        pause_ms=1.0,
        settings={**TIGHT, "watermark_blocks": 3, "reserve_full_isl": False},
        is_recorded=True,
    ),
    Configuration("chunked prefill", _chunks, prompt=(30, 100), settings={"max_num_batched_tokens": 40}),
    Configuration("long prefills are cut", _chunks, prompt=(1, 100), settings={"long_prefill_token_threshold": 12}),
    Configuration(
        "a long prefill alone is not cut",
        _anything,
        prompt=(50, 100),
        pause_ms=60.0,
        settings={"long_prefill_token_threshold": 12},
    ),
    Configuration(
        "long prefills, tight KV cache, few slots",
        _both(_preempts, _reloads),
        prompt=(1, 90),
        pause_ms=1.0,
        settings={**TIGHT, "long_prefill_token_threshold": 20, "num_slots": 2},
        is_recorded=True,
    ),
    Configuration("one sequence at a time", _waits, pause_ms=4.0, settings={"max_num_seqs": 1}),
    Configuration(
        "few sequences",
        _waits,
        pause_ms=1.0,
        settings={"max_num_seqs": 5, "max_num_batched_tokens": 64},
        is_recorded=True,
    ),
    Configuration(
        "large batches",
        _runs(100),
        requests=400,
        pause_ms=0.2,
        output=(20, 60),
        settings={"max_num_seqs": 256, "max_num_batched_tokens": 2048, "num_blocks": 4000, "num_slots": 6},
    ),
    Configuration("arrival bursts", _waits, burst=30, pause_ms=100.0, settings={"num_slots": 2}),
    Configuration(
        "bursts on a tight KV cache under model runner V1",
        _both(_preempts, _rereads),
        adapters=20,
        burst=30,
        pause_ms=60.0,
        settings={**TIGHT, "num_slots": 8, "cpu_capacity": 10, "use_v2_model_runner": False},
        is_recorded=True,
    ),
    Configuration("idle times", _reloads, pause_ms=150.0, requests=60, settings={"num_slots": 1}),
    Configuration("prompts of one token", _reloads, prompt=(1, 1), pause_ms=5.0, settings={"num_slots": 3}),
    Configuration("outputs of one token", _reloads, output=(1, 1), pause_ms=1.0, settings={"num_slots": 3}),
    Configuration("requests up to the longest", _ends_at_the_longest, prompt=(60, 127), output=(30, 130), requests=60),
    Configuration("an early horizon", _is_cut_off, pause_ms=2.0, settings={"horizon_ns": 150 * STEP_NS + 7}),
    Configuration(
        "settings of the April-2025 engine",
        _preempts,
        pause_ms=1.0,
        settings={
            **TIGHT,
            "reserve_full_isl": False,
            "keep_last_token_free": False,
            "threshold_when_alone": True,
            "use_v2_model_runner": False,
        },
        is_recorded=True,
    ),
    Configuration(
        "another hash seed", _rereads, adapters=12, hash_seed=1, settings={"num_slots": 5, "cpu_capacity": 7}
    ),
    Configuration(
        "the largest hash seed",
        _rereads,
        adapters=12,
        hash_seed=2**32 - 1,
        settings={"num_slots": 5, "cpu_capacity": 7, "use_v2_model_runner": False},
        is_recorded=True,
    ),
)


def _asynchronous(configuration: Configuration) -> Configuration:
    """Return the same with asynchronous scheduling, and other requests."""
    return replace(
        configuration,
        name=f"asynchronous: {configuration.name}",
        settings={**configuration.settings, "async_scheduling": True},
        is_recorded=configuration.is_recorded and "num_blocks" in configuration.settings,
    )


# Each hash seed has a process of its own, which takes seconds to start.
CONFIGURATIONS: Sequence[Configuration] = sorted(
    [
        *SYNCHRONOUS,
        *(
            _asynchronous(configuration)
            for configuration in SYNCHRONOUS
            # Versions without the last token's rule have no asynchronous scheduling.
            if configuration.settings.get("keep_last_token_free", True)
        ),
    ],
    key=lambda configuration: configuration.hash_seed,
)
