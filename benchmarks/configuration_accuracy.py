"""How well the best number of adapters and slots of a GPU is predicted: the tables of docs/configuration.md.

``python -m benchmarks.configuration_accuracy [DATA] [--update docs/configuration.md] [--populations 100] [--smoke]``

Populations that no model was trained with are searched in the twin, and what is predicted for them is simulated.
DATA is the folder with the measured runs (``runs/``); without it the tables on those are left out. There the best
measured configuration of each population is compared with that of the twin on the same grid, and with what a free
search in the twin, the trained model, its rules and bare arithmetic say.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.document_tables import number, print_or_update, table
from benchmarks.measured_optimum import Choice, Grid, judge_freely, judge_on_grid, read_grids, replayed_best
from benchmarks.surrogate_accuracy import predict, predicted_output
from predictors.adapter_sequence import AdapterSequence
from predictors.catalog import shipped_surrogate
from predictors.configuration import ConfigurationModel, Prediction, shipped_configuration_model
from predictors.configuration_data import draw_population, search_settings
from predictors.configuration_search import Configuration, best_of
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.optimum import STARVATION_TESTS, SearchSettings, StarvationTest, TwinProbe, find_optimum, search_twin
from solvers.acceptance import accepts
from solvers.problem import Limits
from twin.errors import InputError
from twin.parallel import each_in_parallel
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.replica import Replica
from twin.validation.quantities import LEAST_GOODPUT_RATIO
from twin.validation.regenerate import regenerate_traffic
from twin.validation.replay import replica_of
from twin.validation.runs import read_runs
from twin.workload import Adapter

# Shipped models are trained with seed 0.
HELD_OUT_SEED = 1_000_003
METHODS = ("model", "model with margin", "rules", "arithmetic")
# Risk of too many adapters that the margin is for.
MARGIN_RISK = "0.1"
SEARCHED = "twin"


@dataclass(frozen=True)
class Judged:
    """A prediction for a population.

    Attributes
    ----------
    adapters_error, slots_error
        Signed, relative to the twin's optimum, in percent.
    starves
        In the twin.
    lost
        Throughput in the twin that is lost against the optimum, in percent; of a starved one, too.
    """

    adapters_error: float
    slots_error: float
    starves: bool
    lost: float


@dataclass(frozen=True)
class _HeldOut:
    """A question about one population: with what it is searched and predicted."""

    profile: PerformanceProfile
    model: ConfigurationModel
    settings: SearchSettings
    number: int


def judge_population(question: _HeldOut) -> dict[tuple[StarvationTest, str], Judged]:
    """Return what the twin says about the predictions for a population, by test and method.

    Nothing for a test by which not one adapter is served.
    """
    population = draw_population(question.profile, question.number, seed=question.settings.seed)
    settings = search_settings(question.settings, question.number)
    twin = TwinProbe(AdapterSequence(population.adapters), population.replica, settings)
    judged: dict[tuple[StarvationTest, str], Judged] = {}
    for test in STARVATION_TESTS:
        best = search_twin(twin, test).best
        if best is not None:
            predicted = question.model.predict(population.adapters, population.replica, test=test)
            margin = float(question.model.training["fits"][test]["margins"][MARGIN_RISK])
            for name, chosen in _configurations(predicted, margin).items():
                judged[test, name] = _judged(twin, test, best, chosen)
    return judged


def _configurations(predicted: Prediction, margin: float) -> dict[str, tuple[int, int]]:
    """Return (adapters, slots) by method."""
    cautious = max(1, int(predicted.num_adapters / margin))
    return {
        "model": (predicted.num_adapters, predicted.max_loras),
        "model with margin": (cautious, min(predicted.max_loras, cautious)),
        "rules": (predicted.rule.num_adapters, predicted.rule.max_loras),
        "arithmetic": (predicted.capacity.num_adapters, predicted.capacity.max_loras),
    }


def _judged(twin: TwinProbe, test: StarvationTest, best: Configuration, chosen: tuple[int, int]) -> Judged:
    adapters, slots = chosen
    verdict = twin.verdict(adapters, slots, test)
    return Judged(
        adapters_error=100.0 * (adapters / best.num_adapters - 1.0),
        slots_error=100.0 * (slots / best.max_loras - 1.0),
        starves=verdict.starves,
        lost=100.0 * (1.0 - verdict.throughput_tps / best.throughput_tps),
    )


def held_out_table(profile: PerformanceProfile, model: ConfigurationModel, *, count: int, num_seeds: int) -> list[str]:
    """Return the errors on populations that no model was trained with, by each test of starvation."""
    settings = SearchSettings(num_seeds=num_seeds, seed=HELD_OUT_SEED)
    questions = [_HeldOut(profile, model, settings, number) for number in range(count)]
    found = dict(each_in_parallel(judge_population, questions, workers=None, backend="loky"))
    rows = []
    for test, name in itertools.product(STARVATION_TESTS, METHODS):
        judged = [found[position][test, name] for position in range(count) if (test, name) in found[position]]
        rows.append(_row_of(f"{test}: {name}", judged))
    header = [
        "test: method",
        "populations",
        "adapters: median error %",
        "mean %",
        "slots: median error %",
        "mean %",
        "starve %",
        "throughput lost: median %",
        "90 % below",
    ]
    return table(header, rows)


def _row_of(name: str, judged: Sequence[Judged]) -> list[str]:
    adapters = np.abs([entry.adapters_error for entry in judged])
    slots = np.abs([entry.slots_error for entry in judged])
    lost = np.array([entry.lost for entry in judged if not entry.starves])
    return [
        name,
        str(len(judged)),
        number(float(np.median(adapters)), 1),
        number(float(np.mean(adapters)), 1),
        number(float(np.median(slots)), 1),
        number(float(np.mean(slots)), 1),
        number(100.0 * float(np.mean([entry.starves for entry in judged])), 0),
        number(float(np.median(lost)) if len(lost) else None, 1),
        number(float(np.quantile(lost, 0.9)) if len(lost) else None, 1),
    ]


def measured_tables(
    grids: Sequence[Grid],
    profile: PerformanceProfile,
    model: ConfigurationModel,
    surrogate: OnnxSurrogate,
    *,
    num_seeds: int,
    horizon_s: float,
) -> tuple[list[str], list[str]]:
    """Return the configurations chosen for each grid of runs, and the errors of each way to choose."""
    choices: dict[str, list[Choice]] = {}
    rows = []
    for grid in grids:
        print(f"choosing for {grid.name}", file=sys.stderr)
        replayed = replayed_best(grid, profile, num_seeds=num_seeds, horizon_s=horizon_s)
        free = free_choices(grid, profile, model, num_seeds=num_seeds, horizon_s=horizon_s)
        chosen = {"twin": replayed}
        chosen |= {f"surrogate{how}": choose(grid, profile, surrogate) for how, choose in SURROGATE_CHOICES.items()}
        chosen |= {name: grid.snapped(cell) for name, cell in free.items() if name != SEARCHED}
        for name, configuration in chosen.items():
            choices.setdefault(f"{name} on the grid", []).append(judge_on_grid(grid, configuration))
        for name, cell in free.items():
            choices.setdefault(f"{name}, free", []).append(judge_freely(grid, cell))
        bests = [grid.measured, *chosen.values(), grid.best_border]
        cells = [f"{best.num_adapters}, {best.max_loras}" for best in bests]
        rows.append([grid.name, *cells, *(f"{adapters}, {slots}" for adapters, slots in free.values())])
    on_grid = [name for name in choices if name.endswith("on the grid")]
    freely = [name for name in choices if name not in on_grid]
    return (
        table(["population", "measured best", *on_grid, "measured border", *freely], rows),
        table(
            ["", "adapters %", "slots %", "both %", "slots, strictly %", "throughput lost %", "starve"],
            [_errors_row(name, chosen) for name, chosen in choices.items()],
        ),
    )


def free_choices(
    grid: Grid, profile: PerformanceProfile, model: ConfigurationModel, *, num_seeds: int, horizon_s: float
) -> dict[str, tuple[int, int]]:
    """Return (adapters, slots) by each way to choose that is free of the grid, with the papers' test of starvation."""
    adapters, replica = population_of(grid, profile)
    settings = SearchSettings(
        num_seeds=num_seeds,
        horizon_s=horizon_s,
        warmup_s=0.0,
        starvation_test="replica",
        most_adapters=grid.most_adapters,
        slot_options=tuple(grid.slots),
    )
    searched = find_optimum(adapters, replica, settings).best
    predicted = model.predict(adapters, replica, test="replica", slot_options=grid.slots)
    assert searched is not None, grid.name
    return {
        SEARCHED: (searched.num_adapters, searched.max_loras),
        "model": (predicted.num_adapters, predicted.max_loras),
        "rules": (predicted.rule.num_adapters, predicted.rule.max_loras),
        "arithmetic": (predicted.capacity.num_adapters, predicted.capacity.max_loras),
    }


