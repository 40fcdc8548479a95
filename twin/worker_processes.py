"""Start the processes of joblib so that Ctrl-C on a terminal reaches the program alone, which then ends them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

import joblib

# What is left when Ctrl-C ends a program is removed by the process that says so.
_WITHOUT_LEFTOVERS = "ignore:resource_tracker:UserWarning"


def start_workers(num_workers: int) -> None:
    """Start the worker processes that the next `joblib.Parallel` of as many jobs uses (its backend ``loky``).

    A terminal sends Ctrl-C to every process. Workers that hear it print a traceback each, above all while they load
    libraries, where nothing of ours can catch it yet. These never hear it. With one worker nothing is started: joblib
    then works in this process.
    """
    if num_workers > 1:
        with _warnings_withheld():
            # Started by the first worker, this process of Python's own would end the withholding of Ctrl-C.
            resource_tracker.ensure_running()
            with interrupts_withheld():
                joblib.Parallel(n_jobs=num_workers)(joblib.delayed(int)() for _ in range(num_workers))


@contextmanager
def interrupts_withheld() -> Iterator[None]:
    """Let Ctrl-C wait while the context lasts; processes started in it never hear it.

    Blocking the signal in this thread is what they inherit. It may still reach another thread of this process, and
    Python would then raise KeyboardInterrupt here all the same: workers would find half of what they are sent.
    """
    heard: list[FrameType | None] = []
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGINT, lambda _, frame: heard.append(frame))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if heard and callable(handler):
        handler(signal.SIGINT, heard[0])


@contextmanager
def _warnings_withheld() -> Iterator[None]:
    """Let processes that are started in the context not warn of what others left behind."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before},{_WITHOUT_LEFTOVERS}" if before else _WITHOUT_LEFTOVERS
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
