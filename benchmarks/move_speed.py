"""How long the update of a GPU's features takes when an adapter leaves it and another one joins.

``python -m benchmarks.move_speed [--moves 200000] [--seed 0] [--smoke]``

Compiled: `solvers.local_search.moves.exchanged_rows`, as local search calls it, 512 moves at once and all at once.
Recomputed: the sum over the members, as the evaluator forms it. Both must agree to the bit. The best of five runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.packing_speed import make_problem
from solvers.local_search.moves import exchanged_rows

REPETITIONS = 5
BATCH = 512
ADAPTERS_PER_GPU = 70
RECOMPUTED = 5_000


def best_s(task: Callable[[], object]) -> float:
    """Return the shortest of a few runs, in seconds."""
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        task()
        times.append(time.perf_counter() - started)
    return min(times)


def draw_moves(members: NDArray[np.int64], num_moves: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return moves, int64 [M, 3]: a GPU, one of its members, and one of another GPU's."""
    num_gpus, size = members.shape
    gpus = generator.integers(num_gpus, size=num_moves)
    others = (gpus + generator.integers(1, num_gpus, size=num_moves)) % num_gpus
    slots = generator.integers(size, size=(2, num_moves))
    return np.stack([gpus, members[gpus, slots[0]], members[others, slots[1]]], axis=1)


def main(arguments: list[str] | None = None) -> int:
    """Time, compare, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moves", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few moves, to see that it runs")
    options = parser.parse_args(arguments)
    num_moves = RECOMPUTED if options.smoke else max(options.moves, RECOMPUTED)
    generator = np.random.default_rng(options.seed)
    num_gpus = 100
    problem = make_problem("discrete", num_gpus * ADAPTERS_PER_GPU, seed=options.seed)
    aggregates = problem.aggregates
    members = generator.permutation(len(aggregates)).reshape(num_gpus, ADAPTERS_PER_GPU)
    rows = aggregates[members].sum(axis=1)
    moves = draw_moves(members, num_moves, generator)
    updated = np.empty((num_moves, rows.shape[1]))
    ranks = np.empty(num_moves, dtype=np.int64)
    recomputed = np.empty((RECOMPUTED, rows.shape[1]))

    def update_at_once() -> None:
        exchanged_rows(rows, aggregates, moves, updated, ranks)

    def update_in_batches() -> None:
        for start in range(0, num_moves, BATCH):
            chosen = slice(start, start + BATCH)
            exchanged_rows(rows, aggregates, moves[chosen], updated[chosen], ranks[chosen])

    def recompute() -> None:
        for index, (gpu, leaving, joining) in enumerate(moves[:RECOMPUTED]):
            kept = members[gpu][members[gpu] != leaving]
            recomputed[index] = aggregates[kept].sum(axis=0) + aggregates[joining]

    update_at_once()
    print(f"{rows.shape[1]} features, {ADAPTERS_PER_GPU} adapters per GPU")
    print("update                      moves  ns/move")
    for name, task, count in (
        ("compiled, at once", update_at_once, num_moves),
        (f"compiled, {BATCH} a call", update_in_batches, num_moves),
        ("recomputed from members", recompute, RECOMPUTED),
    ):
        print(f"{name:<24} {count:>8,} {1e9 * best_s(task) / count:>8,.0f}")
    is_equal = np.array_equal(updated[:RECOMPUTED], recomputed)
    print(f"compared {RECOMPUTED:,} moves with recomputation: {'equal to the bit' if is_equal else 'NOT EQUAL'}")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
