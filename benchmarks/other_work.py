"""How much of the machine other work took while something was measured: what disturbs a measurement of times."""

from __future__ import annotations

import os
from pathlib import Path

# Columns of the first line of /proc/stat (proc(5)), in ticks: time of guests is part of user time.
_BUSY = (0, 1, 2, 5, 6, 7)
_IDLE = (3, 4)


class OtherWork:
    """Counts from its making on.

    Parameters
    ----------
    stat
        The kernel's account of all processors; where it is missing, as outside of Linux, nothing is known.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._start = self._account()

    def share(self) -> float | None:
        """Return the share of all processors' time since the start that other processes and machines took, in [0, 1].

        What this process and its children that have ended used is its own; ``None`` where the kernel gives no account.
        """
        now = self._account()
        if self._start is None or now is None:
            return None
        busy_s, all_s, own_s = (after - before for after, before in zip(now, self._start, strict=True))
        return min(max((busy_s - own_s) / all_s, 0.0), 1.0) if all_s > 0.0 else 0.0

    def _account(self) -> tuple[float, float, float] | None:
        """Return seconds: that the processors were busy, in all, and of this process with its children."""
        try:
            first = self._stat.read_text(encoding="ascii").splitlines()[0].split()
        except OSError:
            return None
        ticks = [float(field) for field in first[1:9]]
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        busy = sum(ticks[column] for column in _BUSY)
        idle = sum(ticks[column] for column in _IDLE)
        times = os.times()
        own_s = times.user + times.system + times.children_user + times.children_system
        return busy * tick_s, (busy + idle) * tick_s, own_s
