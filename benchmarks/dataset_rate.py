"""How many one-hour scenarios the twin labels per second, and what the time goes into.

``python -m benchmarks.dataset_rate [--json] [--smoke] [--profile NAME] [--scenarios 120] [--workers N] [--seed 0]``

Scenarios are drawn as `placer dataset` draws them, packed ones included. The load of each is the median of what a data
set asks about: that at which its first replica begins to starve, found beforehand and not counted. Then one hour of
every scenario is labelled, as one seed of a row is: its requests are drawn, the fast engine simulates them, and the
report is summed up. `scenarios_per_s` is their number over the wall time on all cores; the table by part is the CPU
time of the same work in one process, per scenario.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numba
import numpy as np

from predictors.border import BorderSearch
from predictors.labelling import LabelSettings, fill_to_border, scenario_of, summarise
from predictors.scenarios import Scenario
from twin.parallel import available_cores, each_in_parallel
from twin.profile import PerformanceProfile, load_profile
from twin.replica import build_inputs
from twin.report import build_report
from twin.simulate import load_engine
from twin.workload import Workload

HOUR_S, WARMUP_S = 3600.0, 600.0
SEARCH_HORIZON_S = 300.0
SEARCH_ROWS = 10
# Per process, so that messages between processes do not count.
CHUNKS_PER_WORKER = 6
SMOKE_SCENARIOS, SMOKE_HORIZON_S = 4, 30.0


@dataclass(frozen=True)
class Question:
    """A scenario and the load that it is labelled at, in requests per second."""

    scenario: Scenario
    load_rps: float


@dataclass(frozen=True)
class Parts:
    """CPU seconds of one label by part."""

    draw_s: float
    prepare_s: float
    simulate_s: float
    report_s: float
    num_requests: int


def question(profile: PerformanceProfile, settings: LabelSettings, number: int) -> Question:
    """Return scenario `number` with its border as load."""
    scenario = scenario_of(profile, number, settings)
    if scenario.is_packed:
        scenario = fill_to_border(scenario, number, settings)
    generator = np.random.default_rng(np.random.SeedSequence([settings.seed, number], spawn_key=(9,)))
    search = BorderSearch(scenario.population.total_rps, num_rows=SEARCH_ROWS, generator=generator)
    loads = []
    for index in range(SEARCH_ROWS):
        loads.append(search.next_load())
        report = label(Question(scenario, loads[-1]), settings, index)[0]
        search.tell(loads[-1], report["starved_share"])
    return Question(scenario, search.border_rps or statistics.median(loads))


def label(asked: Question, settings: LabelSettings, number: int) -> tuple[dict[str, float], Parts]:
    """Return the labels of one simulation, and what its parts took."""
    replica = asked.scenario.replicas[0]
    run = load_engine("fast")
    generator = np.random.default_rng(np.random.SeedSequence([settings.seed, number], spawn_key=(10,)))
    clock = [time.thread_time()]
    requests = asked.scenario.population.requests(asked.load_rps, horizon_s=settings.horizon_s, generator=generator)
    clock.append(time.thread_time())
    workload = Workload(adapters=asked.scenario.population.adapters)
    inputs = build_inputs(workload, requests, replica, horizon_s=settings.horizon_s)
    clock.append(time.thread_time())
    trace = run(inputs)
    clock.append(time.thread_time())
    report = build_report(
        workload,
        inputs,
        trace,
        engine="fast",
        seed=0,
        warmup_s=settings.warmup_s,
        starvation_tolerance=0.1,
        with_adapters=False,
    )
    labels = summarise([report])
    clock.append(time.thread_time())
    draw_s, prepare_s, simulate_s, report_s = np.diff(clock).tolist()
    return labels, Parts(draw_s, prepare_s, simulate_s, report_s, len(requests))


def questions_of(profile: PerformanceProfile, settings: LabelSettings, numbers: Sequence[int]) -> list[Question]:
    """Return the scenarios with those numbers and their loads."""
    return [question(profile, settings, number) for number in numbers]


def label_all(settings: LabelSettings, questions: Sequence[Question]) -> list[Parts]:
    """Label a chunk of scenarios in one process."""
    return [label(asked, settings, number)[1] for number, asked in enumerate(questions)]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--smoke", action="store_true", help="a few short scenarios, to see that it runs")
    parser.add_argument("--profile", default="llama-3.1-8b-h100-64gb", help="performance profile")
    parser.add_argument("--scenarios", type=int, default=120, help="how many")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of the scenarios and their traffic")
    options = parser.parse_args(arguments)
    num_scenarios = SMOKE_SCENARIOS if options.smoke else options.scenarios
    hour = LabelSettings(seed=options.seed, num_seeds=1, horizon_s=HOUR_S, warmup_s=WARMUP_S)
    if options.smoke:
        hour = replace(hour, horizon_s=SMOKE_HORIZON_S, warmup_s=5.0)
    result = measure(load_profile(options.profile), hour, num_scenarios=num_scenarios, workers=options.workers)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    if options.json:
        print(json.dumps({**result, "seed": options.seed, "profile": options.profile, "versions": versions}))
        return 0
    print(f"seed {options.seed}, " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print_table(result)
    return 0


def measure(
    profile: PerformanceProfile, hour: LabelSettings, *, num_scenarios: int, workers: int
) -> dict[str, float | int | dict[str, float]]:
    """Return the rate on `workers` processes, and the CPU milliseconds by part and in total."""
    search = replace(hour, horizon_s=min(SEARCH_HORIZON_S, hour.horizon_s), warmup_s=0.1 * hour.warmup_s)
    num_chunks = min(CHUNKS_PER_WORKER * workers, num_scenarios)
    numbers = [list(range(start, num_scenarios, num_chunks)) for start in range(num_chunks)]
    # The same processes serve both rounds, so that the second finds its engine compiled.
    found = dict(each_in_parallel(partial(questions_of, profile, search), numbers, workers=workers, backend="loky"))
    chunks = [found[index] for index in range(num_chunks)]
    started_s = time.perf_counter()
    done = dict(each_in_parallel(partial(label_all, hour), chunks, workers=workers, backend="loky"))
    wall_s = time.perf_counter() - started_s
    parts = [part for chunk in done.values() for part in chunk]
    names = [name for name in asdict(parts[0]) if name != "num_requests"]
    mean_ms = {name.removesuffix("_s"): 1e3 * statistics.mean(getattr(part, name) for part in parts) for name in names}
    totals_ms = [1e3 * sum(getattr(part, name) for name in names) for part in parts]
    return {
        "scenarios": len(parts),
        "workers": workers,
        "cores": os.cpu_count() or 1,
        "horizon_s": hour.horizon_s,
        "wall_s": wall_s,
        "scenarios_per_s": len(parts) / wall_s,
        "cpu_mean_ms": mean_ms,
        "cpu_total_mean_ms": statistics.mean(totals_ms),
        "cpu_total_median_ms": statistics.median(totals_ms),
        "requests_median": statistics.median(part.num_requests for part in parts),
    }


def print_table(result: dict[str, float | int | dict[str, float]]) -> None:
    """Print the rate, and where the time goes."""
    parts = result["cpu_mean_ms"]
    assert isinstance(parts, dict)
    print(
        f"{result['scenarios']} scenarios of {result['horizon_s']:.0f} s on {result['workers']} processes: "
        f"{result['scenarios_per_s']:.1f} per second"
    )
    print("part       mean CPU ms   share")
    for name, value in parts.items():
        print(f"{name:<9}  {value:>11.2f}  {value / sum(parts.values()):>6.0%}")
    print(f"{'total':<9}  {result['cpu_total_mean_ms']:>11.2f}  median {result['cpu_total_median_ms']:.2f}")
    print(f"requests per scenario, median: {result['requests_median']:,.0f}")


if __name__ == "__main__":
    sys.exit(main())
