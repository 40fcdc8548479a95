"""The best configuration of one GPU by search in the twin: how many adapters of a population, with how many slots.

Best is what arXiv 2508.08343 asks for: the most throughput of completed requests without starvation or a memory error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from predictors.adapter_sequence import AdapterSequence, NestedTraffic
from predictors.capacity import slots_that_start, with_slots
from predictors.configuration_search import Configuration, Probe, Verdict, best_of, search_configurations
from predictors.features import ACTIVE_WINDOWS_S, AGGREGATE_NAMES
from predictors.populations import MAX_ADAPTERS
from predictors.scenarios import SLOT_GRID
from twin.replica import Replica
from twin.simulate import simulate_in_detail
from twin.workload import Adapter, Workload

# About what one GPU serves, in tokens/s: only where the search begins.
_TYPICAL_TPS = 9_000.0
_ACTIVE = AGGREGATE_NAMES.index(f"active_{ACTIVE_WINDOWS_S[0]:g}s")

# Whose starvation rules a configuration out: that of the replica or any adapter, or of the replica alone (the papers').
StarvationTest = Literal["adapter", "replica"]
STARVATION_TESTS: tuple[StarvationTest, ...] = get_args(StarvationTest)


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
    return search_twin(TwinProbe(AdapterSequence(adapters), replica, settings), settings.starvation_test)


def search_twin(twin: TwinProbe, test: StarvationTest) -> Optimum:
    """Return the best configuration by one test of starvation; what the twin knows is not simulated again."""
    sequence, settings, before = twin.sequence, twin.settings, twin.num_simulations
    options = list(slots_that_start(twin.replica, settings.slot_options))
    mean_tps = sequence.offered_tps(len(sequence)) / len(sequence)
    guess = max(1, min(round(_TYPICAL_TPS / mean_tps), settings.most_adapters))
    num_active = float(sequence.aggregates(np.array([guess]))[0, _ACTIVE])

    def probe(num_adapters: int, max_loras: int) -> Verdict:
        return twin.verdict(num_adapters, max_loras, test)

    found = search_configurations(
        probe,
        load_tps=sequence.offered_tps,
        slot_options=outward(options, num_active),
        most_adapters=settings.most_adapters,
        first_guess=guess,
    )
    best = best_of(found)
    if best is not None and best.max_loras > best.num_adapters and len(settings.slot_options) > 1:
        best = _without_spare_slots(best, probe)
    is_at_limit = best is not None and best.num_adapters == settings.most_adapters
    return Optimum(best, tuple(found), is_at_limit, twin.num_simulations - before)


@dataclass(frozen=True)
class Outcome:
    """What one simulation says: whether the replica starves, whether it or an adapter does, and the served share."""

    starves: Mapping[StarvationTest, bool]
    served_share: float


class TwinProbe:
    """The twin as an oracle that remembers: under each seed, an adapter has the same requests in every configuration.

    Attributes
    ----------
    sequence, replica, settings
        Whom it serves with what, and how it is simulated.
    num_simulations
        So far.
    """

    def __init__(self, sequence: AdapterSequence, replica: Replica, settings: SearchSettings) -> None:
        self.sequence = sequence
        self.replica = replica
        self.settings = settings
        self.num_simulations = 0
        self._traffic = tuple(
            NestedTraffic(sequence, horizon_s=settings.horizon_s, seed=settings.seed, index=index)
            for index in range(settings.num_seeds)
        )
        self._known: dict[tuple[int, int, int], Outcome] = {}

    def verdict(self, num_adapters: int, max_loras: int, test: StarvationTest) -> Verdict:
        """Simulate the first adapters with so many slots, until the seeds that are left cannot change the verdict."""
        num_seeds = self.settings.num_seeds
        shares: list[float] = []
        num_starved = 0
        for index in range(num_seeds):
            outcome = self.outcome(num_adapters, max_loras, index)
            num_starved += outcome.starves[test]
            shares.append(outcome.served_share)
            num_left = num_seeds - index - 1
            if 2 * num_starved >= num_seeds or 2 * (num_starved + num_left) < num_seeds:
                break
        throughput_tps = float(np.mean(shares)) * self.sequence.offered_tps(num_adapters)
        return Verdict(2 * num_starved >= num_seeds, throughput_tps)

    def outcome(self, num_adapters: int, max_loras: int, index: int) -> Outcome:
        """Return what the simulation of the first adapters with so many slots says under the seed of that index."""
        key = (num_adapters, max_loras, index)
        if key not in self._known:
            self._known[key] = self._simulate(*key)
        return self._known[key]

    def _simulate(self, num_adapters: int, max_loras: int, index: int) -> Outcome:
        settings, replica = self.settings, self.replica
        self.num_simulations += 1
        report = simulate_in_detail(
            Workload(adapters=self.sequence.between(0, num_adapters)),
            Replica(replica.model, replica.gpu, with_slots(replica, max_loras, num_adapters), replica.profile),
            horizon_s=settings.horizon_s,
            warmup_s=settings.warmup_s,
            seed=index,
            starvation_tolerance=settings.starvation_tolerance,
            requests=self._traffic[index].requests(num_adapters),
            with_adapters=False,
        ).report
        # As a share of the mean load, so that chance in what arrives does not decide between configurations.
        starves: dict[StarvationTest, bool] = {"adapter": report.has_starvation, "replica": report.is_starved}
        return Outcome(starves, min(report.served_ratio, 1.0))


def outward(options: Sequence[int], centre: float) -> list[int]:
    """Return options in the order of their distance from a centre, on a scale of ratios."""
    return sorted(options, key=lambda slots: (abs(np.log(slots / max(centre, 1.0))), slots))


def _without_spare_slots(best: Configuration, probe: Probe) -> Configuration:
    """Return a configuration with as many slots as adapters, if they are served; otherwise the one given."""
    count = best.num_adapters
    verdict = probe(count, count)
    return best if verdict.starves else Configuration(count, count, verdict.throughput_tps)
