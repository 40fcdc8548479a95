"""The order of a step's adapters: real sets, filled as vLLM's two model runners fill them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.twin.handmade import STEP_NS, logged_steps, make_inputs
from tests.twin.strategies import assert_traces_equal
from twin.kernel import run_kernel
from twin.load_order import LoadOrder
from twin.recorder import Request, Step
from twin.reference import run_reference
from twin.replica import ReplicaInputs

# All in the first entry of the table, so that a set lists its members in the order in which they were added.
COLLIDING = (0, 8, 16, 24)


def _order(*, v2: bool) -> LoadOrder:
    return LoadOrder(make_inputs([], hashes=COLLIDING, use_v2_model_runner=v2))


def _requests(adapters: Sequence[int]) -> list[Request]:
    return [Request(row, adapter, 4, 4) for row, adapter in enumerate(adapters)]


def _step(requests: Sequence[Request], tokens: Sequence[int]) -> Step:
    return Step(0, 0, 0, dict(zip(requests, tokens, strict=True)))


def test_v1_keeps_the_order_in_which_adapters_entered_the_batch() -> None:
    """Neither tokens nor the end of an adapter's first request change it, as long as another of its requests runs."""
    order = _order(v2=False)
    first, second, third, fourth = _requests([2, 1, 2, 0])
    assert order.adapters(_step([first, second, third, fourth], [4, 1, 1, 1])) == [2, 1, 0]
    assert order.adapters(_step([second, third, fourth], [1, 1, 1])) == [2, 1, 0]


def test_v1_puts_an_adapter_that_comes_back_last() -> None:
    """Its last request has left the batch before the new one enters, even in the same step."""
    order = _order(v2=False)
    first, second, third = _requests([2, 1, 2])
    assert order.adapters(_step([first, second], [1, 1])) == [2, 1]
    assert order.adapters(_step([second, third], [1, 4])) == [1, 2]


def test_v1_lets_new_requests_enter_before_preempted_ones() -> None:
    """The preempted request is ahead in the queue and in the running list, but enters the persistent batch later."""
    order = _order(v2=False)
    stays, preempted, new = _requests([0, 2, 1])
    assert order.adapters(_step([stays, preempted], [1, 4])) == [0, 2]
    assert order.adapters(_step([stays], [1])) == [0]
    assert order.adapters(_step([stays, preempted, new], [1, 4, 4])) == [0, 1, 2]


def test_v2_sorts_the_batch_by_tokens() -> None:
    """Decodes first, then chunks, the short ones first; the running order decides between equals."""
    order = _order(v2=True)
    requests = _requests([3, 2, 1, 0, 2])
    assert order.adapters(_step(requests, [5, 3, 3, 1, 9])) == [0, 2, 1, 3]
    assert order.adapters(_step(requests, [1, 1, 1, 1, 1])) == [3, 2, 1, 0]


def test_the_batch_order_is_that_of_the_running_list() -> None:
    """Without a set the adapters come in order of first appearance."""
    order = LoadOrder(make_inputs([], hashes=(3, 2, 1, 0), load_in_set_order=False))
    assert order.adapters(_step(_requests([3, 1, 3, 0]), [1, 1, 1, 1])) == [3, 1, 0]


def _preempted(*, adapters: Sequence[int], **settings: Any) -> ReplicaInputs:
    """Return a replica that preempts its second request, of adapter 2, and resumes it along with new ones.

    The first request ends while the second waits for its blocks; the two that have arrived by then are new.
    """
    rows = [(0, 0, 4, 8), (0, 2, 4, 12), *((8 * STEP_NS, adapter, 1, 3) for adapter in adapters)]
    return make_inputs(
        [*rows, (40 * STEP_NS, 3, 1, 1), (60 * STEP_NS, 0, 1, 1), (70 * STEP_NS, 1, 1, 1), (80 * STEP_NS, 2, 1, 1)],
        hashes=COLLIDING,
        num_blocks=17,
        max_num_seqs=4,
        num_slots=3,
        cpu_capacity=3,
        gpu_load_ns=1,
        **settings,
    )


@pytest.mark.parametrize("adapters", [(1, 0), (1, 2), (2, 1), (0, 1)])
@pytest.mark.parametrize("v2", [False, True])
def test_engines_agree_where_preempted_requests_come_back_with_new_ones(
    adapters: tuple[int, int],
    v2: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """The order of entry of such a step decides who is evicted later."""
    inputs = _preempted(adapters=adapters, use_v2_model_runner=v2)
    kernel = run_kernel(inputs, log_steps=True, keep_step_table=True)
    assert_traces_equal(kernel, run_reference(inputs, log_steps=True, keep_step_table=True))
    assert kernel.num_preemptions > 0
    resumed = [step for step in logged_steps(kernel) if {1, 2, 3} <= set(step.running)]
    assert resumed


@pytest.mark.parametrize(("v2", "loads"), [(False, [2, 1, 1, 0]), (True, [1, 1, 1, 0])])
def test_the_order_of_the_batch_decides_who_is_evicted(
    v2: bool,  # noqa: FBT001 - a column of the table
    loads: list[int],
) -> None:
    """Adapter 0 enters before 1 and is evicted for 2; under V2 its longer prompt comes after 1, which is evicted."""
    inputs = make_inputs(
        [(0, 0, 5, 1), (0, 1, 1, 1), (20 * STEP_NS, 2, 1, 1), (40 * STEP_NS, 0, 1, 1)],
        hashes=COLLIDING,
        num_slots=2,
        use_v2_model_runner=v2,
    )
    assert run_kernel(inputs).adapter_gpu_loads.tolist() == loads
    assert run_reference(inputs).adapter_gpu_loads.tolist() == loads
