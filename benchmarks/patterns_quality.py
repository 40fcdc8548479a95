"""How many GPUs column generation needs, beside best fit and the bounds, on instances like those of the solver study.

``python -m benchmarks.patterns_quality [--update docs/solvers.md] [--seconds 120] [--families NAME ...]
[--most-adapters 400] [--smoke]``

Discrete and Zipf rates are those of `benchmarks.packing_speed`; ``lengths`` has discrete rates and three classes of
lengths. Each family is solved with the shipped surrogate, whose network is bounded layer by layer, and with the closed
form of the tests. Farley's bound is proven for both; a proof that would say less than the work bound is not reported.
Times are CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.document_tables import print_or_update, table
from benchmarks.packing_speed import make_problem
from placer.surrogates import surrogate_for
from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.problem import Problem
from solvers.registry import get_solver
from solvers.result import SolveResult
from tests.solvers.analytic import ClosedFormSurrogate
from twin.lengths import LengthDistribution
from twin.workload import Workload

# Mean prompt and output of a chat, of a longer conversation, and of code completion.
LENGTH_CLASSES = ((223.0, 197.0), (1150.0, 210.0), (2050.0, 30.0))
INSTANCES = (
    ("discrete", 96),
    ("discrete", 400),
    ("discrete", 2_000),
    ("discrete", 10_000),
    ("zipf", 96),
    ("zipf", 400),
    ("zipf", 2_000),
    ("zipf", 10_000),
    ("lengths", 2_000),
)
SMOKE_INSTANCES = (("discrete", 60),)
# Of the closed form, so that its fleets are about as large as those of the shipped surrogate.
SPEED = 2.0
HEADER = (
    "family",
    "adapters",
    "model",
    "`bfd` GPUs",
    "`bfd` s",
    "`patterns` GPUs",
    "`patterns` s",
    "bound",
    "proof",
    "over the bound",
)


def instance(family: str, num_adapters: int, *, seed: int) -> Problem:
    """Return the problem of a family."""
    if family != "lengths":
        return make_problem(family, num_adapters, seed=seed)
    problem = make_problem("discrete", num_adapters, seed=seed)
    classes = np.random.default_rng(seed).integers(len(LENGTH_CLASSES), size=num_adapters)
    lengths = [
        {
            "prompt_tokens": LengthDistribution(mean=prompt, std=prompt, max=4_000),
            "output_tokens": LengthDistribution(mean=output, std=output, max=2_000),
        }
        for prompt, output in LENGTH_CLASSES
    ]
    adapters = tuple(
        adapter.model_copy(update=lengths[chosen]) for adapter, chosen in zip(problem.adapters, classes, strict=True)
    )
    return replace(problem, workload=Workload(adapters=adapters))


def row_of(family: str, num_adapters: int, model: str, *, seed: int, seconds: float) -> tuple[str, ...]:
    """Solve one instance with both solvers and return its row of the table."""
    problem = instance(family, num_adapters, seed=seed)
    surrogate: Surrogate = ClosedFormSurrogate(speed=SPEED)
    if model == "shipped":
        surrogate = surrogate_for(problem, "auto", horizon_s=900.0, warmup_s=150.0, seed=seed, workers=1)
    best_fit, best_fit_s = timed("bfd", problem, surrogate, seed=seed, seconds=seconds)
    patterns, patterns_s = timed("patterns", problem, surrogate, seed=seed, seconds=seconds)
    assert best_fit.evaluation is not None
    assert patterns.evaluation is not None
    assert patterns.bound is not None
    # The work bound is the twin's: how far a placement of the surrogate's problem is from it says nothing about the
    # solver.
    is_own = patterns.bound.model == "surrogate"
    ratio = patterns.evaluation.num_gpus / patterns.bound.value
    return (
        family,
        f"{num_adapters:,}",
        model,
        str(best_fit.evaluation.num_gpus),
        f"{best_fit_s:.1f}",
        str(patterns.evaluation.num_gpus),
        f"{patterns_s:.1f}",
        str(patterns.bound.value),
        f"{patterns.bound.proof} ({patterns.bound.model})",
        f"{ratio:.3f}" if is_own else "-",
    )


def timed(name: str, problem: Problem, surrogate: Surrogate, *, seed: int, seconds: float) -> tuple[SolveResult, float]:
    """Solve a problem; return the result and the CPU seconds that it took."""
    started = time.process_time()
    result = get_solver(name).solve(problem, surrogate, budget=Budget(seconds=seconds), seed=seed)
    return result, time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=Path, metavar="DOCUMENT", help="write the table into this document")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each solve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="+", choices=sorted({family for family, _ in INSTANCES}))
    parser.add_argument("--most-adapters", type=int, default=10_000, help="of an instance")
    parser.add_argument("--smoke", action="store_true", help="one small instance")
    options = parser.parse_args(arguments)
    instances = SMOKE_INSTANCES if options.smoke else INSTANCES
    rows = []
    for model in ("closed form", "shipped"):
        for family, num_adapters in instances:
            is_other = bool(options.families) and family not in options.families
            if is_other or num_adapters > options.most_adapters:
                continue
            rows.append(row_of(family, num_adapters, model, seed=options.seed, seconds=options.seconds))
            print(" | ".join(rows[-1]), flush=True)
    print_or_update({"patterns": table(HEADER, rows)}, options.update)


if __name__ == "__main__":
    main()
