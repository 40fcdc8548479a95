"""Calls of native code that Ctrl-C can end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def call_interruptibly(call: Callable[[], Result], *, stop: Callable[[], None]) -> Result:
    """Return what `call` returns; on Ctrl-C `stop` it, wait for its end, and raise KeyboardInterrupt.

    Python handles signals in the main thread between instructions of its own, so native code runs in another thread
    meanwhile. `stop` is called while `call` runs, and must make it return soon.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        future = executor.submit(call)
        try:
            return future.result()
        except KeyboardInterrupt:
            stop()
            raise
