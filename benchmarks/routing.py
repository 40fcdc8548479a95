"""Placement against routing on a made-up fleet: the table of `placer routing` for many adapters with Zipf's popularity.

``python -m benchmarks.routing [--adapters 1000] [--rps 60] [--horizon 600] [--margin 0.1] [--slots 32 --slots 128]
[--smoke]``

Llama-3.1-8B on the shipped profile, ranks 8, 16 and 32, chat lengths; planned with best fit, checked by the twin.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from benchmarks.document_tables import number, table
from placer.files import load_problem, save_plan
from placer.planning import plan
from placer.routing_document import FleetRun, PolicyResult, RoutingStudy
from placer.routing_study import routing

EXPONENT = 0.9
PROFILE = "llama-3.1-8b-h100-64gb"
LENGTHS = {
    "prompt_tokens": {"mean": 223, "std": 247, "max": 1024},
    "output_tokens": {"mean": 197, "std": 209, "max": 1024},
}


def problem_data(num_adapters: int, total_rps: float) -> dict[str, object]:
    """Return the content of a problem file."""
    weights = np.arange(1, num_adapters + 1) ** -EXPONENT
    rates = total_rps * weights / weights.sum()
    return {
        "schema_version": 1,
        "model": "llama-3.1-8b",
        "gpu_types": [{"name": "h100-64gb", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE}],
        "engine": {
            "vllm_version": "0.8.5",
            "max_num_seqs": 256,
            "max_num_batched_tokens": 2048,
            "gpu_memory_utilization": 0.9,
            "max_model_len": 8192,
        },
        "adapters": [
            {"name": f"a{index:05d}", "rank": (8, 16, 32)[index % 3], "rate_rps": round(float(rate), 6), **LENGTHS}
            for index, rate in enumerate(rates)
        ],
    }


def rows_of(result: PolicyResult, study: RoutingStudy) -> list[list[str]]:
    """Return the rows of a policy: with the plan's number of GPUs, and with the fewest that serve."""
    name = result.policy if result.replicas is None else f"{result.replicas} {result.policy}"
    most = study.plan_gpus if result.policy == "planned" else study.most_gpus
    needed = f"> {most}" if result.fewest is None else str(result.fewest.num_gpus)
    runs = [run for run in (result.at_plan, result.fewest) if run is not None]
    return [[name, needed, *_cells(run)] for run in dict.fromkeys(runs)]


def _cells(run: FleetRun) -> list[str]:
    return [
        str(run.num_gpus),
        "plan's" if run.max_loras is None else str(run.max_loras),
        number(run.throughput_ratio, 3),
        str(run.num_starved_adapters),
        number(run.gpu_loads_per_s),
        number(run.ttft_p95_s),
        number(run.itl_p95_s, 3),
    ]


def main(arguments: list[str]) -> None:
    """Plan the fleet, compare the policies, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--rps", type=float, default=60.0)
    parser.add_argument("--horizon", type=float, default=600.0)
    parser.add_argument("--margin", type=float, default=0.1)
    parser.add_argument("--slots", type=int, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a small fleet, within seconds")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.adapters, options.rps, options.horizon, options.slots = 60, 20.0, 60.0, [16]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.yaml"
        path.write_text(yaml.safe_dump(problem_data(options.adapters, options.rps), sort_keys=False), encoding="utf-8")
        result = plan(
            load_problem(path),
            solver="bfd",
            margin=options.margin,
            improve=False,
            horizon_s=options.horizon,
            warmup_s=options.horizon / 6.0,
            seed=options.seed,
        )
        save_plan(result, path.with_name("plan.json"))
        study = routing(path.with_name("plan.json"), problem=path, slots=tuple(options.slots or (32, 128)))
    print(
        f"{study.num_adapters} adapters, {study.offered_rps:.1f} requests/s, {study.horizon_s:g} s "
        f"({study.warmup_s:g} s warm-up), seed {study.seed}; plan: {result.verdict}"
    )
    header = ["policy", "needed", "GPUs", "slots", "ratio", "starved", "loads/s", "TTFT p95 s", "ITL p95 s"]
    rows = [row for policy in study.policies for row in rows_of(policy, study)]
    print("\n".join(table(header, rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
