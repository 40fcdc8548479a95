"""How far solvers are from proven bounds under a function of sums, asked as a user's own is: by `placer compare`.

``python -m benchmarks.known_bounds [--surrogate FILE] [--adapters 400 2000 10000] [--families NAME ...]
[--solvers NAME ...] [--budget 60] [--proof-seconds 300] [--update docs/solvers.md] [--smoke]``

The families are those of the solver study: ten rates from 1.6 requests/s, halved nine times; a cold tail of ten rates
from 0.1 to 0.003; Zipf's law; three classes of lengths; and planted GPUs, filled until nothing fits and shuffled.
`benchmarks/closed_form_oracle.py` says one set at a time what a GPU serves, and what its formula certifies gives
Farley's bound. The instances with these bounds are written as files, and
``placer compare --instances DIR --surrogate benchmarks/closed_form_oracle.py:Oracle --no-verify`` does the rest. A
bound is the larger one of the file's and of those that the compared solvers prove.

With ``--surrogate FILE`` an ONNX surrogate is asked, with the slots and the memory that plans have; bounds are then of
its problem, and there are no planted GPUs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.closed_form_oracle import Oracle
from benchmarks.document_tables import print_or_update, table
from placer.foreign_surrogate import load_object, without_physics
from placer.instances.user_files import read_instances
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.patterns.solver import PatternsSolver
from twin.popularity import ZipfPopularity

ORACLE = f"{Path(__file__).with_name('closed_form_oracle.py')}:Oracle"
RANKS = (8, 16, 32, 64)
DISCRETE_RATES = 1.6 / 2.0 ** np.arange(10)
COLD_RATES = np.geomspace(0.1, 0.003, 10)
ZIPF_EXPONENT = 0.9
ZIPF_RATE_RPS = 0.1
LARGEST_RATE_RPS = 3.0
CHAT = (223.0, 197.0)
LENGTH_CLASSES = (CHAT, (600.0, 60.0), (350.0, 30.0))
# Levels of rates by which adapters are valued for the bound, where nearly all rates differ.
PROOF_LEVELS = 30
FAMILIES = ("discrete", "cold", "zipf", "lengths", "planted")
SIZES = (400, 2_000, 10_000)
SOLVERS = ("bfd", "patterns", "local_search", "portfolio")
HEADER = ("instance", "solver", "GPUs", "bound", "over the bound", "best after s", "ended after s", "rows asked")


def instance(family: str, num_adapters: int, *, seed: int) -> dict[str, Any]:
    """Return the content of an instance's file."""
    generator = np.random.default_rng([seed, FAMILIES.index(family), num_adapters])
    if family == "planted":
        return planted(num_adapters, generator)
    rates = generator.choice(COLD_RATES if family == "cold" else DISCRETE_RATES, size=num_adapters)
    lengths = np.tile(CHAT, (num_adapters, 1))
    if family == "zipf":
        shares = ZipfPopularity(ZIPF_EXPONENT).probabilities(num_adapters)
        rates = np.minimum(shares * num_adapters * ZIPF_RATE_RPS, LARGEST_RATE_RPS)
    if family == "lengths":
        lengths = np.array(LENGTH_CLASSES)[generator.integers(len(LENGTH_CLASSES), size=num_adapters)]
    return content(generator.choice(RANKS, size=num_adapters), rates, lengths)


def planted(num_adapters: int, generator: np.random.Generator) -> dict[str, Any]:
    """Return at least so many adapters: those of GPUs of one rank each, filled until none of many others fits."""
    oracle = Oracle()
    rates: list[float] = []
    ranks: list[int] = []
    num_gpus = 0
    while len(rates) < num_adapters:
        rank = RANKS[num_gpus % len(RANKS)]
        own: list[float] = []
        for rate in generator.choice(DISCRETE_RATES, size=400):
            sums = (float(np.sum([*own, rate])), float(np.sum(np.square([*own, rate]))))
            loads = (sums[0] * CHAT[0], sums[0] * CHAT[1])
            if oracle.feasible(len(own) + 1, *sums, *loads, rank)[0]:
                own.append(float(rate))
        rates += own
        ranks += [rank] * len(own)
        num_gpus += 1
    order = generator.permutation(len(rates))
    shuffled = content(np.array(ranks)[order], np.array(rates)[order], np.tile(CHAT, (len(rates), 1)))
    return {**shuffled, "planted_gpus": num_gpus}


