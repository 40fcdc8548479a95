"""The time that each phase of planning takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from placer.plan_document import Timings


@dataclass
class Stopwatch:
    """Seconds spent in each phase."""

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = 0.0
    phase: str = ""

    def begin(self, phase: str) -> None:
        """End the phase before, and begin `phase`."""
        now = self.clock()
        if self.phase:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.started
        self.phase, self.started = phase, now

    def timings(self) -> Timings:
        """End the last phase and return all times."""
        self.begin("")
        rounded = {f"{name}_s": round(seconds, 3) for name, seconds in self.seconds.items()}
        return Timings(**rounded, total_s=round(sum(self.seconds.values()), 3))
