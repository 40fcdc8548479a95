"""What simulations of one replica under several seeds say together: records, and the rule that calls it metastable.

A replica is metastable when its outcome is a matter of chance. Near the load at which all adapter slots fill there are
two regimes: with a slot for every active adapter steps are short and requests leave soon; with all slots taken two to
three times as many requests run, steps are longer, and so more adapters stay active. Either can last for hours, and
arrivals decide which one a replica is in. And a replica just at its capacity starves under some seeds only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

# Between seeds, throughput / offered load may differ by this factor. Over eight seeds of an hour, 86 replicas of which
# most were near saturation differed by 1.034 at most without two regimes, except for one far beyond saturation (1.10);
# benchmarks/metastability.py says so.
MOST_THROUGHPUT_FACTOR = 1.05
# The same for the mean number of running requests: 1.15 at most without two regimes (1.49 for that one replica), and
# two to three between them. Less than two, because a run that changes regimes has a mean between theirs.
MOST_RUNNING_FACTOR = 1.25
# What is apart must also be so by this many standard errors of its difference: short runs, bursty arrivals and long
# queues scatter. They come from eight parts of each run, and the farthest of several runs are compared.
NUM_ERRORS = 4.0
# Within one run, a part of the window belongs to a regime when all slots are taken in this share of it, or are not:
# with few slots they fill and empty many times in every part.
REGIME_SHARE = 0.9
# So many parts of each regime make a change of regimes ...
LEAST_REGIME_PARTS = 2
# ... when the running requests of these parts differ by this factor: 1.45 at most without two regimes, 1.6 to 2.2
# between them. Where few adapters fill the KV cache, it is the regime with all slots taken that has fewer.
MOST_CHANGE_FACTOR = 1.55

# Two regimes: or one that recovers so slowly that within the horizon it is as good as a second one.
Evidence = Literal["verdict flips", "throughput differs", "two regimes"]


class Disagreement(BaseModel):
    """One piece of evidence that a replica is metastable, and its numbers in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evidence: Evidence
    detail: str

    def __str__(self) -> str:
        """Return both as one phrase."""
        return f"{self.evidence}: {self.detail}"


class SlotUse(BaseModel):
    """Whether one run of a replica with fewer slots than adapters changes regimes.

    Attributes
    ----------
    taken_share
        Share of the measured window in which all slots were taken.
    num_taken_parts, num_free_parts
        Parts of the window in which all slots were taken (almost) all the time, and (almost) never.
    running_while_taken, running_while_free
        Mean running requests in those parts; ``None`` where there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    taken_share: float
    num_taken_parts: int
    num_free_parts: int
    running_while_taken: float | None
    running_while_free: float | None

    @property
    def changes_regimes(self) -> bool:
        """Whether there is time with all slots taken and time without, far apart in running requests."""
        if self.running_while_taken is None or self.running_while_free is None:
            return False
        low, high = sorted((self.running_while_taken, self.running_while_free))
        num_parts = min(self.num_taken_parts, self.num_free_parts)
        return num_parts >= LEAST_REGIME_PARTS and high > MOST_CHANGE_FACTOR * low


class SeedOutcome(BaseModel):
    """One run of a replica.

    Attributes
    ----------
    offered_tps, throughput_ratio, is_starved, running_mean
        As in `SimulationReport`.
    num_starved_adapters
        Adapters that starve by their own ratio.
    throughput_error
        Standard error of `throughput_ratio`, from what arrives and is completed in parts of the measured window.
    running_error
        Standard error of `running_mean`, from its means over parts of the window.
    late_running
        Mean running requests in equal parts of the second half of the window.
    slots
        ``None`` when there is a slot for every adapter, or none at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    offered_tps: float
    throughput_ratio: float
    throughput_error: float
    is_starved: bool
    num_starved_adapters: int
    running_mean: float
    running_error: float
    late_running: tuple[float, ...]
    slots: SlotUse | None

    @property
    def has_starvation(self) -> bool:
        """Whether the replica or any of its adapters starves."""
        return self.is_starved or self.num_starved_adapters > 0

    @property
    def late_running_mean(self) -> float:
        """Mean running requests in the second half of the window."""
        return sum(self.late_running) / len(self.late_running)


class StabilityReport(BaseModel):
    """What several runs of one replica say together.

    Attributes
    ----------
    varies
        What the seeds change.
    runs
        One per seed, at least one.
    backlog_s
        Seconds of traffic that waited at the start of `after_backlog`.
    after_backlog
        The run with the fewest running requests, once more, with the backlog; ``None`` when there are no requests.
    throughput_spread
        Largest minus smallest throughput ratio of `runs`.
    running_factor
        Largest / smallest mean number of running requests of `runs`; ``None`` when the smallest is 0.
    num_starved
        Runs in which the replica or any adapter starves.
    is_metastable, reasons
        Whether there is any evidence of it, and which.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    horizon_s: float
    warmup_s: float
    varies: str
    runs: tuple[SeedOutcome, ...]
    backlog_s: float
    after_backlog: SeedOutcome | None
    throughput_spread: float
    running_factor: float | None
    num_starved: int
    is_metastable: bool
    reasons: tuple[Disagreement, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds in order."""
        return tuple(run.seed for run in self.runs)


