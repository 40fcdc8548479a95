"""Tiny replicas made by hand, and a reading of the step log in plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.replica import ReplicaInputs, ReplicaTrace
from twin.step_time import COEFFICIENT_NAMES

STEP_NS = 1_000_000


def coefficients(**milliseconds: float) -> NDArray[np.float64]:
    """Return step-time coefficients by name; the others are 0."""
    unknown = set(milliseconds) - set(COEFFICIENT_NAMES)
    assert not unknown, f"no such coefficients: {unknown}"
    return np.array([milliseconds.get(name, 0.0) for name in COEFFICIENT_NAMES], dtype=np.float64)


def make_inputs(
    requests: Sequence[tuple[int, int, int, int]],
    *,
    hashes: Sequence[int] = (0, 1, 2, 3),
    gpu_load_ns: int = 0,
    disk_load_ns: int = 0,
    **settings: Any,
) -> ReplicaInputs:
    """Return a replica on which nothing is scarce unless `settings` say so; a step takes 1 ms whatever is in it.

    Parameters
    ----------
    requests
        Rows of (arrival in ns, adapter, prompt tokens, output tokens).
    hashes
        One per adapter.
    gpu_load_ns, disk_load_ns
        The same for all adapters.
    settings
        Scalars of `ReplicaInputs`, and `step_coefficients`.
    """
    table = np.array(requests, dtype=np.int64).reshape(-1, 4)
    defaults: dict[str, Any] = {
        "step_coefficients": coefficients(base_ms=1.0),
        "num_blocks": 1001,
        "block_size": 1,
        "watermark_blocks": 0,
        "num_slots": 4,
        "cpu_capacity": 4,
        "max_lora_rank": 16,
        "max_num_seqs": 100,
        "max_num_batched_tokens": 100,
        "max_model_len": 100,
        "long_prefill_token_threshold": 0,
        "reserve_full_isl": True,
        "keep_last_token_free": True,
        "threshold_when_alone": False,
        "load_in_set_order": True,
        "use_v2_model_runner": False,
        "horizon_ns": 1000 * STEP_NS,
        "sample_interval_ns": 0,
    }
    return ReplicaInputs(
        arrival_ns=table[:, 0].copy(),
        adapter=table[:, 1].astype(np.int32),
        prompt_tokens=table[:, 2].astype(np.int32),
        output_tokens=table[:, 3].astype(np.int32),
        adapter_hash=np.array(hashes, dtype=np.uint64),
        gpu_load_ns=np.full(len(hashes), gpu_load_ns, dtype=np.int64),
        disk_load_ns=np.full(len(hashes), disk_load_ns, dtype=np.int64),
        **{**defaults, **settings},
    )


def long_run_inputs(seed: int) -> ReplicaInputs:
    """Return a few hundred random requests on a replica that is short of slots, blocks or sequences, or of none.

    Bursts and pauses, short and long outputs: the batch stands still at times, and changes in every step at others.
    """
    generator = np.random.default_rng(seed)
    is_asynchronous = seed % 2 == 1
    num_requests, num_adapters = 300, int(generator.integers(1, 40))
    pauses_ns = generator.exponential(float(generator.choice([0.2, 3.0, 30.0])) * STEP_NS, num_requests)
    arrivals = np.cumsum(np.where(generator.random(num_requests) < 0.3, 0.0, pauses_ns)).astype(np.int64)
    max_model_len = int(generator.choice([60, 200]))
    rows = zip(
        arrivals.tolist(),
        generator.integers(-1 if seed % 3 == 0 else 0, num_adapters, num_requests).tolist(),
        generator.integers(1, max_model_len // 2, num_requests).tolist(),
        np.minimum(generator.geometric(1 / 30, num_requests), max_model_len).tolist(),
        strict=True,
    )
    block_size = int(generator.choice([1, 5, 16]))
    num_slots = int(generator.integers(1, num_adapters + 2))
    return make_inputs(
        list(rows),
        hashes=generator.integers(0, 2**63, num_adapters).tolist(),
        gpu_load_ns=STEP_NS // 3,
        disk_load_ns=2 * STEP_NS,
        step_coefficients=generator.uniform(1e-3, 1e-2, len(COEFFICIENT_NAMES)),
        num_blocks=1 + -(-max_model_len // block_size) * int(generator.choice([2, 8, 100])),
        block_size=block_size,
        num_slots=num_slots,
        cpu_capacity=num_slots + int(generator.choice([0, 3, 40])),
        max_num_seqs=int(generator.choice([8, 64])),
        max_num_batched_tokens=int(generator.choice([64, 300])),
        max_model_len=max_model_len,
        long_prefill_token_threshold=int(generator.choice([0, 0, 20])),
        reserve_full_isl=bool(generator.integers(2)),
        keep_last_token_free=bool(generator.integers(2)) or is_asynchronous,
        async_scheduling=is_asynchronous,
        threshold_when_alone=bool(generator.integers(2)),
        load_in_set_order=bool(generator.random() < 0.8),
        use_v2_model_runner=bool(generator.integers(2)),
        horizon_ns=int(arrivals[-1]) + int(generator.choice([0, 10_000])) * STEP_NS + 1,
        sample_interval_ns=7 * STEP_NS,
    )


@dataclass(frozen=True)
class LoggedStep:
    """One step of a `StepLog`; `tokens` has the scheduled requests in running order."""

    start_ns: int
    duration_ns: int
    tokens: dict[int, int]
    running: list[int]
    waiting: list[int]
    free_blocks: int
    preemptions: int
    gpu_loads: int
    disk_loads: int


def logged_steps(trace: ReplicaTrace) -> list[LoggedStep]:
    """Return the steps of a trace that has a log."""
    log = trace.step_log
    assert log is not None
    steps = []
    for index in range(len(log.start_ns)):
        running = slice(int(log.running_offset[index]), int(log.running_offset[index + 1]))
        waiting = slice(int(log.waiting_offset[index]), int(log.waiting_offset[index + 1]))
        pairs = zip(log.running_request[running].tolist(), log.running_tokens[running].tolist(), strict=True)
        steps.append(
            LoggedStep(
                start_ns=int(log.start_ns[index]),
                duration_ns=int(log.duration_ns[index]),
                tokens={request: tokens for request, tokens in pairs if tokens > 0},
                running=log.running_request[running].tolist(),
                waiting=log.waiting_request[waiting].tolist(),
                free_blocks=int(log.free_blocks[index]),
                preemptions=int(log.preemptions[index]),
                gpu_loads=int(log.gpu_loads[index]),
                disk_loads=int(log.disk_loads[index]),
            )
        )
    return steps
