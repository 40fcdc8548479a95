"""Label scenarios with the twin: loads around the border of starvation, each simulated with several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from predictors.border import NEAR_DISTANCE, BorderSearch, most_served
from predictors.features import FEATURE_SCHEMA, build_features
from predictors.populations import Population
from predictors.scenarios import FAMILIES, Scenario, draw_scenario
from twin.hardware import GpuType, load_model
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import simulate_in_detail
from twin.workload import Workload

# Rows per replica of a scenario: the first search has to find the border, the second starts at that of the first.
ROWS_PER_SEARCH = (14, 8)
# Search of a row whose replica does not start.
NO_SEARCH = -1
STARTS = "starts"

# About what one GPU serves in tokens/s and requests/s: only where the search for the border starts.
_FIRST_GUESS_TPS = 9_000.0
_FIRST_GUESS_RPS = 60.0
# Beyond what any GPU of today serves: a replica that does not starve there has no border to be found.
_LARGEST_TPS = 300_000.0
_LARGEST_RPS = 1_000.0
# Kinds of simulations that a scenario needs, apart in the seeds of their traffic; searches are 1, 2, ...
_PACKING = 1_000

Row = dict[str, float | int | str]


@dataclass(frozen=True)
class LabelSettings:
    """What the rows of a data set depend on besides the profile.

    Attributes
    ----------
    seed
        Of the data set, >= 0.
    num_seeds
        Simulations per row, >= 1, each with other arrivals.
    horizon_s, warmup_s
        Of each simulation, in seconds.
    families
        Kinds of scenarios, of `predictors.scenarios.FAMILIES`.
    loads
        Loads at which each of the two replicas of a scenario is simulated, each at least `LEAST_LOADS`.
    """

    seed: int = 0
    num_seeds: int = 3
    horizon_s: float = 600.0
    warmup_s: float = 100.0
    families: tuple[str, ...] = FAMILIES
    loads: tuple[int, int] = ROWS_PER_SEARCH


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _per_second(count: Callable[[SimulationReport], int]) -> Callable[[SimulationReport], float]:
    return lambda report: count(report) / report.horizon_s


# What a row has the mean over its seeds of.
MEANS: Mapping[str, Callable[[SimulationReport], float]] = {
    "throughput_ratio": lambda report: report.throughput_ratio,
    "served_ratio": lambda report: report.served_ratio,
    "throughput_tps": lambda report: report.throughput_tps,
    "starved_share": lambda report: float(report.has_starvation),
    "replica_starved_share": lambda report: float(report.is_starved),
    "num_starved_adapters": lambda report: float(len(report.starved_adapters)),
    "itl_mean_s": lambda report: _or_nan(report.itl.mean_s),
    "itl_p95_s": lambda report: _or_nan(report.itl.p95_s),
    "ttft_mean_s": lambda report: _or_nan(report.ttft.mean_s),
    "ttft_p95_s": lambda report: _or_nan(report.ttft.p95_s),
    "running_mean": lambda report: report.running_mean,
    "waiting_mean": lambda report: report.waiting_mean,
    "kv_usage_mean": lambda report: report.kv_usage_mean,
    "preemptions_per_s": _per_second(lambda report: report.num_preemptions),
    "gpu_loads_per_s": _per_second(lambda report: report.gpu_loads),
    "disk_loads_per_s": _per_second(lambda report: report.disk_loads),
}
# The standard deviation over the seeds of each; of a share, it follows from the share.
SPREADS: Mapping[str, str] = {f"{name}_std": name for name in MEANS if not name.endswith("_share")}
LABEL_NAMES: tuple[str, ...] = (*MEANS, *SPREADS, "log_border")


def label_scenario(profile: PerformanceProfile, number: int, settings: LabelSettings) -> list[Row]:
    """Return the rows of scenario `number`: those that are labelled, and at most one that does not start.

    They depend on the arguments only.
    """
    scenario = _filled_scenario(profile, number, settings)
    generator = np.random.default_rng(_seeds(settings, number, len(ROWS_PER_SEARCH) + 1))
    border_rps = _first_guess(scenario, generator)
    rows: list[Row] = []
    for search, num_rows in enumerate(settings.loads):
        found = _label_search(scenario, number, search, settings, _Start(border_rps, num_rows, generator))
        rows += found
        border_rps = _border_in(found) or border_rps
    if scenario.unstartable is not None:
        unlabelled: Row = dict.fromkeys(LABEL_NAMES, math.nan)
        rows.append(
            _facts(scenario, scenario.unstartable, number, settings)
            | {"search": NO_SEARCH, "row": 0}
            | _inputs(scenario, scenario.unstartable, border_rps)
            | unlabelled
        )
    return rows


def label_near_border(
    profile: PerformanceProfile, number: int, settings: LabelSettings, *, num_seeds: int, window: tuple[float, float]
) -> Row:
    """Return one row of scenario `number`: its first replica at a load within `NEAR_DISTANCE` of the border.

    The search for the border is the one that `settings` ask for; the row's labels are of `num_seeds` other simulations,
    whose horizon and warm-up in seconds are `window`.
    """
    scenario = _filled_scenario(profile, number, settings)
    generator = np.random.default_rng(_seeds(settings, number, len(ROWS_PER_SEARCH) + 1))
    start = _Start(_first_guess(scenario, generator), settings.loads[0], generator)
    found = _label_search(scenario, number, 0, settings, start)
    distance = float(generator.uniform(-NEAR_DISTANCE, NEAR_DISTANCE))
    border_rps = _border_in(found)
    load_rps = math.exp(distance) * (float(found[-1]["load_rps"]) if border_rps is None else border_rps)
    precise = replace(settings, num_seeds=num_seeds, horizon_s=window[0], warmup_s=window[1])
    reports = simulate_row(scenario, precise, number=number, search=0, row=start.num_rows, load_rps=load_rps)
    replica = scenario.replicas[0]
    return {
        **_facts(scenario, replica, number, precise),
        "search": 0,
        "row": start.num_rows,
        **_inputs(scenario, replica, load_rps),
        **summarise(reports),
        "log_border": math.nan if border_rps is None else distance,
    }


def label_set(population: Population, replica: Replica, number: int, settings: LabelSettings) -> list[Row]:
    """Return rows for one set on one replica: its own load first, then loads around the border; all are `packed`.

    Parameters
    ----------
    number
        Of the traffic and of the free choices of loads, >= 0; also what the rows say as their scenario.
    """
    scenario = Scenario("packed", population, (replica,), None, ())
    generator = np.random.default_rng(_seeds(settings, number, len(ROWS_PER_SEARCH) + 1))
    return _label_search(scenario, number, 0, settings, _Start(population.total_rps, ROWS_PER_SEARCH[1], generator))


def scenario_of(profile: PerformanceProfile, number: int, settings: LabelSettings) -> Scenario:
    """Return scenario `number` as it is drawn; a packed one has yet to be filled (`fill_to_border`)."""
    model = load_model(profile.model)
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, profile=profile.name)
    generator = np.random.default_rng(_seeds(settings, number))
    return draw_scenario(model, gpu, profile, generator=generator, families=settings.families)


def _filled_scenario(profile: PerformanceProfile, number: int, settings: LabelSettings) -> Scenario:
    scenario = scenario_of(profile, number, settings)
    return fill_to_border(scenario, number, settings) if scenario.is_packed else scenario


def fill_to_border(scenario: Scenario, number: int, settings: LabelSettings) -> Scenario:
    """Return a packed scenario with as many of its adapters, in their order, as the first replica serves."""

    def starves(count: int) -> bool:
        smaller = scenario.first(count)
        load_rps = smaller.population.total_rps
        (report,) = _simulate_seeds(
            smaller.population, smaller.replicas[0], load_rps, settings, [_seeds(settings, number, _PACKING, count)]
        )
        return report.has_starvation

    return scenario.first(most_served(len(scenario.population.adapters), starves))


def simulate_row(
    scenario: Scenario, settings: LabelSettings, *, number: int, search: int, row: int, load_rps: float
) -> list[SimulationReport]:
    """Return what the twin reports about a row, one simulation for each seed.

    Parameters
    ----------
    scenario
        Of that number; a packed one is filled.
    number, search, row, load_rps
        As the row has them.
    """
    seeds = [_seeds(settings, number, 1 + search, row, index) for index in range(settings.num_seeds)]
    return _simulate_seeds(scenario.population, scenario.replicas[search], load_rps, settings, seeds)


@dataclass(frozen=True)
class _Start:
    """Where a search begins, how many rows it has, and what its free choices are drawn from."""

    first_rps: float
    num_rows: int
    generator: np.random.Generator


def _label_search(scenario: Scenario, number: int, search: int, settings: LabelSettings, start: _Start) -> list[Row]:
    replica = scenario.replicas[search]
    facts = _facts(scenario, replica, number, settings)
    border_search = BorderSearch(
        start.first_rps,
        num_rows=start.num_rows,
        generator=start.generator,
        largest_rps=min(_LARGEST_TPS / scenario.population.tokens_per_request, _LARGEST_RPS),
    )
    rows: list[Row] = []
    for row in range(start.num_rows):
        load_rps = border_search.next_load()
        labels = summarise(simulate_row(scenario, settings, number=number, search=search, row=row, load_rps=load_rps))
        border_search.tell(load_rps, labels["starved_share"])
        rows.append({**facts, "search": search, "row": row, **_inputs(scenario, replica, load_rps), **labels})
    border_rps = border_search.border_rps
    for labelled in rows:
        load = float(labelled["load_rps"])
        labelled["log_border"] = math.nan if border_rps is None else math.log(load / border_rps)
    return rows


def summarise(reports: Sequence[SimulationReport]) -> dict[str, float]:
    """Return mean and spread over the seeds of what the twin reported, by the names of `MEANS` and `SPREADS`.

    Where no request gave a latency, that seed does not count; NaN where none counts, and for the spread of one.
    """
    values = {name: np.array([value(report) for report in reports]) for name, value in MEANS.items()}
    known = {name: column[~np.isnan(column)] for name, column in values.items()}
    means = {name: float(column.mean()) if len(column) else math.nan for name, column in known.items()}
    spreads = {
        name: float(known[source].std(ddof=1)) if len(known[source]) > 1 else math.nan
        for name, source in SPREADS.items()
    }
    return means | spreads


def _simulate_seeds(
    population: Population,
    replica: Replica,
    load_rps: float,
    settings: LabelSettings,
    seeds: Sequence[np.random.SeedSequence],
) -> list[SimulationReport]:
    """Simulate one load with the traffic of each seed; the adapters' names hash under 0, 1, ... in turn."""
    workload = Workload(adapters=population.adapters)
    return [
        simulate_in_detail(
            workload,
            replica,
            horizon_s=settings.horizon_s,
            warmup_s=settings.warmup_s,
            seed=index,
            with_adapters=False,
            requests=population.requests(load_rps, horizon_s=settings.horizon_s, generator=np.random.default_rng(seed)),
        ).report
        for index, seed in enumerate(seeds)
    ]