def predicted_best(grid: Grid, profile: PerformanceProfile, surrogate: OnnxSurrogate) -> Configuration:
    """Return the best cell of the grid as a surrogate sees it, with the papers' test of starvation."""
    said = {cell: predict(run, surrogate, profile).quantities for cell, run in grid.runs.items()}
    served = [
        Configuration(*cell, quantities.tok_per_s or 0.0)
        for cell, quantities in said.items()
        if (quantities.goodput_ratio or 0.0) >= LEAST_GOODPUT_RATIO
    ]
    best = best_of(served)
    assert best is not None, grid.name
    return best


def planned_best(grid: Grid, profile: PerformanceProfile, surrogate: OnnxSurrogate) -> Configuration:
    """Return the best cell of the grid that a plan would accept: neither the replica nor any adapter starves."""
    said = {cell: predicted_output(run, surrogate, profile) for cell, run in grid.runs.items()}
    accepted = [
        Configuration(*cell, float(output.throughput_tps[0]))
        for cell, output in said.items()
        if accepts(Limits(), output)[0]
    ]
    best = best_of(accepted)
    assert best is not None, grid.name
    return best


# How a surrogate chooses: by the papers' test of starvation, or by that of plans.
SURROGATE_CHOICES = {"": predicted_best, ", as plans ask,": planned_best}


