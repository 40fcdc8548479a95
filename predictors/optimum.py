"""The best configuration of one GPU by search in the twin: how many adapters of a population, with how many slots.

Best is what arXiv 2508.08343 asks for: the most throughput of completed requests without starvation or a memory error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from predictors.adapter_sequence import AdapterSequence, NestedTraffic
from predictors.capacity import slots_that_start, with_slots
from predictors.configuration_search import Configuration, Verdict, best_of, search_configurations
from predictors.features import ACTIVE_WINDOWS_S, AGGREGATE_NAMES
from predictors.populations import MAX_ADAPTERS
from predictors.scenarios import SLOT_GRID
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import simulate_in_detail
from twin.workload import Adapter, Workload

# About what one GPU serves, in tokens/s: only where the search begins.
_TYPICAL_TPS = 9_000.0
_ACTIVE = AGGREGATE_NAMES.index(f"active_{ACTIVE_WINDOWS_S[0]:g}s")

# Whose starvation rules a configuration out: that of the replica or any adapter, or of the replica alone (the papers').
StarvationTest = Literal["adapter", "replica"]


@dataclass(frozen=True)
class SearchSettings:
    """How the best configuration is looked for in the twin.

    Attributes
    ----------
    num_seeds
        Simulations of a configuration, >= 1, each with other arrivals; it starves if half of them do.
    seed
        Of the traffic, >= 0.
    horizon_s, warmup_s
        Of each simulation, in seconds; the warm-up is not measured.
    starvation_tolerance
        Share of the load that may go unserved.
    starvation_test
        Whose starvation rules a configuration out.
    most_adapters
        No more are tried, >= 1.
    slot_options
        Numbers of slots that are tried, ascending; those that do not start are left out.
    """

    num_seeds: int = 3
    seed: int = 0
    horizon_s: float = 600.0
    warmup_s: float = 100.0
    starvation_tolerance: float = 0.1
    starvation_test: StarvationTest = "adapter"
    most_adapters: int = MAX_ADAPTERS
    slot_options: tuple[int, ...] = SLOT_GRID


DEFAULT_SEARCH = SearchSettings()


@dataclass(frozen=True)
class Optimum:
    """The best configuration of a population on a GPU.

    Attributes
    ----------
    best
        ``None``: not one adapter is served, whatever the slots.
    by_slots
        The best of each number of slots that could not be ruled out at once, slots ascending.
    is_at_limit
        Whether the search ended at its most adapters, and more might be served.
    num_simulations
        That it took.
    """

    best: Configuration | None
    by_slots: tuple[Configuration, ...]
    is_at_limit: bool
    num_simulations: int


def find_optimum(adapters: Sequence[Adapter], replica: Replica, settings: SearchSettings = DEFAULT_SEARCH) -> Optimum:
    """Return the best configuration of a GPU for a population, by search in the twin.

    Parameters
    ----------
    adapters
        The population; its law counts, not its size (see `AdapterSequence`).
    replica
        Model, GPU, profile, and all settings but `max_loras` and `max_cpu_loras`: all served adapters stay in CPU
        memory.
    settings
        The same settings give the same answer.

    Raises
    ------
    InputError
        When the replica cannot take the adapters: a rank above its `max_lora_rank`, a prompt longer than its context.
    """
    sequence = AdapterSequence(adapters)
    twin = TwinProbe(sequence, replica, settings)
    options = list(slots_that_start(replica, settings.slot_options))
    mean_tps = sequence.offered_tps(len(sequence)) / len(sequence)
    guess = max(1, min(round(_TYPICAL_TPS / mean_tps), settings.most_adapters))
    num_active = float(sequence.aggregates(np.array([guess]))[0, _ACTIVE])
    found = search_configurations(
        twin.verdict,
        load_tps=sequence.offered_tps,
        slot_options=outward(options, num_active),
        most_adapters=settings.most_adapters,
        first_guess=guess,
    )
    best = best_of(found)
    if best is not None and best.max_loras > best.num_adapters and len(settings.slot_options) > 1:
        best = _without_spare_slots(best, twin)
    is_at_limit = best is not None and best.num_adapters == settings.most_adapters
    return Optimum(best, tuple(found), is_at_limit, twin.num_simulations)


class TwinProbe:
    """The twin as an oracle: under each seed, an adapter has the same requests in every configuration.

    Attributes
    ----------
    num_simulations
        So far.
    """

    def __init__(self, sequence: AdapterSequence, replica: Replica, settings: SearchSettings) -> None:
        self._sequence = sequence
        self._replica = replica
        self._settings = settings
        self._traffic = tuple(
            NestedTraffic(sequence, horizon_s=settings.horizon_s, seed=settings.seed, index=index)
            for index in range(settings.num_seeds)
        )
        self.num_simulations = 0

    def verdict(self, num_adapters: int, max_loras: int) -> Verdict:
        """Simulate the first adapters with so many slots, until the seeds that are left cannot change the verdict."""
        settings = self._settings
        shares: list[float] = []
        num_starved = 0
        for index in range(settings.num_seeds):
            report = self.simulate(num_adapters, max_loras, index)
            num_starved += starves(report, settings.starvation_test)
            # As a share of the mean load, so that chance in what arrives does not decide between configurations.
            shares.append(min(report.served_ratio, 1.0))
            num_left = settings.num_seeds - index - 1
            if 2 * num_starved >= settings.num_seeds or 2 * (num_starved + num_left) < settings.num_seeds:
                break
        throughput_tps = float(np.mean(shares)) * self._sequence.offered_tps(num_adapters)
        return Verdict(2 * num_starved >= settings.num_seeds, throughput_tps)

    def simulate(self, num_adapters: int, max_loras: int, index: int) -> SimulationReport:
        """Return what the twin reports about the first adapters with so many slots under the seed of that index."""
        settings, replica = self._settings, self._replica
        self.num_simulations += 1
        return simulate_in_detail(
            Workload(adapters=self._sequence.between(0, num_adapters)),
            Replica(replica.model, replica.gpu, with_slots(replica, max_loras, num_adapters), replica.profile),
            horizon_s=settings.horizon_s,
            warmup_s=settings.warmup_s,
            seed=index,
            starvation_tolerance=settings.starvation_tolerance,
            requests=self._traffic[index].requests(num_adapters),
            with_adapters=False,
        ).report


def starves(report: SimulationReport, test: StarvationTest) -> bool:
    """Return whether a report rules its configuration out."""
    return report.has_starvation if test == "adapter" else report.is_starved


def outward(options: Sequence[int], centre: float) -> list[int]:
    """Return options in the order of their distance from a centre, on a scale of ratios."""
    return sorted(options, key=lambda slots: (abs(np.log(slots / max(centre, 1.0))), slots))


def _without_spare_slots(best: Configuration, twin: TwinProbe) -> Configuration:
    """Return a configuration with as many slots as adapters, if they are served; otherwise the one given."""
    count = best.num_adapters
    verdict = twin.verdict(count, count)
    return best if verdict.starves else Configuration(count, count, verdict.throughput_tps)
