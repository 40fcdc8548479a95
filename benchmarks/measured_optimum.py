"""The best configuration among measured serving runs: which (adapters, slots) completed most without starvation.

Runs of one kind of population (rates, ranks, model) with several numbers of adapters and slots are a grid. Best is what
`predictors.configuration_search.best_of` says of its measured throughputs; cells that were not measured do not exist.
Between two cells of the grid lies the border: where the goodput of a number of slots falls below 0.9, interpolated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import joblib

from predictors.configuration_search import TIE, Configuration, best_of
from twin.profile import PerformanceProfile
from twin.validation.quantities import LEAST_GOODPUT_RATIO
from twin.validation.replay import DEFAULT_FRONT_END, replay_run, warm_engine
from twin.validation.runs import MeasuredRun

Cell = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """Runs of one kind of population.

    Attributes
    ----------
    name
        Rates and ranks.
    runs
        By (adapters, slots).
    """

    name: str
    runs: Mapping[Cell, MeasuredRun]

    @property
    def most_adapters(self) -> int:
        """Largest measured number of adapters."""
        return max(adapters for adapters, _ in self.runs)

    @property
    def slots(self) -> list[int]:
        """Measured numbers of slots, ascending."""
        return sorted({slots for _, slots in self.runs})

    @property
    def adapter_tps(self) -> float:
        """Offered tokens/s per adapter in the mean."""
        offered = [(run.offered_tps or 0.0) / adapters for (adapters, _), run in self.runs.items()]
        return sum(offered) / len(offered)

    @property
    def measured(self) -> Configuration:
        """The best configuration that was measured."""
        return _best(self, [_measured(cell, run) for cell, run in self.runs.items() if not run.is_starved])

    @property
    def borders(self) -> dict[int, Configuration]:
        """The most adapters that each number of slots serves, with what they complete.

        Where one run serves and the next starves, goodput is interpolated to 0.9; where none starves, it is the largest
        run. A starved run whose client collapsed completed too little: that border lies a little too low.
        """
        return {slots: border for slots in self.slots if (border := self._border(slots)) is not None}

    @property
    def best_border(self) -> Configuration:
        """The best of `borders`."""
        return _best(self, list(self.borders.values()))

    def snapped(self, cell: Cell) -> Configuration:
        """Return the run that a free choice comes to: the nearest slots, with as many adapters as were measured of it.

        Rounded up only where no fewer were measured.
        """
        adapters, wanted = cell
        slots = min(self.slots, key=lambda option: abs(math.log(option / wanted)))
        measured = sorted(count for count, option in self.runs if option == slots)
        fewer = [count for count in measured if count <= adapters]
        return Configuration(fewer[-1] if fewer else measured[0], slots, 0.0)

    def _border(self, slots: int) -> Configuration | None:
        cells = sorted((cell, run) for cell, run in self.runs.items() if cell[1] == slots)
        for (_, before), (_, after) in itertools.pairwise(cells):
            if not before.is_starved and after.is_starved:
                above, below = _goodput(before), _goodput(after)
                share = (above - LEAST_GOODPUT_RATIO) / (above - below)
                adapters = before.num_adapters + share * (after.num_adapters - before.num_adapters)
                # Beyond saturation, throughput no longer grows with the load.
                throughput_tps = LEAST_GOODPUT_RATIO * adapters * self.adapter_tps
                return Configuration(round(adapters), slots, max(throughput_tps, before.measured.tok_per_s or 0.0))
        cell, run = cells[-1]
        return None if run.is_starved else _measured(cell, run)


@dataclass(frozen=True)
class Choice:
    """A configuration as the measurement judges it; all in percent.

    Attributes
    ----------
    adapters_error, slots_error
        Distance from the best, relative to it. Slots that complete within `TIE` of the best are no error.
    strict_slots_error
        The same where they are one.
    lost
        Throughput that is lost against the best; None where the choice starves or was not measured.
    """

    configuration: Cell
    adapters_error: float
    slots_error: float
    strict_slots_error: float
    lost: float | None


def read_grids(runs: Sequence[MeasuredRun]) -> list[Grid]:
    """Return the grids of informative runs that served, by rates and ranks."""
    grids: dict[str, dict[Cell, MeasuredRun]] = {}
    for run in runs:
        if run.status == "ok" and run.is_informative and run.traffic is not None:
            rates = " / ".join(f"{rate:g}" for rate in sorted(set(run.traffic.rates_rps), reverse=True))
            ranks = ", ".join(map(str, run.traffic.ranks))
            name = f"{rates} requests/s, ranks {ranks}"
            grids.setdefault(name, {})[(run.num_adapters, run.engine.max_loras)] = run
    return [Grid(name, cells) for name, cells in sorted(grids.items())]


def judge_on_grid(grid: Grid, choice: Configuration) -> Choice:
    """Return how a cell of the grid compares with the best one."""
    best = grid.measured
    cell = (choice.num_adapters, choice.max_loras)
    run = grid.runs.get(cell)
    most_tps = max(entry.measured.tok_per_s or 0.0 for entry in grid.runs.values() if not entry.is_starved)
    lost = None if run is None or run.is_starved else 1.0 - (run.measured.tok_per_s or 0.0) / most_tps
    return _choice(cell, best, adapters=choice.num_adapters, slots=choice.max_loras, lost=lost)


def judge_freely(grid: Grid, cell: Cell) -> Choice:
    """Return how a configuration compares with the best border.

    No more adapters count than were measured; slots are the nearest that have a border.
    """
    best, borders = grid.best_border, grid.borders
    adapters = min(cell[0], grid.most_adapters)
    slots = min(borders, key=lambda option: abs(math.log(option / cell[1])))
    most_tps = max(border.throughput_tps for border in borders.values())
    served_tps = min(borders[slots].throughput_tps, adapters * grid.adapter_tps)
    lost = None if adapters > borders[slots].num_adapters else max(1.0 - served_tps / most_tps, 0.0)
    is_as_good = borders[slots].throughput_tps >= (1.0 - TIE) * most_tps
    return _choice(
        cell, best, adapters=adapters, slots=best.max_loras if is_as_good else slots, lost=lost, strictly=slots
    )


def _choice(
    cell: Cell, best: Configuration, *, adapters: int, slots: int, lost: float | None, strictly: int | None = None
) -> Choice:
    def distance(number: int, wanted: int) -> float:
        return 100.0 * abs(number - wanted) / wanted

    is_as_good = lost is not None and adapters == best.num_adapters and lost <= TIE
    return Choice(
        configuration=cell,
        adapters_error=distance(adapters, best.num_adapters),
        slots_error=0.0 if is_as_good else distance(slots, best.max_loras),
        strict_slots_error=distance(strictly or slots, best.max_loras),
        lost=None if lost is None else 100.0 * lost,
    )


def replayed_best(grid: Grid, profile: PerformanceProfile, *, num_seeds: int, horizon_s: float | None) -> Configuration:
    """Return the best cell of the grid as the twin sees it, with the papers' test of starvation.

    All runs with one number of adapters get the same requests, as the measured ones nearly had.
    """
    cells = sorted(grid.runs)
    runs = [replace(grid.runs[cell], run_id=f"{grid.name}/{cell[0]}") for cell in cells]
    jobs = (joblib.delayed(_replay)(run, profile, num_seeds, horizon_s) for run in runs)
    outcomes = joblib.Parallel(n_jobs=2)(jobs)
    served = [
        Configuration(adapters, slots, throughput_tps)
        for (adapters, slots), (throughput_tps, ratio) in zip(cells, outcomes, strict=True)
        if ratio >= LEAST_GOODPUT_RATIO
    ]
    return _best(grid, served)


def _replay(
    run: MeasuredRun, profile: PerformanceProfile, num_seeds: int, horizon_s: float | None
) -> tuple[float, float]:
    """Return the mean throughput in tokens/s and goodput ratio over the seeds; zeros where it does not start."""
    warm_engine("fast")
    throughput_tps, goodput = 0.0, 0.0
    for seed in range(num_seeds):
        quantities = replay_run(run, profile, seed=seed, horizon_s=horizon_s, front_end=DEFAULT_FRONT_END).quantities
        throughput_tps += (quantities.tok_per_s or 0.0) / num_seeds
        goodput += (quantities.goodput_ratio or 0.0) / num_seeds
    return throughput_tps, goodput


def _best(grid: Grid, configurations: Sequence[Configuration]) -> Configuration:
    best = best_of(configurations)
    assert best is not None, grid.name
    return best


def _measured(cell: Cell, run: MeasuredRun) -> Configuration:
    return Configuration(*cell, float(run.measured.tok_per_s or 0.0))


def _goodput(run: MeasuredRun) -> float:
    return float(run.measured.goodput_ratio or 0.0)
