"""What a replica serves at a time: against the engine's own log, and against counting."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.twin.test_simulate import make_adapters, make_replica
from twin.activity import activity_at, num_before
from twin.kernel import run_kernel
from twin.replica import build_inputs
from twin.simulate import simulate_in_detail
from twin.workload import Workload

WORKLOAD = Workload(make_adapters([0.6, 0.4, 0.3, 0.2, 0.1, 0.1]))
SIMULATION = simulate_in_detail(WORKLOAD, make_replica(max_loras=3), horizon_s=60)


def test_at_the_start_of_a_step_it_is_the_batch_of_that_step() -> None:
    """The log has the running list after scheduling; nothing is preempted here."""
    requests = WORKLOAD.requests(horizon_s=60)
    inputs = build_inputs(WORKLOAD, requests, make_replica(max_loras=3), horizon_s=60)
    trace = run_kernel(inputs, log_steps=True)
    log = trace.step_log
    assert log is not None
    assert trace.num_preemptions == 0
    batches = np.split(log.running_request, log.running_offset[1:-1])
    activity = activity_at(inputs, trace, log.start_ns)
    assert activity.running.tolist() == [len(batch) for batch in batches]
    assert activity.active_adapters.tolist() == [len(set(inputs.adapter[batch].tolist())) for batch in batches]
    assert activity.active_adapters.max() == 3


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 30), st.none() | st.integers(1, 12)), max_size=20),
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
)
def test_it_is_what_counting_gives(rows: list[tuple[int, int, int | None]], times: list[int]) -> None:
    """For any requests: adapter, start (-1: never), and how long they are served (None: beyond the end)."""
    finishes = [-1 if start < 0 or length is None else start + length for _, start, length in rows]
    inputs = replace(SIMULATION.inputs, adapter=np.array([row[0] for row in rows], dtype=np.int32))
    trace = replace(
        SIMULATION.trace,
        first_scheduled_ns=np.array([row[1] for row in rows], dtype=np.int64),
        finish_ns=np.array(finishes, dtype=np.int64),
    )
    activity = activity_at(inputs, trace, np.array(sorted(times), dtype=np.int64))
    for position, time in enumerate(sorted(times)):
        served = [
            adapter
            for (adapter, start, _), finish in zip(rows, finishes, strict=True)
            if 0 <= start <= time and (finish < 0 or time < finish)
        ]
        assert activity.running[position] == len(served)
        assert activity.active_adapters[position] == len(set(served) - {-1})


@given(
    st.lists(st.integers(0, 10**13), min_size=1, max_size=30),
    st.lists(st.integers(-1, 10**13), max_size=30),
    st.integers(1, 40),
)
def test_times_before_a_value_are_counted_as_by_searching(times: list[int], values: list[int], num_even: int) -> None:
    """For evenly spaced times, for any others, for equal ones, and for values that are among them."""
    evenly = np.linspace(min(times), max(times), num_even, endpoint=False).astype(np.int64)
    for sorted_times in (np.array(sorted(times), dtype=np.int64), evenly):
        asked = np.concatenate([np.array(values, dtype=np.int64), sorted_times, sorted_times + 1])
        assert np.searchsorted(sorted_times, asked).tolist() == num_before(sorted_times, asked).tolist()
