"""How many simulated seconds the twin's engines run per CPU second.

``python -m benchmarks.twin_speed [--json] [--smoke] [--engines fast,simpy] [--repeats 5] [--seed 0]``
``python -m benchmarks.twin_speed --scaling scaling.png [--smoke] [--repeats 5] [--seed 0]``

Four cases of one Llama-3.1-8B replica on a 64 GB H100 with the 0.8.5 rules: 128 adapters on 128 slots, 128 on 16, 384
on 16, 384 on 128; rates 0.1, 0.05 and 0.025 requests/s cycled over the adapters, ranks 8 and 16, ShareGPT-like
lengths. The fast engine simulates one hour, the readable one a shorter stretch (it is hundreds of times slower;
`simulated_s` says how long). CPU seconds are those of the process in the engine itself, the median of the repeats;
the requests are drawn before. `peak_memory_mib` is the process's peak so far.

A fifth case of the fast engine, 384 adapters on 128 slots under ten times the load, counts only the steps from 500 s
on, when more than 100,000 requests wait: CPU seconds of a run to the end less those of a run that ends there.

``--scaling`` measures the fast engine over the offered load (128 adapters on 128 slots) and over the number of adapters
(at the load of 128, on as many slots but at most 128), and writes a table as CSV and, if the file is a .png, a plot and
the table beside it. The plot needs matplotlib (extra ``report``).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numba
import numpy as np

from placer.files import write_atomically
from twin.engine import EngineConfig, LoraRank
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.profile import load_profile
from twin.replica import Replica, ReplicaInputs, ReplicaTrace, build_inputs
from twin.simulate import load_engine
from twin.workload import NANOSECONDS, Adapter, Workload

CASES = ((128, 128), (128, 16), (384, 16), (384, 128))
RATES_RPS = (0.1, 0.05, 0.025)
RANKS: tuple[LoraRank, ...] = (8, 16)
FAST_HORIZON_S = 3600.0
READABLE_HORIZON_S = 120.0
SMOKE_HORIZON_S = 20.0
LONG_QUEUE_CASE = (384, 128)
LONG_QUEUE_LOAD = 10.0
LONG_QUEUE_FROM_S, LONG_QUEUE_HORIZON_S = 500.0, 1500.0
SCALING_LOADS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SCALING_ADAPTERS = (8, 16, 32, 64, 128, 256, 384)
SCALING_HORIZON_S = 900.0
SCALING_COLUMNS = (
    "adapters",
    "slots",
    "load",
    "simulated_s",
    "num_steps",
    "realtime_factor",
    "us_per_step",
    "running_mean",
    "waiting_mean",
)


@dataclass(frozen=True)
class Case:
    """One measured case; `realtime_factor` is simulated seconds per CPU second.

    `load` multiplies the rates. Everything is about the part of the run after `from_s`, when `first_waiting` requests
    waited.
    """

    engine: str
    adapters: int
    slots: int
    load: float
    from_s: float
    first_waiting: int
    simulated_s: float
    cpu_s: float
    realtime_factor: float
    num_steps: int
    us_per_step: float
    running_mean: float
    waiting_mean: float
    peak_memory_mib: float


def case_inputs(num_adapters: int, num_slots: int, *, horizon_s: float, seed: int, load: float = 1.0) -> ReplicaInputs:
    """Return the inputs of one case; `load` multiplies the rates."""
    prompt = LengthDistribution(mean=222.9, std=247, max=1024)
    output = LengthDistribution(mean=196.6, std=209, max=1024)
    adapters = tuple(
        Adapter(
            name=f"adapter-{index:03d}",
            rank=RANKS[index % len(RANKS)],
            rate_rps=load * RATES_RPS[index % len(RATES_RPS)],
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


def timed(run: Callable[[ReplicaInputs], ReplicaTrace], inputs: ReplicaInputs) -> tuple[float, ReplicaTrace]:
    """Return the CPU seconds of one run and its trace."""
    start = time.process_time()
    trace = run(inputs)
    return time.process_time() - start, trace


def measure(
    engine: str,
    num_adapters: int,
    num_slots: int,
    *,
    horizon_s: float,
    repeats: int,
    seed: int,
    load: float = 1.0,
    from_s: float = 0.0,
) -> Case:
    """Return the median CPU time of `repeats` runs of one case after `from_s`, compiled code warmed up before."""
    run = load_engine(engine)
    run(case_inputs(num_adapters, num_slots, horizon_s=1.0, seed=seed))
    inputs = case_inputs(num_adapters, num_slots, horizon_s=horizon_s, seed=seed, load=load)
    # The same requests, so that what a run spends on them before its first step cancels out.
    first_part = replace(inputs, horizon_ns=round(from_s * NANOSECONDS))
    durations = []
    for _ in range(repeats):
        first_s, first = timed(run, first_part) if from_s else (0.0, None)
        whole_s, trace = timed(run, inputs)
        durations.append(whole_s - first_s)
    num_steps, running, waiting, first_waiting = trace.num_steps, trace.running_integral, trace.waiting_integral, 0
    if first is not None:
        num_steps -= first.num_steps
        running -= first.running_integral
        waiting -= first.waiting_integral
        has_arrived = inputs.arrival_ns < first_part.horizon_ns
        first_waiting = int(np.sum(has_arrived & (first.finish_ns < 0) & ~first.is_running))
    cpu_s = statistics.median(durations)
    simulated_s = horizon_s - from_s
    return Case(
        engine=engine,
        adapters=num_adapters,
        slots=num_slots,
        load=load,
        from_s=from_s,
        first_waiting=first_waiting,
        simulated_s=simulated_s,
        cpu_s=cpu_s,
        realtime_factor=simulated_s / cpu_s,
        num_steps=num_steps,
        us_per_step=1e6 * cpu_s / num_steps,
        running_mean=running / (simulated_s * NANOSECONDS),
        waiting_mean=waiting / (simulated_s * NANOSECONDS),
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    )


def measure_all(engines: Sequence[str], *, is_smoke: bool, repeats: int, seed: int) -> list[Case]:
    """Return the cases of the table."""
    cases = []
    for engine in engines:
        is_fast = engine == "fast"
        horizon_s = FAST_HORIZON_S if is_fast else READABLE_HORIZON_S
        horizon_s = SMOKE_HORIZON_S if is_smoke else horizon_s
        for num_adapters, num_slots in CASES:
            print(f"{engine}: {num_adapters} adapters on {num_slots} slots", file=sys.stderr)
            case = measure(
                engine, num_adapters, num_slots, horizon_s=horizon_s, repeats=repeats if is_fast else 1, seed=seed
            )
            cases.append(case)
        if is_fast:
            print(f"{engine}: a long queue", file=sys.stderr)
            part = SMOKE_HORIZON_S / LONG_QUEUE_HORIZON_S if is_smoke else 1.0
            case = measure(
                engine,
                *LONG_QUEUE_CASE,
                horizon_s=part * LONG_QUEUE_HORIZON_S,
                from_s=part * LONG_QUEUE_FROM_S,
                load=LONG_QUEUE_LOAD,
                repeats=repeats,
                seed=seed,
            )
            cases.append(case)
    return cases


def print_table(cases: Sequence[Case]) -> None:
    """Print one line for each case, and what is different about those that are marked."""
    print("engine  adapters  slots  simulated_s    cpu_s  x real time    steps  us/step  running  waiting  MiB")
    for case in cases:
        name = f"{case.engine}*" if case.from_s else case.engine
        print(
            f"{name:<6}  {case.adapters:>8}  {case.slots:>5}  {case.simulated_s:>11.0f}  {case.cpu_s:>7.3f}  "
            f"{case.realtime_factor:>11,.0f}  {case.num_steps:>7}  {case.us_per_step:>7.2f}  "
            f"{case.running_mean:>7.1f}  {case.waiting_mean:>7.0f}  {case.peak_memory_mib:>3.0f}"
        )
    for case in cases:
        if case.from_s:
            print(
                f"* {case.load:g} times the load; only the steps from {case.from_s:.0f} s on, when "
                f"{case.first_waiting:,} requests wait"
            )


def scaling_cases(*, is_smoke: bool, repeats: int, seed: int) -> dict[str, list[Case]]:
    """Return the fast engine's cases over the load and over the number of adapters."""
    horizon_s = SMOKE_HORIZON_S if is_smoke else SCALING_HORIZON_S
    sweeps: dict[str, list[tuple[int, float]]] = {
        "load": [(128, load) for load in SCALING_LOADS],
        "adapters": [(num_adapters, 128 / num_adapters) for num_adapters in SCALING_ADAPTERS],
    }
    cases: dict[str, list[Case]] = {}
    for sweep, points in sweeps.items():
        print(f"fast: over {sweep}", file=sys.stderr)
        cases[sweep] = [
            measure(
                "fast",
                num_adapters,
                min(num_adapters, 128),
                horizon_s=horizon_s,
                repeats=repeats,
                seed=seed,
                load=load,
            )
            for num_adapters, load in points
        ]
    return cases


