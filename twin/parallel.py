"""Run one function on many arguments at once, and hear of each result when it is there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Literal, TypeVar

import joblib

from twin.worker_processes import start_workers

T = TypeVar("T")
R = TypeVar("R")


def each_in_parallel(
    function: Callable[[T], R],
    subjects: Sequence[T],
    *,
    workers: int | None,
    backend: Literal["threading", "loky"],
) -> Generator[tuple[int, R], None, None]:
    """Yield position and result of each subject, in the order in which they are done.

    Parameters
    ----------
    function
        Of a module, so that processes can find it.
    workers
        At once; ``None``: one per core that this process may use.
    backend
        ``threading`` for functions that release the interpreter lock, else ``loky`` (processes).
    """
    workers = max(1, min(workers or available_cores(), len(subjects)))
    jobs = (joblib.delayed(_numbered)(function, index, subject) for index, subject in enumerate(subjects))
    if backend == "loky":
        start_workers(workers)
    results = joblib.Parallel(n_jobs=workers, backend=backend, return_as="generator_unordered")(jobs)
    try:
        # Not delegated to: whoever closes this generator would close joblib's before the warnings are off.
        for numbered in results:  # noqa: UP028 - see above
            yield numbered
    finally:
        with warnings.catch_warnings():
            # After Ctrl-C, joblib warns about what nobody waits for any more.
            warnings.simplefilter("ignore")
            results.close()


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numbered(function: Callable[[T], R], index: int, subject: T) -> tuple[int, R]:
    return index, function(subject)
