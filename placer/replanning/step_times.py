"""How long the steps of a migration take, and who says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from placer.replanning.stations import Station
from solvers.problem import Problem


@dataclass(frozen=True)
class StepTimes:
    """Seconds of steps.

    Attributes
    ----------
    problem
        Whose profiles say how long a replica of so many slots takes to start, and an adapter to load.
    startup_s
        Of any start instead; ``None``: the profile's.
    """

    problem: Problem
    startup_s: float | None = None

    def start_s(self, station: Station) -> float:
        """Return the seconds from launch to ready."""
        if self.startup_s is not None:
            return self.startup_s
        startup = self.problem.profiles[station.gpu_type].startup
        return startup.base_s + startup.per_slot_s * station.engine.num_slots

    def load_s(self, station: Station, adapters: Iterable[int]) -> float:
        """Return the seconds that adapters take from disk into slots, one after the other."""
        profile, rank = self.problem.profiles[station.gpu_type], station.engine.max_lora_rank
        times = (profile.load_time_ms(self.problem.adapters[adapter].rank, rank) for adapter in adapters)
        return sum(to_gpu_ms + from_disk_ms for to_gpu_ms, from_disk_ms in times) / 1000.0

    @property
    def startup_source(self) -> str:
        """Where the time of a start comes from."""
        if self.startup_s is not None:
            return f"given: {self.startup_s:g} s"
        texts = [
            f"profile {profile.name}: {profile.startup.base_s:g} s + {profile.startup.per_slot_s:g} s for each slot"
            for profile in self.problem.profiles
        ]
        return "; ".join(dict.fromkeys(texts))