def find_disagreements(
    *,
    starved: Sequence[bool],
    throughput_ratios: Sequence[float],
    running_means: Sequence[float],
    throughput_errors: Sequence[float] = (),
    running_errors: Sequence[float] = (),
    offered_tps: Sequence[float] = (),
) -> tuple[Disagreement, ...]:
    """Return what seeds disagree about.

    Parameters
    ----------
    starved, throughput_ratios, running_means
        One entry per seed; fewer where a seed has no value.
    throughput_errors, running_errors
        Standard errors; empty: the runs are so long that they are negligible.
    offered_tps
        Offered load of each seed, to whose differences running requests are proportional; empty: they are negligible.
    """
    found = []
    if 0 < sum(starved) < len(starved):
        found.append(_flip(f"the replica starves with {sum(starved)} of {len(starved)} seeds"))
    if _differ(throughput_ratios, throughput_errors, MOST_THROUGHPUT_FACTOR):
        detail = f"{min(throughput_ratios):.3f} to {max(throughput_ratios):.3f} of the offered load between seeds"
        found.append(Disagreement(evidence="throughput differs", detail=detail))
    if _differ(
        _at_equal_load(running_means, offered_tps), _at_equal_load(running_errors, offered_tps), MOST_RUNNING_FACTOR
    ):
        found.append(_regimes(f"{min(running_means):.3g} to {max(running_means):.3g} running requests between seeds"))
    return tuple(found)


def judge_runs(runs: Sequence[SeedOutcome], after_backlog: SeedOutcome | None) -> tuple[Disagreement, ...]:
    """Return all evidence that a replica is metastable.

    Parameters
    ----------
    runs
        One per seed.
    after_backlog
        The run of one of these seeds that starts with a backlog, if there is one.
    """
    found = list(
        find_disagreements(
            starved=[run.is_starved for run in runs],
            throughput_ratios=[run.throughput_ratio for run in runs],
            running_means=[run.running_mean for run in runs],
            throughput_errors=[run.throughput_error for run in runs],
            running_errors=[run.running_error for run in runs],
            offered_tps=[run.offered_tps for run in runs],
        )
    )
    num_starving = sum(run.num_starved_adapters > 0 for run in runs)
    if 0 < num_starving < len(runs):
        found.append(_flip(f"adapters starve with {num_starving} of {len(runs)} seeds"))
    changing = [(run.seed, run.slots) for run in runs if run.slots is not None and run.slots.changes_regimes]
    if changing:
        found.append(_change(changing, len(runs)))
    if after_backlog is not None:
        before = next(run for run in runs if run.seed == after_backlog.seed)
        found += _after_backlog(before, after_backlog)
    return tuple(found)


def _at_equal_load(values: Sequence[float], offered_tps: Sequence[float]) -> list[float]:
    """Return values as if all seeds offered the mean load; empty values, or loads, stay as they are."""
    if not values or not offered_tps:
        return list(values)
    mean_tps = sum(offered_tps) / len(offered_tps)
    return [
        value * mean_tps / load_tps if load_tps > 0 else 0.0
        for value, load_tps in zip(values, offered_tps, strict=True)
    ]


def _differ(values: Sequence[float], errors: Sequence[float], factor: float) -> bool:
    """Return whether any two values are apart by more than `factor`, and by more than their errors explain."""
    entries = list(zip(values, errors or [0.0] * len(values), strict=True))
    return any(
        high > factor * low and high - low > NUM_ERRORS * math.hypot(high_error, low_error)
        for (high, high_error), (low, low_error) in itertools.permutations(entries, 2)
    )


def _change(changing: Sequence[tuple[int, SlotUse]], num_seeds: int) -> Disagreement:
    """Describe the run that is most evenly divided between the regimes."""
    seed, slots = max(changing, key=lambda entry: min(entry[1].num_taken_parts, entry[1].num_free_parts))
    return _regimes(
        f"it changes between them with {len(changing)} of {num_seeds} seeds; with seed {seed}, all slots are taken "
        f"{slots.taken_share:.0%} of the time, with {slots.running_while_taken:.3g} running requests then and "
        f"{slots.running_while_free:.3g} else"
    )


def _after_backlog(before: SeedOutcome, after: SeedOutcome) -> list[Disagreement]:
    most = MOST_RUNNING_FACTOR * max(before.late_running)
    if sum(running > most for running in after.late_running) < LEAST_REGIME_PARTS:
        return []
    means = (
        f"{before.late_running_mean:.3g} running requests with seed {before.seed}, and {after.late_running_mean:.3g}"
    )
    return [_regimes(f"{means} after a backlog")]


def _flip(detail: str) -> Disagreement:
    return Disagreement(evidence="verdict flips", detail=detail)


def _regimes(detail: str) -> Disagreement:
    return Disagreement(evidence="two regimes", detail=detail)