def _seeds(settings: LabelSettings, number: int, *place: int) -> np.random.SeedSequence:
    """Return the seeds of one part of a scenario: its drawing, or the traffic at a place that starts above 0."""
    return np.random.SeedSequence([settings.seed, number], spawn_key=place)


def _first_guess(scenario: Scenario, generator: np.random.Generator) -> float:
    """Return a load near the border: a packed set's own, or what a typical GPU serves."""
    if scenario.is_packed:
        return scenario.population.total_rps
    guess = min(_FIRST_GUESS_TPS / scenario.population.tokens_per_request, _FIRST_GUESS_RPS)
    return guess * float(np.exp(generator.normal(0.0, 0.2)))


def _border_in(rows: Sequence[Row]) -> float | None:
    """Return the border that a search found, in requests per second."""
    distance = float(rows[0]["log_border"])
    return None if math.isnan(distance) else float(rows[0]["load_rps"]) / math.exp(distance)


def _facts(scenario: Scenario, replica: Replica, number: int, settings: LabelSettings) -> Row:
    """Return what a row says about its scenario and replica besides the features."""
    failure = replica.memory().failure
    return {
        "scenario": number,
        "family": scenario.family,
        "num_seeds": settings.num_seeds if failure is None else 0,
        "memory_verdict": STARTS if failure is None else failure.name.lower(),
        "gpu_memory_gib": replica.gpu.memory_gib,
        "gpu_memory_utilization": replica.engine.gpu_memory_utilization,
        "max_model_len": replica.engine.max_model_len or replica.model.max_model_len,
        "vllm_version": replica.engine.vllm_version,
    }


def _inputs(scenario: Scenario, replica: Replica, load_rps: float) -> Row:
    """Return the load and the features of a row."""
    columns: NDArray[np.float32] = build_features(
        scenario.population.aggregate(load_rps), scenario.engine_columns(replica)
    )[0]
    return {"load_rps": load_rps, **dict(zip(FEATURE_SCHEMA.names, columns.tolist(), strict=True))}
