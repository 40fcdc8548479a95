"""Both engines against steps that vLLM took once: on machines without vLLM (tests/vllm runs it)."""

from collections.abc import Callable

import pytest

from tests.twin.strategies import assert_traces_equal
from tests.vllm.golden import GoldenRun, read_golden, recorded_version
from twin.kernel import run_kernel
from twin.reference import run_reference
from twin.replica import ReplicaTrace
from twin.vllm_python import TESTED_VERSIONS, minor_version

RUNS = read_golden()


@pytest.mark.parametrize("run", [run_kernel, run_reference])
@pytest.mark.parametrize("recorded", RUNS.values(), ids=RUNS.keys())
def test_an_engine_takes_the_steps_that_vllm_took(recorded: GoldenRun, run: Callable[..., ReplicaTrace]) -> None:
    """Tokens, queues, blocks, loads, both caches in order of use, and every statistic."""
    assert_traces_equal(recorded.trace, run(recorded.inputs, log_steps=True, keep_step_table=True))


def test_the_recorded_runs_are_many_and_of_a_version_that_is_tested() -> None:
    """Thousands of steps, with preemptions, evictions and both orders of the load."""
    assert minor_version(recorded_version()) in TESTED_VERSIONS
    traces = [recorded.trace for recorded in RUNS.values()]
    assert len(traces) >= 12
    assert sum(trace.num_steps for trace in traces) > 4000
    assert sum(trace.num_preemptions for trace in traces) > 200
    assert sum(int(trace.adapter_disk_loads.sum()) for trace in traces) > 300
    assert {recorded.inputs.use_v2_model_runner for recorded in RUNS.values()} == {True, False}
