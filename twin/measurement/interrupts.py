"""Stop a measurement from outside: Ctrl-C and the signals that end a process become a request to come to an end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class StopRequest:
    """A request to stop that anybody may make, and the worker looks at or is told of.

    Attributes
    ----------
    reason
        Why; ``None`` as long as nobody asked.
    count
        How often it was asked: the second time may be less polite.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.count = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_made(self) -> bool:
        """Whether somebody asked."""
        return self.reason is not None

    def make(self, reason: str) -> None:
        """Ask; the first reason is kept. May be called from a signal handler."""
        if self.reason is None:
            self.reason = reason
        self.count += 1
        for listener in tuple(self._listeners):
            listener()

    @contextmanager
    def listener(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` at each request while the context lasts, and at once if there was one."""
        self._listeners.append(listener)
        try:
            if self.is_made:
                listener()
            yield
        finally:
            self._listeners.remove(listener)


@contextmanager
def signals_stop(stop: StopRequest) -> Iterator[None]:
    """Turn `SIGNALS` into requests while the context lasts; does nothing outside the main thread.

    A signal that is ignored stays so: whoever started this by ``nohup`` wants it to survive the terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        stop.make(f"interrupted by {signal.Signals(number).name}")

    numbers = [getattr(signal, name) for name in SIGNALS]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