def population_of(grid: Grid, profile: PerformanceProfile) -> tuple[tuple[Adapter, ...], Replica]:
    """Return the adapters of a grid's largest run, which have its rates, ranks and lengths, and its replica."""
    run = grid.runs[max(grid.runs)]
    assert run.traffic is not None
    workload, _ = regenerate_traffic(run.traffic, run_id=run.run_id, seed=0, horizon_s=1.0)
    return workload.adapters, replica_of(run, profile)


def _errors_row(name: str, choices: Sequence[Choice]) -> list[str]:
    def mean(value: Callable[[Choice], float]) -> float:
        return float(np.mean([value(choice) for choice in choices]))

    lost = [choice.lost for choice in choices if choice.lost is not None]
    adapters, slots = mean(lambda choice: choice.adapters_error), mean(lambda choice: choice.slots_error)
    return [
        name,
        number(adapters, 1),
        number(slots, 1),
        f"**{number((adapters + slots) / 2.0, 1)}**",
        number(mean(lambda choice: choice.strict_slots_error), 1),
        number(float(np.mean(lost)) if lost else None, 1),
        f"{len(choices) - len(lost)} of {len(choices)}",
    ]


def sections(data: Path | None, *, count: int, num_seeds: int, horizon_s: float) -> dict[str, list[str]]:
    """Measure and return every table of the document by its name."""
    found: dict[str, list[str]] = {}
    for name in shipped_profiles():
        path = shipped_configuration_model(name)
        if path is not None:
            print(f"searching populations under {name}", file=sys.stderr)
            model, profile = ConfigurationModel.load(path), load_profile(name)
            found[f"held out {name}"] = held_out_table(profile, model, count=count, num_seeds=num_seeds)
    if data is not None:
        runs = read_runs(data / "runs" / "real_runs.csv", split="valid").runs
        name = next(name for name in shipped_profiles() if load_profile(name).model == runs[0].model)
        path = shipped_configuration_model(name)
        surrogate = shipped_surrogate(name)
        assert path is not None, name
        assert surrogate is not None, name
        choices, errors = measured_tables(
            read_grids(runs),
            load_profile(name),
            ConfigurationModel.load(path),
            OnnxSurrogate.load(surrogate),
            num_seeds=num_seeds,
            horizon_s=horizon_s,
        )
        found |= {"measured choices": choices, "measured errors": errors}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, then print the tables or put them into the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with runs/")
    parser.add_argument("--update", type=Path, help="document whose tables are replaced")
    parser.add_argument("--populations", type=int, default=100, help="held-out populations per profile")
    parser.add_argument("--seeds", type=int, default=3, help="simulations of a configuration")
    parser.add_argument("--smoke", action="store_true", help="few populations and minutes, to see that it runs")
    options = parser.parse_args(arguments)
    if options.smoke and options.update:
        parser.error("--smoke measures nothing that a document should say: leave out --update.")
    if min(options.seeds, options.populations) < 1:
        parser.error("--seeds and --populations must be at least 1.")
    found = sections(
        options.data,
        count=2 if options.smoke else options.populations,
        num_seeds=1 if options.smoke else options.seeds,
        horizon_s=60.0 if options.smoke else 3600.0,
    )
    try:
        print_or_update(found, options.update)
    except InputError as error:
        parser.error(error.message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
