"""Ten steps of drift: GPUs, moves, loads, restarts and starving adapters of three ways to re-plan.

``PLACER_DATA=... python -m benchmarks.drift [--adapters 200] [--steps 10] [--seconds 10] [--handover-horizon 30]
[--seed 0] [--smoke] [--update docs/replanning.md]``

Rates are those of real clients (ServeGen), each step the mean of the next hour: an adapter is a client in a window of
consecutive hours. In hours without requests it is gone. All are scaled alike,
so that the mean is 0.3 requests/s, and cut at 2. ``scratch`` makes a new plan at every step, with its GPUs matched to
those in place such that the moves are the fewest; ``repair`` lets GPUs keep what they have; ``near`` is what `placer
replan` does. Each goes on from its own plan. Starving: adapters that the twin sees starve under the new rates before
the step, who is new or on no GPU not counted; on the way, those that did not starve before; and after it. ``--smoke``:
random rates, few adapters and two steps.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.document_tables import print_or_update, table
from placer.instances.instance import chat_adapters, dealt_ranks, make_problem
from placer.instances.recorded import (
    CLIENT_LARGEST_RPS,
    CLIENT_MEAN_RPS,
    DATA_VARIABLE,
    HOUR_S,
    SERVEGEN_FILE,
    missing_data,
)
from placer.plan_document import Plan
from placer.planning import plan
from placer.provenance import software_versions
from placer.replan_document import Replan
from placer.replanning.run import Strategy, replan
from solvers.problem import Problem
from twin.traces import read_servegen_rates
from twin.workload import Workload

# Hours between the beginnings of a client's windows: several adapters may be the same client at other times.
WINDOW_STRIDE = 3

HEADER = (
    "step", "strategy", "adapters", "GPUs", "moves", "loads", "restarts", "spare", "starved before", "on the way",
    "after", "steps", "migration s", "verdict", "wall s",
)  # fmt: skip


def client_hours(num_adapters: int, num_hours: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return scaled rates of real clients in consecutive hours, float64 [A, H]."""
    rates = read_servegen_rates(Path(os.environ[DATA_VARIABLE]) / "workloads" / SERVEGEN_FILE)
    hour = (rates.window_start_s // HOUR_S).astype(np.int64)
    names, client = np.unique(rates.client.astype(str), return_inverse=True)
    hourly = np.zeros((len(names), int(hour.max()) + 1))
    np.add.at(hourly, (client, hour), rates.rate_rps * rates.window_s / HOUR_S)
    windows = np.lib.stride_tricks.sliding_window_view(hourly, num_hours, axis=1)[:, ::WINDOW_STRIDE]
    windows = windows.reshape(-1, num_hours)
    # Clients that send something now and then are most of the trace; half of the hours make one an adapter.
    busy = windows[(windows > 0.0).mean(axis=1) >= 0.5]
    drawn = busy[generator.permutation(len(busy))[:num_adapters]]
    if len(drawn) < num_adapters:
        raise SystemExit(f"{num_adapters} adapters are wanted, and the trace has {len(drawn)} in {num_hours} hours.")
    largest = drawn.max(axis=1, keepdims=True)
    mean = drawn[drawn > 0.0].mean()
    return np.asarray(drawn * np.minimum(CLIENT_MEAN_RPS / mean, CLIENT_LARGEST_RPS / largest))


def random_hours(num_adapters: int, num_hours: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return rates that drift at random, float64 [A, H], some of them 0."""
    first = generator.lognormal(np.log(CLIENT_MEAN_RPS), 1.0, size=(num_adapters, 1))
    drift = np.exp(np.cumsum(generator.normal(0.0, 0.4, size=(num_adapters, num_hours)), axis=1))
    return np.minimum(first * drift * (generator.random((num_adapters, num_hours)) > 0.05), CLIENT_LARGEST_RPS)


def problems(rates: NDArray[np.float64], generator: np.random.Generator) -> list[Problem]:
    """Return the problem of each hour: the adapters with a rate above 0."""
    ranks = dealt_ranks((8, 16, 32), len(rates), generator)
    made = []
    for hour in range(rates.shape[1]):
        everyone = chat_adapters(ranks, np.maximum(rates[:, hour], 1e-9))
        present = tuple(one for one, rate in zip(everyone, rates[:, hour], strict=True) if rate > 0.0)
        problem = make_problem(everyone)
        made.append(replace(problem, workload=Workload(present)))
    return made


def row_of(step: str, strategy: str, made: Replan, wall_s: float) -> list[str]:
    """Return a row of the table."""
    changes, way = made.changes, made.migration
    served_before = set(made.before.starved_adapters) - _unserved(made)
    newly = {name for step_made in way.steps for name in step_made.check.newly_starved}
    after = {name for gpu in made.plan.gpus if gpu.verification for name in gpu.verification.starved_adapters}
    numbers = (
        sum(len(gpu.adapters) for gpu in made.plan.gpus), made.plan.num_gpus, changes.num_moves, way.num_loads,
        way.num_restarts, way.spare_gpus, len(served_before), len(newly), len(after), len(way.steps),
    )  # fmt: skip
    return [step, strategy, *(f"{it:,}" for it in numbers), f"{way.total_s:,.0f}", made.verdict, f"{wall_s:.0f}"]


def _unserved(made: Replan) -> set[str]:
    """Return the adapters that nobody served before."""
    return {
        name
        for step in made.migration.steps
        for shift in step.shifts
        if shift.source is None
        for name in shift.adapters
    }


def totals(rows: Sequence[Sequence[str]], strategy: str) -> list[str]:
    """Return the sums of a strategy's rows: of GPUs, the mean."""
    own = [[float(cell.replace(",", "")) for cell in row[2:13]] for row in rows if row[1] == strategy]
    sums = np.sum(own, axis=0)
    safe = sum(1 for row in rows if row[1] == strategy and row[13] == "accepted")
    cells = [f"{sums[0] / len(own):,.0f}", f"{sums[1] / len(own):.1f}", *(f"{it:,.0f}" for it in sums[2:])]
    wall_s = sum(float(row[14]) for row in rows if row[1] == strategy)
    return ["all", strategy, *cells, f"{safe} of {len(own)} accepted", f"{wall_s:.0f}"]


def main() -> None:
    """Run the steps and print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the solver, for each plan from scratch")
    parser.add_argument("--handover-horizon", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--update", type=Path)
    options = parser.parse_args()
    if options.smoke:
        options.adapters, options.steps, options.seconds, options.handover_horizon = 16, 2, 1.0, 10.0
    elif missing_data():
        raise SystemExit(missing_data())
    generator = np.random.default_rng(options.seed)
    hours = random_hours if options.smoke else client_hours
    hourly = problems(hours(options.adapters, options.steps + 1, generator), generator)
    first = plan(hourly[0], budget=options.seconds, seed=options.seed)
    print(f"in place: {first.num_gpus} GPUs, {first.verdict}, {len(hourly[0].adapters)} adapters", flush=True)
    plans: dict[str, Plan] = dict.fromkeys(get_args(Strategy), first)
    rows = []
    for number, problem in enumerate(hourly[1:], start=1):
        for strategy in get_args(Strategy):
            began = time.perf_counter()
            made = replan(
                plans[strategy],
                problem,
                strategy=strategy,
                budget=options.seconds,
                seed=options.seed,
                handover_horizon_s=options.handover_horizon,
                surrogate="auto",
            )
            plans[strategy] = made.plan
            rows.append(row_of(str(number), strategy, made, time.perf_counter() - began))
            print(" ".join(rows[-1]), made.method, flush=True)
    rows += [totals(rows, strategy) for strategy in get_args(Strategy)]
    asked = f"{options.adapters} adapters, {options.steps} steps, seed {options.seed}, {options.seconds:g} s of solver"
    versions = ", ".join(f"{name} {number}" for name, number in software_versions().items())
    print_or_update({"drift": [*table(HEADER, rows), "", f"{asked}; {versions}."]}, options.update)


if __name__ == "__main__":
    main()
