"""How many simulated seconds the twin's engines run per CPU second.

``python -m benchmarks.twin_speed [--json] [--smoke] [--engines fast,simpy] [--repeats 5] [--seed 0]``

Four cases of one Llama-3.1-8B replica on a 64 GB H100 with the 0.8.5 rules: 128 adapters on 128 slots, 128 on 16, 384
on 16, 384 on 128; rates 0.1, 0.05 and 0.025 requests/s cycled over the adapters, ranks 8 and 16, ShareGPT-like
lengths. The fast engine simulates one hour, the readable one a shorter stretch (it is hundreds of times slower;
`simulated_s` says how long). CPU seconds are those of the process in the engine itself, the median of the repeats;
the requests are drawn before. `peak_memory_mib` is the process's peak so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import numba
import numpy as np

from twin.engine import EngineConfig, LoraRank
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.profile import load_profile
from twin.replica import Replica, ReplicaInputs, build_inputs
from twin.simulate import load_engine
from twin.workload import Adapter, Workload

CASES = ((128, 128), (128, 16), (384, 16), (384, 128))
RATES_RPS = (0.1, 0.05, 0.025)
RANKS: tuple[LoraRank, ...] = (8, 16)
FAST_HORIZON_S = 3600.0
READABLE_HORIZON_S = 120.0
SMOKE_HORIZON_S = 20.0


@dataclass(frozen=True)
class Case:
    """One measured case; `realtime_factor` is simulated seconds per CPU second."""

    engine: str
    adapters: int
    slots: int
    simulated_s: float
    cpu_s: float
    realtime_factor: float
    num_steps: int
    us_per_step: float
    running_mean: float
    waiting_mean: float
    peak_memory_mib: float


def case_inputs(num_adapters: int, num_slots: int, *, horizon_s: float, seed: int) -> ReplicaInputs:
    """Return the inputs of one case."""
    prompt = LengthDistribution(mean=222.9, std=247, max=1024)
    output = LengthDistribution(mean=196.6, std=209, max=1024)
    adapters = tuple(
        Adapter(
            name=f"adapter-{index:03d}",
            rank=RANKS[index % len(RANKS)],
            rate_rps=RATES_RPS[index % len(RATES_RPS)],
            prompt_tokens=prompt,
            output_tokens=output,
        )
        for index in range(num_adapters)
    )
    engine = EngineConfig(
        vllm_version="0.8.5",
        max_loras=num_slots,
        max_lora_rank=max(RANKS),
        max_cpu_loras=num_adapters,
        max_num_seqs=2048,
        max_num_batched_tokens=2048,
    )
    replica = Replica(
        model=load_model("llama-3.1-8b"),
        gpu=GpuType(name="h100-64gb", memory_gib=63.43),
        engine=engine,
        profile=load_profile("llama-3.1-8b-h100-64gb"),
    )
    workload = Workload(adapters)
    requests = workload.requests(horizon_s=horizon_s, seed=seed)
    return build_inputs(workload, requests, replica, horizon_s=horizon_s, hash_seed=seed)


def measure(engine: str, num_adapters: int, num_slots: int, *, horizon_s: float, repeats: int, seed: int) -> Case:
    """Return the median CPU time of `repeats` runs of one case, compiled code warmed up before."""
    run = load_engine(engine)
    run(case_inputs(num_adapters, num_slots, horizon_s=1.0, seed=seed))
    inputs = case_inputs(num_adapters, num_slots, horizon_s=horizon_s, seed=seed)
    durations = []
    for _ in range(repeats):
        start = time.process_time()
        trace = run(inputs)
        durations.append(time.process_time() - start)
    cpu_s = statistics.median(durations)
    return Case(
        engine=engine,
        adapters=num_adapters,
        slots=num_slots,
        simulated_s=horizon_s,
        cpu_s=cpu_s,
        realtime_factor=horizon_s / cpu_s,
        num_steps=trace.num_steps,
        us_per_step=1e6 * cpu_s / trace.num_steps,
        running_mean=trace.running_integral / trace.end_ns,
        waiting_mean=trace.waiting_integral / trace.end_ns,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print a table, or JSON with the key ``cases``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--smoke", action="store_true", help=f"simulate {SMOKE_HORIZON_S:g} s once, to see that it runs"
    )
    parser.add_argument("--engines", default="fast,simpy", help="comma-separated engines")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the fast engine per case")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals and lengths")
    options = parser.parse_args(arguments)
    cases = []
    for engine in options.engines.split(","):
        is_fast = engine == "fast"
        horizon_s = FAST_HORIZON_S if is_fast else READABLE_HORIZON_S
        horizon_s = SMOKE_HORIZON_S if options.smoke else horizon_s
        repeats = options.repeats if is_fast and not options.smoke else 1
        for num_adapters, num_slots in CASES:
            print(f"{engine}: {num_adapters} adapters on {num_slots} slots", file=sys.stderr)
            cases.append(
                measure(engine, num_adapters, num_slots, horizon_s=horizon_s, repeats=repeats, seed=options.seed)
            )
    versions = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    if options.json:
        print(json.dumps({"cases": [asdict(case) for case in cases], "seed": options.seed, "versions": versions}))
        return 0
    print(f"seed {options.seed}, " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print("engine  adapters  slots  simulated_s    cpu_s  x real time    steps  us/step  running  waiting  MiB")
    for case in cases:
        print(
            f"{case.engine:<6}  {case.adapters:>8}  {case.slots:>5}  {case.simulated_s:>11.0f}  {case.cpu_s:>7.3f}  "
            f"{case.realtime_factor:>11,.0f}  {case.num_steps:>7}  {case.us_per_step:>7.2f}  "
            f"{case.running_mean:>7.1f}  {case.waiting_mean:>7.0f}  {case.peak_memory_mib:>3.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