def scaling_csv(cases: dict[str, list[Case]]) -> str:
    """Return the sweeps as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["sweep", "offered_rps", *SCALING_COLUMNS])
    for sweep, measured in cases.items():
        for case in measured:
            rates_rps = (case.load * RATES_RPS[index % len(RATES_RPS)] for index in range(case.adapters))
            values = asdict(case)
            writer.writerow([sweep, round(sum(rates_rps), 6), *(values[column] for column in SCALING_COLUMNS)])
    return stream.getvalue()


def scaling_plot(cases: dict[str, list[Case]]) -> bytes:
    """Return a PNG of the realtime factors over each sweep. Needs matplotlib."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - comes with an extra

    figure = Figure(figsize=(9.0, 3.5), layout="constrained")
    labels = {"load": "load, in units of 128 adapters' rates", "adapters": "adapters, at the same load"}
    for axes, (sweep, measured) in zip(figure.subplots(1, 2, sharey=True), cases.items(), strict=True):
        axes.plot([getattr(case, sweep) for case in measured], [case.realtime_factor for case in measured], marker="o")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(labels[sweep])
        axes.set_ylabel("simulated s per CPU s")
        axes.label_outer()
        axes.grid(visible=True, which="both", color="#e4e4e4")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def write_scaling(path: Path, *, is_smoke: bool, repeats: int, seed: int) -> None:
    """Measure the sweeps and write them to `path`, or beside it where it is a plot."""
    cases = scaling_cases(is_smoke=is_smoke, repeats=repeats, seed=seed)
    write_atomically(path.with_suffix(".csv"), scaling_csv(cases))
    if path.suffix == ".png":
        write_atomically(path, scaling_plot(cases))


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
    parser.add_argument("--scaling", type=Path, metavar="FILE.png|.csv", help="measure how the fast engine scales")
    options = parser.parse_args(arguments)
    repeats = 1 if options.smoke else options.repeats
    if options.scaling is not None:
        if options.scaling.suffix not in {".png", ".csv"}:
            parser.error(f"the file of --scaling must end in .png or .csv. Got {options.scaling}.")
        if options.scaling.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
            parser.error("a plot needs matplotlib. Install the extra: lora-placer[report], or ask for a .csv file.")
        write_scaling(options.scaling, is_smoke=options.smoke, repeats=repeats, seed=options.seed)
        return 0
    cases = measure_all(options.engines.split(","), is_smoke=options.smoke, repeats=repeats, seed=options.seed)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    if options.json:
        print(json.dumps({"cases": [asdict(case) for case in cases], "seed": options.seed, "versions": versions}))
        return 0
    print(f"seed {options.seed}, " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print_table(cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
