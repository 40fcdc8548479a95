"""Generated replica inputs, and the comparison of two engines' traces."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from twin.replica import ReplicaInputs, ReplicaTrace, StepLog
from twin.step_time import COEFFICIENT_NAMES

MILLISECOND_NS = 1_000_000

# Gaps between arrivals: bursts at one instant, gaps of about one step, and idle times. Hypothesis draws integers evenly
# only from ranges below 24 bits; wider ones give mostly tiny numbers.
_ARRIVAL_GAPS_NS = st.one_of(
    st.just(0),
    st.just(0),
    st.integers(0, 10 * MILLISECOND_NS),
    st.integers(0, 3_000).map(lambda milliseconds: milliseconds * MILLISECOND_NS),
)

# Mostly long enough for everything to finish; else somewhere in the middle of it.
_HORIZONS_NS = st.one_of(
    st.just(1_000_000 * MILLISECOND_NS),
    st.integers(1_000, 60_000).map(lambda milliseconds: milliseconds * MILLISECOND_NS),
    st.tuples(st.integers(0, 300), st.integers(0, MILLISECOND_NS)).map(
        lambda parts: parts[0] * MILLISECOND_NS + parts[1]
    ),
)


@st.composite
def request_columns(draw: st.DrawFn, *, num_adapters: int, max_model_len: int) -> dict[str, Any]:
    """Draw the request columns of `ReplicaInputs`: up to 60 requests, prompts shorter than `max_model_len`.

    Output lengths may reach beyond it. Without adapters (``num_adapters=0``) all requests ask the base model.
    """
    num_requests = draw(st.integers(0, 60))
    rows = draw(
        st.lists(
            st.tuples(
                _ARRIVAL_GAPS_NS,
                st.integers(-1, num_adapters - 1),
                st.integers(1, max_model_len - 1),
                st.integers(1, max_model_len + 2),
            ),
            min_size=num_requests,
            max_size=num_requests,
        )
    )
    gaps, adapters, prompts, outputs = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {
        "arrival_ns": np.cumsum(np.array(gaps, dtype=np.int64), dtype=np.int64),
        "adapter": np.array(adapters, dtype=np.int32),
        "prompt_tokens": np.array(prompts, dtype=np.int32),
        "output_tokens": np.array(outputs, dtype=np.int32),
    }


@st.composite
def adapter_hashes(draw: st.DrawFn, *, num_adapters: int) -> NDArray[np.uint64]:
    """Draw hashes of names: of 64 bits, with few low bits (their first probes collide), or few at all (equal ones)."""
    hashes = st.one_of(
        st.integers(0, 2**64 - 2),
        st.tuples(st.integers(0, 2**56 - 1), st.integers(0, 3)).map(lambda parts: 2**8 * parts[0] + parts[1]),
        st.integers(0, 15),
    )
    return np.array(draw(st.lists(hashes, min_size=num_adapters, max_size=num_adapters)), dtype=np.uint64)


@st.composite
def adapter_columns(draw: st.DrawFn, *, num_adapters: int) -> dict[str, Any]:
    """Draw the adapter columns of `ReplicaInputs`: loads of up to 10 ms, and hashes."""
    load_ns = st.integers(0, 10 * MILLISECOND_NS)
    rows = draw(st.lists(st.tuples(load_ns, load_ns), min_size=num_adapters, max_size=num_adapters))
    return {
        "adapter_hash": draw(adapter_hashes(num_adapters=num_adapters)),
        "gpu_load_ns": np.array([row[0] for row in rows], dtype=np.int64),
        "disk_load_ns": np.array([row[1] for row in rows], dtype=np.int64),
    }


@st.composite
def step_coefficients(draw: st.DrawFn) -> Any:
    """Draw step-time coefficients, none of them zero: a wrong count anywhere in a batch changes the step's duration.

    One scale for all: steps last some milliseconds mostly, sometimes less than the lowest gap bin, or many seconds.
    """
    scale = draw(st.sampled_from([1.0, 1.0, 1.0, 1.0, 1e-3, 1e4]))
    values = draw(
        st.lists(
            st.floats(1e-3, 0.1, allow_subnormal=False),
            min_size=len(COEFFICIENT_NAMES),
            max_size=len(COEFFICIENT_NAMES),
        )
    )
    return np.array(values, dtype=np.float64) * scale


@st.composite
def replica_inputs(draw: st.DrawFn, *, is_synchronous: bool = False) -> ReplicaInputs:
    """Draw a small replica under pressure: few KV blocks, slots and tokens per step, both rule sets and mixed ones.

    With `is_synchronous`, no step is scheduled before the results of the one before it are there.
    """
    num_adapters = draw(st.integers(1, 10))
    num_slots = draw(st.one_of(st.integers(0, 4), st.integers(5, 7)))
    max_model_len = draw(st.integers(2, 64))
    block_size = draw(st.sampled_from([1, 2, 4, 7, 16]))
    blocks_of_longest = -(-max_model_len // block_size)
    budget = draw(st.integers(8, 64))
    is_asynchronous = not is_synchronous and draw(st.booleans())
    return ReplicaInputs(
        **draw(request_columns(num_adapters=num_adapters if num_slots else 0, max_model_len=max_model_len)),
        **draw(adapter_columns(num_adapters=num_adapters)),
        step_coefficients=draw(step_coefficients()),
        num_blocks=1 + blocks_of_longest + draw(st.integers(0, 2 * blocks_of_longest)),
        block_size=block_size,
        watermark_blocks=draw(st.sampled_from([0, 0, 1, 3])),
        num_slots=num_slots,
        cpu_capacity=max(num_slots, 1) + draw(st.integers(0, 3)),
        max_lora_rank=draw(st.sampled_from([8, 16, 32, 64])),
        max_num_seqs=draw(st.integers(1, min(budget, 16))),
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        long_prefill_token_threshold=draw(st.sampled_from([0, 1, 5, 16])),
        reserve_full_isl=draw(st.booleans()),
        keep_last_token_free=is_asynchronous or draw(st.booleans()),
        threshold_when_alone=draw(st.booleans()),
        load_in_set_order=draw(st.sampled_from([True, True, False])),
        use_v2_model_runner=draw(st.booleans()),
        async_scheduling=is_asynchronous,
        horizon_ns=draw(_HORIZONS_NS),
        sample_interval_ns=draw(st.sampled_from([0, 20 * MILLISECOND_NS, 999_999_937, 2_000_000 * MILLISECOND_NS])),
    )


def assert_traces_equal(left: ReplicaTrace, right: ReplicaTrace) -> None:
    """Assert that two traces agree in every field, dtypes too; the message names the earliest step that differs."""
    if left.step_log is not None and right.step_log is not None:
        _assert_step_logs_equal(left.step_log, right.step_log)
    else:
        assert (left.step_log is None) == (right.step_log is None), "only one of the traces has a step log"
    for field in fields(ReplicaTrace):
        if field.name != "step_log":
            _assert_field_equal(field.name, getattr(left, field.name), getattr(right, field.name))


def _assert_step_logs_equal(left: StepLog, right: StepLog) -> None:
    for step in range(min(len(left.start_ns), len(right.start_ns))):
        expected, actual = _step(left, step), _step(right, step)
        differing = [name for name, value in expected.items() if value != actual[name]]
        assert not differing, f"step {step} differs in {', '.join(differing)}:\n  left  {expected}\n  right {actual}"
    assert len(left.start_ns) == len(right.start_ns), f"{len(left.start_ns)} steps against {len(right.start_ns)}"
    for field in fields(StepLog):
        _assert_field_equal(f"step_log.{field.name}", getattr(left, field.name), getattr(right, field.name))


def _step(log: StepLog, step: int) -> dict[str, Any]:
    """Return one step of the log as plain values."""
    running = slice(int(log.running_offset[step]), int(log.running_offset[step + 1]))
    waiting = slice(int(log.waiting_offset[step]), int(log.waiting_offset[step + 1]))
    return {
        "start_ns": int(log.start_ns[step]),
        "running": log.running_request[running].tolist(),
        "tokens": log.running_tokens[running].tolist(),
        "waiting": log.waiting_request[waiting].tolist(),
        "free_blocks": int(log.free_blocks[step]),
        "slots": log.slot_adapter[int(log.slot_offset[step]) : int(log.slot_offset[step + 1])].tolist(),
        "cached": log.cached_adapter[int(log.cached_offset[step]) : int(log.cached_offset[step + 1])].tolist(),
        "preemptions": int(log.preemptions[step]),
        "gpu_loads": int(log.gpu_loads[step]),
        "disk_loads": int(log.disk_loads[step]),
        "duration_ns": int(log.duration_ns[step]),
    }


def _assert_field_equal(name: str, left: Any, right: Any) -> None:
    if not isinstance(left, np.ndarray):
        assert type(left) is type(right), f"{name}: {type(left).__name__} against {type(right).__name__}"
        assert left == right, f"{name}: {left} against {right}"
        return
    assert left.dtype == right.dtype, f"{name}: dtype {left.dtype} against {right.dtype}"
    assert left.shape == right.shape, f"{name}: shape {left.shape} against {right.shape}"
    places = np.argwhere(left != right)
    if len(places):
        first = tuple(places[0].tolist())
        raise AssertionError(f"{name}{list(first)}: {left[first]} against {right[first]} ({len(places)} places differ)")
