"""How long best fit takes on thousands of adapters, and how many GPUs it needs.

``python -m benchmarks.packing_speed [--adapters 10000] [--family discrete|zipf] [--solver bfd] [--seed 0] [--smoke]``

Two families on the shipped Llama profile and its surrogate, ranks 8, 16 and 32, lengths of a chat: ``discrete`` draws
each adapter's rate from ten (1.6 requests/s, halved nine times), ``zipf`` spreads a load of 0.3 requests/s per adapter
by Zipf's law with exponent 0.9. Each row is one solve, after one of few adapters that loads and compiles everything.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from placer.surrogates import surrogate_for
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.problem import Limits, Problem
from solvers.registry import get_solver
from twin.engine import EngineConfig, LoraRank
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.popularity import ZipfPopularity
from twin.profile import load_profile
from twin.workload import Adapter, Workload

PROFILE = "llama-3.1-8b-h100-64gb"
RANKS: tuple[LoraRank, ...] = (8, 16, 32)
PROMPT = LengthDistribution(mean=223, std=247, max=1024)
OUTPUT = LengthDistribution(mean=197, std=209, max=1024)
DISCRETE_RATES = tuple(1.6 / 2**halvings for halvings in range(10))
ZIPF_EXPONENT = 0.9
ZIPF_RATE_RPS = 0.3
# No adapter of a Zipf workload is larger than this: more than a GPU serves must be replicated first.
LARGEST_RATE_RPS = 10.0
FAMILIES = ("discrete", "zipf")


def make_problem(family: str, num_adapters: int, *, seed: int) -> Problem:
    """Return a problem of a family with so many adapters."""
    generator = np.random.default_rng(seed)
    if family == "discrete":
        rates = generator.choice(DISCRETE_RATES, size=num_adapters)
    else:
        weights = ZipfPopularity(ZIPF_EXPONENT).probabilities(num_adapters)
        rates = np.minimum(weights * num_adapters * ZIPF_RATE_RPS, LARGEST_RATE_RPS)
    ranks = generator.choice(RANKS, size=num_adapters)
    adapters = tuple(
        Adapter(
            name=f"adapter-{index:06d}",
            rank=RANKS[RANKS.index(int(ranks[index]))],
            rate_rps=float(rates[index]),
            prompt_tokens=PROMPT,
            output_tokens=OUTPUT,
        )
        for index in range(num_adapters)
    )
    profile = load_profile(PROFILE)
    gpu_type = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, cost_per_hour=3.0, profile=PROFILE)
    return Problem(
        model=load_model(profile.model),
        gpu_types=(gpu_type,),
        profiles=(profile,),
        engine=EngineConfig(vllm_version="0.8.5", max_num_seqs=256, gpu_memory_utilization=0.9),
        fixed_max_loras=None,
        fixed_max_lora_rank=None,
        objective="fewest_gpus",
        limits=Limits(),
        workload=Workload(adapters),
    )


def solve_once(family: str, num_adapters: int, solver: str, *, seed: int) -> str:
    """Return a table's row about one solve."""
    problem = make_problem(family, num_adapters, seed=seed)
    surrogate = surrogate_for(problem, "auto", horizon_s=900.0, warmup_s=150.0, seed=seed, workers=1)
    started, started_cpu = time.perf_counter(), time.process_time()
    result = get_solver(solver).solve(problem, surrogate, budget=Budget(), seed=seed)
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    num_gpus = result.placement.num_gpus if result.placement is not None else 0
    statistics = result.statistics
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{family:<9} {num_adapters:>8,} {solver:<12} {num_gpus:>6,} {work_bound(problem).value:>6,} {elapsed_s:>8.2f} "
        f"{cpu_s:>7.2f} {statistics.num_evaluations:>12,} {memory_mib:>6,.0f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Solve and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, action="append", help="repeatable; default 10000")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="repeatable; default both")
    parser.add_argument("--solver", default="bfd")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few adapters, to see that it runs")
    options = parser.parse_args(arguments)
    sizes = [200] if options.smoke else options.adapters or [10_000]
    solve_once("discrete", 200, options.solver, seed=options.seed)
    print("family    adapters solver         GPUs  bound   wall_s   cpu_s         rows    MiB")
    for family in options.family or FAMILIES:
        for size in sizes:
            print(solve_once(family, size, options.solver, seed=options.seed), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