def content(ranks: NDArray[np.int64], rates: NDArray[np.float64], lengths: NDArray[np.float64]) -> dict[str, Any]:
    """Return arrays, [A] each and lengths [A, 2], as an instance's file has them."""
    return {
        "rank": ranks.tolist(),
        "rate_rps": rates.tolist(),
        "prompt_tokens": lengths[:, 0].tolist(),
        "output_tokens": lengths[:, 1].tolist(),
    }


def proven(file: Path, surrogate: str, *, seconds: float) -> int:
    """Return the bound that `patterns` proves of an instance's file within some seconds; at least 1."""
    problem = read_instances(file).instances[0].problem
    asked: Surrogate = load_object(ORACLE) if surrogate == ORACLE else OnnxSurrogate.load(surrogate)
    result = PatternsSolver(num_dives=0, rate_levels=PROOF_LEVELS).solve(
        without_physics(problem) if surrogate == ORACLE else problem, asked, budget=Budget(seconds=seconds)
    )
    return result.bound.value if result.bound is not None and result.bound.model == "surrogate" else 1


def compared(folder: Path, surrogate: str, solvers: Sequence[str], *, budget: float) -> list[dict[str, Any]]:
    """Run `placer compare` on a folder of instances and return its runs."""
    chosen = [part for solver in solvers for part in ("--solver", solver)]
    command = [sys.executable, "-m", "placer", "compare", "--instances", str(folder), "--surrogate", surrogate]
    options = ["--no-verify", "--budget", str(budget), "--reference", solvers[0], *chosen, "--json"]
    run = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    runs: list[dict[str, Any]] = json.loads(run.stdout)["runs"]
    return runs


def rows_of(name: str, data: dict[str, Any], runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of an instance's table, one for each run."""
    own = [run["bound"]["value"] for run in runs if run["bound"] and run["bound"]["model"] == "surrogate"]
    bound = max([data.get("lower_bound", 1), *own])
    rows: list[tuple[str, ...]] = []
    for run in runs:
        gpus = run["num_gpus"]
        if gpus is None:
            rows.append((name, run["solver"], "-", str(bound), run["reason"], "-", "-", "-"))
            continue
        if gpus < bound:
            raise AssertionError(f"{name}: {run['solver']} needs {gpus} GPUs, below the bound {bound}")
        planted_gpus = f" (planted {data['planted_gpus']})" if "planted_gpus" in data else ""
        times = (f"{run['best_s']:.1f}", f"{run['runtime_s']:.1f}", f"{run['num_evaluations']:,}")
        rows.append((name, run["solver"], f"{gpus}{planted_gpus}", str(bound), f"{gpus / bound:.3f}", *times))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the instances, prove their bounds, compare the solvers, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", type=int, default=SIZES)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of each run")
    parser.add_argument("--proof-seconds", type=float, default=300.0, help="for the bound of each instance; 0: none")
    parser.add_argument("--surrogate", default=ORACLE, help="ONNX file; default: the closed form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--update", type=Path, metavar="DOCUMENT", help="write the table into this document")
    parser.add_argument("--smoke", action="store_true", help="60 adapters and short budgets, to see that it runs")
    options = parser.parse_args(arguments)
    sizes, budget, proof = options.adapters, options.budget, options.proof_seconds
    if options.smoke:
        sizes, budget, proof = [60], 2.0, 2.0
    rows: list[tuple[str, ...]] = []
    is_closed_form = options.surrogate == ORACLE
    families = [family for family in options.families if is_closed_form or family != "planted"]
    for size in sizes:
        for family in families:
            name = f"{family}-{size}"
            data = instance(family, size, seed=options.seed)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{name}.json"
                file.write_text(json.dumps(data), encoding="utf-8")
                if proof > 0.0:
                    data["lower_bound"] = proven(file, options.surrogate, seconds=proof)
                    file.write_text(json.dumps(data), encoding="utf-8")
                runs = compared(Path(folder), options.surrogate, options.solvers, budget=budget)
            rows += rows_of(name, data, runs)
            for row in rows[-len(runs) :]:
                print(" | ".join(row), flush=True)
    name = "known bounds" if is_closed_form else "known bounds of polyhedra"
    print_or_update({name: table(HEADER, rows)}, options.update)


if __name__ == "__main__":
    main()
