"""Asynchronous scheduling, rule by rule, on replicas small enough to follow by hand; both of the twin's engines."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.twin.handmade import STEP_NS, LoggedStep, logged_steps, make_inputs
from twin.kernel import run_kernel
from twin.reference import run_reference
from twin.replica import ReplicaTrace

Run = Callable[..., ReplicaTrace]
Requests = list[tuple[int, int, int, int]]


@pytest.fixture(params=[run_reference, run_kernel], ids=["simpy", "fast"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return an engine."""
    engine: Run = request.param
    return engine


def _steps(run: Run, requests: Requests, **settings: Any) -> tuple[list[LoggedStep], ReplicaTrace]:
    trace = run(make_inputs(requests, async_scheduling=True, **settings), log_steps=True)
    return logged_steps(trace), trace


def test_a_request_alone_takes_the_same_steps(run: Run) -> None:
    """Its next token is scheduled before the last one is known, and none too many."""
    steps, trace = _steps(run, [(0, 0, 5, 3)])
    assert [step.tokens for step in steps] == [{0: 5}, {0: 1}, {0: 1}]
    assert [step.start_ns for step in steps] == [0, STEP_NS, 2 * STEP_NS]
    assert trace.first_scheduled_ns.tolist() == [0]
    assert (trace.first_token_ns.tolist(), trace.finish_ns.tolist()) == ([STEP_NS], [3 * STEP_NS])


def test_who_arrives_during_a_step_misses_the_next_one(run: Run) -> None:
    """That one was scheduled when the running one began."""
    steps, trace = _steps(run, [(0, 0, 5, 4), (STEP_NS // 2, 0, 5, 1)])
    assert [step.tokens for step in steps] == [{0: 5}, {0: 1}, {0: 1, 1: 5}, {0: 1}]
    assert trace.first_scheduled_ns.tolist() == [0, 2 * STEP_NS]


def test_a_finished_request_holds_its_place_until_the_next_step_is_scheduled(run: Run) -> None:
    """Its successor runs one step later, and nothing runs in between if there is nobody else."""
    steps, trace = _steps(run, [(0, 0, 5, 1), (0, 0, 5, 1), (0, 0, 5, 2)], max_num_seqs=2)
    assert [step.tokens for step in steps] == [{0: 5, 1: 5}, {2: 5}, {2: 1}]
    assert trace.finish_ns.tolist() == [STEP_NS, STEP_NS, 3 * STEP_NS]
    steps, _ = _steps(run, [(0, 0, 5, 1), (0, 0, 5, 3), (0, 0, 5, 1)], max_num_seqs=2)
    assert [step.tokens for step in steps] == [{0: 5, 1: 5}, {1: 1}, {1: 1, 2: 5}]
    assert [step.running for step in steps] == [[0, 1], [0, 1], [1, 2]]


def test_a_finished_request_holds_its_blocks_but_not_its_adapters_slot(run: Run) -> None:
    """Blocks are free for the step after the next; the slot is free in the next, in which it is not scheduled."""
    steps, _ = _steps(run, [(0, 0, 4, 1), (0, 1, 4, 3), (0, 0, 4, 1)], num_blocks=11, max_num_seqs=9)
    assert [step.tokens for step in steps] == [{0: 4, 1: 4}, {1: 1}, {1: 1, 2: 4}]
    assert [step.free_blocks for step in steps] == [2, 1, 0]
    steps, _ = _steps(run, [(0, 0, 4, 1), (0, 1, 4, 1)], num_slots=1)
    assert [(step.tokens, step.start_ns) for step in steps] == [({0: 4}, 0), ({1: 4}, STEP_NS)]


def test_what_was_sampled_before_a_preemption_still_comes(run: Run) -> None:
    """The victim's token is on its way: it gets it while it waits, and recomputes it with the others."""
    steps, trace = _steps(run, [(0, 0, 3, 5), (0, 0, 3, 5)], num_blocks=9)
    first = next(index for index, step in enumerate(steps) if step.preemptions)
    assert steps[first].waiting == [1]
    again = next(step for step in steps[first + 1 :] if 1 in step.tokens)
    # Three of the prompt, one of each step before, that of the step during which it was preempted included.
    assert again.tokens[1] == 3 + first
    assert trace.generated_tokens.tolist() == [5, 5]
    assert trace.request_preemptions.tolist() == [0, 1]


def test_a_victim_may_finish_while_it_waits(run: Run) -> None:
    """It was preempted with its last token on its way, and needs nothing any more."""
    steps, trace = _steps(run, [(0, 0, 3, 5), (0, 0, 3, 2)], num_blocks=9)
    assert trace.request_preemptions.tolist() == [0, 1]
    (preempting,) = [step for step in steps if step.preemptions]
    assert preempting.waiting == [1]
    assert trace.finish_ns[1] == preempting.start_ns
    assert sum(1 in step.tokens for step in steps) == 2


def test_a_sequence_ends_at_max_model_len(run: Run) -> None:
    """No token is scheduled beyond it."""
    steps, trace = _steps(run, [(0, 0, 6, 50)], max_model_len=10)
    assert [step.tokens for step in steps] == [{0: 6}, {0: 1}, {0: 1}, {0: 1}]
    assert trace.generated_tokens.tolist() == [4]


@pytest.mark.parametrize(("horizon_ns", "num_steps", "generated"), [(2 * STEP_NS, 2, 2), (2 * STEP_NS + 1, 3, 2)])
def test_no_step_begins_at_the_horizon(run: Run, horizon_ns: int, num_steps: int, generated: int) -> None:
    """Also none that was scheduled ahead."""
    _, trace = _steps(run, [(0, 0, 5, 9)], horizon_ns=horizon_ns)
    assert (trace.num_steps, trace.generated_tokens.tolist()) == (num_steps, [generated])
