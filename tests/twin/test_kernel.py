"""The compiled engine against the readable one, and what only the compiled one has."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.twin.handmade import STEP_NS, coefficients, long_run_inputs, make_inputs
from tests.twin.strategies import adapter_hashes, assert_traces_equal, replica_inputs
from twin import kernel, step_clock, step_time
from twin.errors import TwinError
from twin.kernel import COMPILED_MODULES, run_kernel
from twin.kernel_sets import sort_like_a_set
from twin.kernel_state import MEMBERS, gap_bin_edges, make_scratch
from twin.load_order import AdapterName
from twin.recorder import gap_bin
from twin.reference import run_reference
from twin.replica import NUM_GAP_BINS, ReplicaInputs, ReplicaTrace

Run = Callable[..., ReplicaTrace]

# What only compiled code calls has no wrapper for Python.
_sort_like_a_set: Any = numba.njit(lambda hashes, scratch, count: sort_like_a_set(hashes, scratch, count))  # noqa: PLW0108


@pytest.fixture(scope="module")
def interpreted_kernel() -> Run:
    """Return `run_kernel` of a second copy of the engine's modules whose functions are plain Python."""
    names = [name for name in sys.modules if name.startswith("twin.kernel")]
    compiled = {name: sys.modules.pop(name) for name in names}
    settings_of_numba: Any = numba.config
    settings_of_numba.DISABLE_JIT = True
    try:
        interpreted: ModuleType = importlib.import_module("twin.kernel")
    finally:
        settings_of_numba.DISABLE_JIT = False
        for name in list(sys.modules):
            if name.startswith("twin.kernel"):
                del sys.modules[name]
        sys.modules.update(compiled)
        sys.modules["twin"].kernel = kernel  # type: ignore[attr-defined]
    run: Run = interpreted.run_kernel
    return run


@pytest.mark.no_cover  # other tests of both engines run the same lines
@settings(max_examples=250)
@given(inputs=replica_inputs())
def test_kernel_equals_reference(inputs: ReplicaInputs) -> None:
    """Both engines take the same steps, to the nanosecond, block and queue position."""
    assert_traces_equal(
        run_kernel(inputs, log_steps=True, keep_step_table=True),
        run_reference(inputs, log_steps=True, keep_step_table=True),
    )


@settings(max_examples=50)
@given(inputs=replica_inputs())
def test_the_gaps_of_single_adapters_can_be_left_out(inputs: ReplicaInputs) -> None:
    """Nothing else changes."""
    full, short = run_kernel(inputs), run_kernel(replace(inputs, counts_adapter_gaps=False))
    assert not short.adapter_gap_histogram.any()
    assert_traces_equal(replace(full, adapter_gap_histogram=short.adapter_gap_histogram), short)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=replica_inputs())
