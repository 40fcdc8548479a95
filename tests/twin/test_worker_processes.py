"""Starting worker processes: Ctrl-C waits until they are there, and then has its effect."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from twin.worker_processes import interrupts_withheld


def _interrupted_start(thread: int, passed: list[str]) -> None:
    with interrupts_withheld():
        signal.pthread_kill(thread, signal.SIGINT)
        # Python looks for signals between two instructions of this thread.
        time.sleep(0.05)
        passed.append("all started")
    passed.append("forgotten")


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
def test_ctrl_c_that_another_thread_hears_waits_for_the_workers() -> None:
    """It would otherwise end the start half-way, with a traceback of each worker; afterwards it is not forgotten."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    passed: list[str] = []
    try:
        assert thread.ident is not None
        with pytest.raises(KeyboardInterrupt):
            _interrupted_start(thread.ident, passed)
    finally:
        done.set()
        thread.join()
    assert passed == ["all started"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
