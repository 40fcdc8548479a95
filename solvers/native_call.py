"""Calls of native searches: that Ctrl-C can end them, and what it means when a limit did."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from solvers.result import Termination
from solvers.run import SolverRun

Result = TypeVar("Result")


def call_interruptibly(call: Callable[[], Result], *, stop: Callable[[], None]) -> Result:
    """Return what `call` returns; on Ctrl-C `stop` it, wait for its end, and raise KeyboardInterrupt again.

    Python handles signals in the main thread between instructions of its own, so native code runs in another thread
    meanwhile. `stop` is called while `call` runs, and must make it return soon.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        try:
            return executor.submit(call).result()
        except BaseException:
            stop()
            raise


def stopped_early(run: SolverRun, library: str) -> Termination:
    """Return why a native search had to stop before it had an answer: the budget's limit, or the default effort."""
    limits = run.budget.budget
    if (ended := run.exhausted()) is not None:
        return ended
    if limits.max_evaluations is not None:
        return Termination.ITERATION_LIMIT
    if limits.seconds is not None:
        return Termination.TIME_LIMIT
    run.notes.append(f"{library} came to the end of its default effort; a budget in seconds allows more.")
    return Termination.COMPLETED