def test_compiled_code_does_what_its_source_says(inputs: ReplicaInputs, interpreted_kernel: Run) -> None:
    """Unsigned loops, missing reference counts and the numpy error model change nothing."""
    assert_traces_equal(
        run_kernel(inputs, log_steps=True, keep_step_table=True),
        interpreted_kernel(inputs, log_steps=True, keep_step_table=True),
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=replica_inputs())
def test_both_engines_report_the_same_counts_of_every_step(
    inputs: ReplicaInputs, interpreted_kernel: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step's time may depend on is counted alike, also where no coefficient makes the time depend on it."""
    reported: list[list[int]] = []

    def noting(_: Any, *counts: int) -> float:
        reported.append([int(count) for count in counts])
        return step_time.step_time_ms(inputs.step_coefficients, *counts)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(step_clock, "step_time_ms", noting)
        duration_ns = _globals(interpreted_kernel, "duration_ns")["duration_ns"]
        patch.setitem(_globals(duration_ns, "_compiled_step_time_ms"), "_compiled_step_time_ms", noting)
        run_reference(inputs)
        expected, reported = reported, []
        interpreted_kernel(inputs)
    assert reported == expected


def _globals(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Return the globals of the module of `function`, which has `name`."""
    module: dict[str, Any] = function.__globals__
    assert name in module
    return module


@settings(max_examples=50)
@given(inputs=replica_inputs())
def test_logging_changes_nothing(inputs: ReplicaInputs) -> None:
    """The step log is an observation."""
    logged, bare = run_kernel(inputs, log_steps=True), run_kernel(inputs)
    assert bare.step_log is None
    assert logged.finish_ns.tolist() == bare.finish_ns.tolist()
    assert logged.num_steps == bare.num_steps


@settings(max_examples=100)
@given(inputs=replica_inputs(is_synchronous=True))
def test_every_request_is_somewhere(inputs: ReplicaInputs) -> None:
    """Arrived = finished + running + waiting, tokens per step within the budget, blocks conserved."""
    trace = run_kernel(inputs, log_steps=True)
    log = trace.step_log
    assert log is not None
    finished = trace.finish_ns >= 0
    assert not np.any(finished & trace.is_running)
    for step in range(trace.num_steps):
        tokens = log.running_tokens[log.running_offset[step] : log.running_offset[step + 1]]
        assert 0 < int(tokens.sum()) <= inputs.max_num_batched_tokens
        assert len(tokens) <= inputs.max_num_seqs
        assert 0 <= log.free_blocks[step] <= inputs.num_blocks - 1
        running = log.running_request[log.running_offset[step] : log.running_offset[step + 1]]
        waiting = log.waiting_request[log.waiting_offset[step] : log.waiting_offset[step + 1]]
        start = log.start_ns[step]
        gone = np.flatnonzero(finished & (trace.finish_ns <= start))
        arrived = np.flatnonzero(inputs.arrival_ns <= start)
        assert sorted([*running, *waiting, *gone]) == arrived.tolist()


@settings(max_examples=100)
@given(inputs=replica_inputs(is_synchronous=True))
def test_every_running_request_gets_a_token_in_every_step(inputs: ReplicaInputs) -> None:
    """The readable engine, whose rules allow otherwise, shows what the compiled one relies on."""
    log = run_reference(inputs, log_steps=True).step_log
    assert log is not None
    assert log.running_tokens.min(initial=1) >= 1


@pytest.mark.parametrize("seed", range(12))
def test_kernel_equals_reference_on_longer_runs(seed: int) -> None:
    """Hundreds of requests on tens of adapters, with and without scarcity of slots, blocks and sequences."""
    inputs = long_run_inputs(seed)
    assert_traces_equal(
        run_kernel(inputs, log_steps=True, keep_step_table=True),
        run_reference(inputs, log_steps=True, keep_step_table=True),
    )


def test_gap_bins_have_the_edges_of_their_formula() -> None:
    """The smallest gap of each bin is in it, and the next smaller one is not."""
    edges = gap_bin_edges()[1:-1].tolist()
    assert [gap_bin(edge) for edge in edges] == list(range(1, NUM_GAP_BINS))
    assert [gap_bin(edge - 1) for edge in edges] == list(range(NUM_GAP_BINS - 1))


def test_the_first_request_of_an_adapter_decides_its_turn_in_batch_order() -> None:
    """When the first request of adapter 0 ends, adapter 1 comes first: it is evicted first, and 0 is still there."""
    inputs = make_inputs(
        [(0, 0, 1, 2), (0, 1, 1, 5), (0, 0, 1, 5), (20 * STEP_NS, 2, 1, 1), (40 * STEP_NS, 0, 1, 1)],
        num_slots=2,
        load_in_set_order=False,
    )
    assert run_kernel(inputs).adapter_gpu_loads.tolist() == [1, 1, 1, 0]
    assert_traces_equal(
        run_kernel(inputs, log_steps=True, keep_step_table=True),
        run_reference(inputs, log_steps=True, keep_step_table=True),
    )


def test_a_long_log_grows() -> None:
    """A log that outgrows its buffers is taken again with larger ones."""
    inputs = make_inputs([(0, 0, 4, 3000)], num_blocks=5000, max_model_len=4096, horizon_ns=10**13)
    assert_traces_equal(
        run_kernel(inputs, log_steps=True, keep_step_table=True),
        run_reference(inputs, log_steps=True, keep_step_table=True),
    )


def test_long_overloads_do_not_overflow() -> None:
    """Blocks and queue lengths times nanoseconds exceed 64 bits within days: 1,000 steps of 1,000 s show it."""
    inputs = make_inputs(
        [(0, 0, 90_000, 2000), *[(0, 0, 1, 1)] * 12_000],
        step_coefficients=coefficients(base_ms=1e6),
        max_num_seqs=1,
        max_num_batched_tokens=100_000,
        max_model_len=100_000,
        num_blocks=100_000,
        horizon_ns=10**15,
    )
    trace = run_kernel(inputs)
    assert trace.used_blocks_integral > 2.0**63
    assert trace.waiting_integral > 2.0**63
    assert_traces_equal(trace, run_reference(inputs))


def test_gaps_of_a_day_can_be_counted() -> None:
    """One adapter on 256 sequences at 100 steps per second has 2^31 gaps, often in one bin, before the day ends."""
    assert run_kernel(make_inputs([])).adapter_gap_histogram.dtype == np.int64


def test_a_stalled_replica_is_an_error() -> None:
    """A cache that is smaller than one request would never make progress."""
    inputs = make_inputs([(0, 0, 40, 4)], num_blocks=2)
    with pytest.raises(TwinError, match="schedule at least one token"):
        run_kernel(inputs)


def _in_order_of_a_set(hashes: NDArray[np.uint64], members: list[int]) -> list[int]:
    """Return `members` as the compiled engine orders them."""
    scratch = make_scratch(len(members))
    scratch[MEMBERS, : len(members)] = members
    _sort_like_a_set(hashes.view(np.int64), scratch, len(members))
    return [int(member) for member in scratch[MEMBERS, : len(members)]]


def _names(hashes: NDArray[np.uint64], members: list[int]) -> list[AdapterName]:
    names = [AdapterName(adapter, value) for adapter, value in enumerate(hashes.tolist())]
    return [names[member] for member in members]


@settings(max_examples=300)
@given(data=st.data())
def test_colliding_names_are_ordered_as_in_a_real_set(data: st.DataObject) -> None:
    """Probing, jumps of the perturbed hash, and growth: the order is that of a set filled in the same order."""
    hashes = data.draw(adapter_hashes(num_adapters=data.draw(st.integers(1, 100))))
    members = data.draw(st.permutations(range(len(hashes))))
    assert _in_order_of_a_set(hashes, members) == [name.adapter for name in set(_names(hashes, members))]


@pytest.mark.parametrize("num_members", [1, 4, 5, 18, 19, 76, 77, 306, 307, 1228, 1229, 4000])
def test_sets_of_any_size_are_ordered_as_real_ones(num_members: int) -> None:
    """Around every size at which a set grows."""
    generator = np.random.default_rng(num_members)
    hashes = generator.integers(0, 2**64 - 1, num_members, dtype=np.uint64)
    members = generator.permutation(num_members).tolist()
    assert _in_order_of_a_set(hashes, members) == [name.adapter for name in set(_names(hashes, members))]


def test_the_cache_key_covers_the_compiled_modules() -> None:
    """A change in any module that is compiled into the entry must not meet an old cache entry."""
    # What only the Python around the compiled code uses: of all modules, and of the fleets' entry.
    python_of = {"kernel_fleet.py": {"twin.kernel", "twin.workload"}}
    for file in (Path(kernel.__file__), *Path(kernel.__file__).parent.glob("kernel_*.py")):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        imported = {f"{node.module}" for node in nodes if isinstance(node, ast.ImportFrom)}
        python = {"twin.errors", "twin.kernel_trace"} | python_of.get(file.name, set())
        compiled = {name for name in imported if name.startswith("twin.")} - python
        assert compiled <= {module.__name__ for module in COMPILED_MODULES}, file.name


def test_the_first_run_is_known_to_compile(tmp_path: Path) -> None:
    """With an empty cache the compiler has to run; with the cache of a process before, it has not, but for another."""
    script = "from twin.kernel import kernel_is_cached as k; print(k(), k(is_asynchronous=True))"
    run = "from tests.twin.test_kernel import run_once; run_once()"
    answers = [
        subprocess.run(
            [sys.executable, "-c", command],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        ).stdout.strip()
        for command in (script, run, script)
    ]
    assert answers == ["False False", "", "True False"]


def run_once() -> None:
    """Compile the engine, or load it from the cache, and run one request."""
    run_kernel(make_inputs([(0, 0, 4, 4)]))
