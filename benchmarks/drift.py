"""Ten steps of drift: GPUs, moves, loads, restarts and starving adapters of three ways to re-plan.

``PLACER_DATA=... python -m benchmarks.drift [--adapters 420] [--steps 10] [--seconds 10] [--horizon 600]
[--handover-horizon 10] [--seed 0] [--smoke] [--update docs/replanning.md]``

Rates are those of real clients (ServeGen) over a day, from the afternoon on, with two hours between steps: an adapter
is a client on one of the days, in ten minutes of every second hour. Where these have no requests, it is gone. All are
scaled alike, so that the mean is 0.3 requests/s, and cut at 2: at night there is less than half of the evening's
traffic, so that GPUs come and go. ``scratch`` makes a new plan at every step, with its GPUs matched to
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
from placer.replanning.arguments import Strategy
from placer.replanning.run import replan
from solvers.problem import Problem
from twin.traces import read_servegen_rates
from twin.workload import Workload

DAY_H = 24
# Between two steps, and between the first moments of two adapters: eleven moments and the offset fit into a day.
HOURS_BETWEEN = 2
LARGEST_OFFSET_H = 3
FIRST_HOUR = 14

HEADER = (
    "step", "strategy", "adapters", "GPUs", "moves", "loads", "restarts", "spare", "starved before", "on the way",
    "after", "steps", "migration s", "verdict", "wall s",
)  # fmt: skip


def client_hours(num_adapters: int, num_moments: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return scaled rates of real clients at consecutive moments of one day, float64 [A, M].

    An adapter is a client on one of the days, seen in one ten-minute window out of every `HOURS_BETWEEN` hours: the
    time of the day is the same for all up to `LARGEST_OFFSET_H`, so that they go up and down together.
    """
    rates = read_servegen_rates(Path(os.environ[DATA_VARIABLE]) / "workloads" / SERVEGEN_FILE)
    window = (rates.window_start_s // rates.window_s).astype(np.int64)
    per_hour = round(HOUR_S / rates.window_s)
    names, client = np.unique(rates.client.astype(str), return_inverse=True)
    seen = np.zeros((len(names), int(window.max()) + 1))
    np.add.at(seen, (client, window), rates.rate_rps)
    steps = np.arange(num_moments) * HOURS_BETWEEN * per_hour
    days = np.arange(FIRST_HOUR * per_hour, seen.shape[1], DAY_H * per_hour)
    firsts = days[:, None] + np.arange(LARGEST_OFFSET_H * per_hour)
    firsts = firsts[firsts + steps[-1] < seen.shape[1]]
    windows = seen[:, firsts[:, None] + steps].reshape(-1, num_moments)
    # Clients that send something now and then are most of the trace; half of the moments make one an adapter.
    busy = windows[(windows > 0.0).mean(axis=1) >= 0.5]
    drawn = busy[generator.permutation(len(busy))[:num_adapters]]
    if len(drawn) < num_adapters:
        raise SystemExit(f"{num_adapters} adapters are wanted, and the trace has {len(drawn)} with so many steps.")
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


def row_of(step: str, strategy: str, made: Replan, before: Plan, wall_s: float) -> list[str]:
    """Return a row of the table; `before` is the plan that was in place."""
    changes, way = made.changes, made.migration
    served_before = set(made.before.starved_adapters) & {name for gpu in before.gpus for name in gpu.adapters}
    newly = {name for step_made in way.steps for name in step_made.check.newly_starved}
    after = {name for gpu in made.plan.gpus if gpu.verification for name in gpu.verification.starved_adapters}
    numbers = (
        sum(len(gpu.adapters) for gpu in made.plan.gpus), made.plan.num_gpus, changes.num_moves, way.num_loads,
        way.num_restarts, way.spare_gpus, len(served_before), len(newly), len(after), len(way.steps),
    )  # fmt: skip
    return [step, strategy, *(f"{it:,}" for it in numbers), f"{way.total_s:,.0f}", made.verdict, f"{wall_s:.0f}"]


def totals(rows: Sequence[Sequence[str]], strategy: str) -> list[str]:
    """Return the sums of a strategy's rows: of GPUs, the mean."""
    own = [[float(cell.replace(",", "")) for cell in row[2:13]] for row in rows if row[1] == strategy]
    sums = np.sum(own, axis=0)
    safe = sum(1 for row in rows if row[1] == strategy and row[13] == "accepted")
    cells = [f"{sums[0] / len(own):,.0f}", f"{sums[1] / len(own):.1f}", *(f"{it:,.0f}" for it in sums[2:])]
    wall_s = sum(float(row[14]) for row in rows if row[1] == strategy)
    return ["all", strategy, *cells, f"{safe} of {len(own)} accepted", f"{wall_s:.0f}"]


def compared(rows: Sequence[Sequence[str]], num_gpus_before: int) -> list[str]:
    """Return how `near` compares with `scratch`: GPUs and moves in all, and where the number of its GPUs changes."""
    by_step: dict[str, dict[str, tuple[int, int]]] = {}
    for row in rows:
        by_step.setdefault(row[0], {})[row[1]] = int(row[3]), int(row[4].replace(",", ""))
    more = [own["near"][0] - own["scratch"][0] for own in by_step.values()]
    moves = [sum(own[strategy][1] for own in by_step.values()) for strategy in ("near", "scratch")]
    text = (
        f"`near` has {min(more):+d} to {max(more):+d} GPUs against `scratch` at each step ({sum(more):+d} in all), and "
        f"{moves[0]:,} moves of its {moves[1]:,} ({moves[0] / max(1, moves[1]):.0%})."
    )
    before, changes = num_gpus_before, []
    for step, own in by_step.items():
        (now, moved), (_, scratch_moved) = own["near"], own["scratch"]
        if now != before:
            changes.append(f"step {step} from {before} to {now} with {moved} moves against {scratch_moved}")
        before = now
    return [text, f"Its GPUs change in number at {'; '.join(changes) or 'no step'}."]


def main() -> None:
    """Run the steps and print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, default=420)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the solver, for each plan from scratch")
    parser.add_argument("--horizon", type=float, default=600.0, help="simulated seconds; a sixth is warm-up")
    parser.add_argument("--handover-horizon", type=float, default=10.0)
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
    window = {"horizon_s": options.horizon, "warmup_s": options.horizon / 6.0}
    first = plan(hourly[0], budget=options.seconds, seed=options.seed, **window)
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
                **window,
            )
            rows.append(row_of(str(number), strategy, made, plans[strategy], time.perf_counter() - began))
            plans[strategy] = made.plan
            print(" ".join(rows[-1]), made.method, flush=True)
    summary = compared(rows, first.num_gpus)
    rows += [totals(rows, strategy) for strategy in get_args(Strategy)]
    asked = (
        f"{options.adapters} adapters, {options.steps} steps, seed {options.seed}, {options.seconds:g} s of solver, "
        f"{options.horizon:g} s simulated for each GPU and {options.handover_horizon:g} s for each handover"
    )
    versions = ", ".join(f"{name} {number}" for name, number in software_versions().items())
    print_or_update({"drift": [*table(HEADER, rows), "", *summary, "", f"{asked}; {versions}."]}, options.update)


if __name__ == "__main__":
    main()
