"""What a measurement counts its time by: real time, CPU time, or CPU time of a steady processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

# Longest sleep before looking whether to stop.
NAP_S = 0.1


class MeasurementClock(Protocol):
    """What a measurement counts its time by."""

    def work(self) -> float:
        """Return seconds from some origin, for durations within a step."""

    def begin(self) -> None:
        """Let the time start."""

    def now(self) -> float:
        """Return the time in seconds."""

    def spend(self, work_s: float) -> None:
        """Take note of a step that took so much."""

    def wait_until(self, time_s: float) -> None:
        """Let idle time pass, up to `time_s` or less."""

    def scale(self) -> float:
        """Return what the work since the last call is to be multiplied by."""


class WallClock:
    """Real time since `begin`, plus an offset."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._zero = time.perf_counter()

    def work(self) -> float:
        """Return real seconds from some origin."""
        return time.perf_counter()

    def begin(self) -> None:
        """Let the time start."""
        self._zero = time.perf_counter()

    def now(self) -> float:
        """Return the time in seconds."""
        return self._start_s + time.perf_counter() - self._zero

    def spend(self, work_s: float) -> None:
        """Take note of a step of that many seconds: it has passed already."""

    def wait_until(self, time_s: float) -> None:
        """Sleep until then, or a little."""
        time.sleep(min(max(time_s - self.now(), 0.0), NAP_S))

    def scale(self) -> float:
        """Return 1: real time is what it is."""
        return 1.0


class CpuClock:
    """Time that passes only while the engine computes, by the CPU time of this process; idle time is skipped."""

    def __init__(self, start_s: float) -> None:
        self._now = start_s

    def work(self) -> float:
        """Return the CPU time of this process in seconds."""
        return time.process_time()

    def begin(self) -> None:
        """Let the time start: it stands still between steps."""

    def now(self) -> float:
        """Return the time in seconds."""
        return self._now

    def spend(self, work_s: float) -> None:
        """Let a step's CPU time pass."""
        self._now += work_s

    def wait_until(self, time_s: float) -> None:
        """Be there at once."""
        self._now = max(self._now, time_s)

    def scale(self) -> float:
        """Return 1: CPU time is taken as it is."""
        return 1.0


class SteadyClock(CpuClock):
    """CPU time as a steady processor would need it: that of this process, by how fast it is at the moment.

    Parameters
    ----------
    start_s
        Time at which it starts.
    probe
        Does a fixed piece of work, and returns the CPU seconds that it took.
    reference_s
        What the piece takes on the steady processor.
    sensitivity
        Power of what the piece loses by which the engine's work loses.
    """

    def __init__(self, start_s: float, probe: Callable[[], float], reference_s: float, sensitivity: float) -> None:
        super().__init__(start_s)
        self._probe = probe
        self._reference_s = reference_s
        self._sensitivity = sensitivity
        self._before_s = probe()

    def begin(self) -> None:
        """Let the time start, and see how fast the processor is."""
        self._before_s = self._probe()

    def scale(self) -> float:
        """Return the reference by the mean of the piece of work before and after, to the power of the sensitivity."""
        after_s = self._probe()
        mean_s, self._before_s = 0.5 * (self._before_s + after_s), after_s
        return float((self._reference_s / mean_s) ** self._sensitivity)
