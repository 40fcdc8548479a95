"""How far apart the seeds of a replica are, with two regimes and without: the thresholds of twin/stability_report.py.

``python -m benchmarks.metastability [RUNS] [--seeds 8] [--horizon 3600] [--warmup 0]``

With RUNS, a table of measured serving runs, it simulates every informative run of a shipped model. Without it, it
raises the load of made-up replicas through the one at which all slots fill.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from placer.judge import active_adapters
from twin.engine import EngineConfig
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.profile import load_profile
from twin.replica import Replica
from twin.report import SimulationReport
from twin.stability import assess_stability
from twin.stability_report import LEAST_REGIME_PARTS, SlotUse, StabilityReport
from twin.validation.regenerate import regenerate_traffic
from twin.validation.replay import choose_profiles, replica_of
from twin.validation.runs import read_runs
from twin.workload import Adapter, Workload

MODEL, PROFILE = "llama-3.1-8b", "llama-3.1-8b-h100-64gb"
# Slots, adapters, and the requests/s between which all slots fill.
SWEEPS = ((128, 384, 5.5, 9.0), (96, 320, 5.5, 8.0), (64, 192, 5.5, 7.5), (32, 96, 4.5, 7.0), (16, 48, 3.0, 6.0))
LOADS_PER_SWEEP = 8
PROMPT = LengthDistribution(mean=223, std=247, min=4, max=1024)
OUTPUT = LengthDistribution(mean=196, std=209, min=1, max=1024)


@dataclass(frozen=True)
class Spread:
    """Factors between the largest and the smallest, of one replica."""

    name: str
    running: float
    throughput: float
    change: float
    backlog: float
    slots_share: float
    evidence: str


def measured_replicas(path: str) -> Iterator[tuple[str, Workload, Replica]]:
    """Yield the informative runs of a table: what was asked, and of which replica."""
    runs = [run for run in read_runs(path, only_informative=True).runs if run.traffic is not None]
    profiles = choose_profiles(runs, None)
    for run in runs:
        replica = replica_of(run, profiles[run.model])
        if run.traffic is None or not replica.memory().starts:
            continue
        workload, _ = regenerate_traffic(run.traffic, run_id=run.run_id, seed=0, horizon_s=1.0)
        name = f"{run.run_id} {run.engine.max_loras}/{run.num_adapters} {run.traffic.offered_rps:.1f}/s"
        yield name, workload, replica


def made_up_replicas() -> Iterator[tuple[str, Workload, Replica]]:
    """Yield replicas with three rates of adapters, at rising loads."""
    profile = load_profile(PROFILE)
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib)
    for slots, count, first_rps, last_rps in SWEEPS:
        engine = EngineConfig(vllm_version="0.8.5", max_loras=slots, max_cpu_loras=count, max_num_seqs=2048)
        for total_rps in np.linspace(first_rps, last_rps, LOADS_PER_SWEEP):
            weights = np.resize([4.0, 2.0, 1.0], count)
            adapters = tuple(
                Adapter(name=f"a{index}", rank=16, rate_rps=float(rate), prompt_tokens=PROMPT, output_tokens=OUTPUT)
                for index, rate in enumerate(total_rps * weights / weights.sum())
            )
            yield (
                f"{slots}/{count} {total_rps:.1f}/s",
                Workload(adapters),
                Replica(load_model(MODEL), gpu, engine, profile),
            )


def spread_of(name: str, report: StabilityReport, slots_share: float) -> Spread:
    """Return the factors of one replica."""
    ratios = [run.throughput_ratio for run in report.runs]
    after = report.after_backlog
    before = next((run for run in report.runs if after is not None and run.seed == after.seed), None)
    return Spread(
        name=name,
        running=report.running_factor or 1.0,
        throughput=max(ratios) / min(ratios),
        change=max(_change(run.slots) for run in report.runs),
        backlog=after.late_running_mean / before.late_running_mean if after and before else 1.0,
        slots_share=slots_share,
        evidence=", ".join(sorted({reason.evidence for reason in report.reasons})) or "stable",
    )


def _change(slots: SlotUse | None) -> float:
    """Return how far apart the regimes of one run are; 1 when it shows one."""
    if slots is None or min(slots.num_taken_parts, slots.num_free_parts) < LEAST_REGIME_PARTS:
        return 1.0
    if slots.running_while_taken is None or slots.running_while_free is None:
        return 1.0
    ratio = slots.running_while_taken / slots.running_while_free
    return max(ratio, 1.0 / ratio)


def main(arguments: list[str]) -> None:
    """Print a row per replica, and the largest factors of those without two regimes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--horizon", type=float, default=3600.0)
    parser.add_argument("--warmup", type=float, default=0.0)
    options = parser.parse_args(arguments)
    spreads = []
    print(f"{'slots/adapters, load':28} running throughput change backlog slots")
    for name, workload, replica in measured_replicas(options.runs) if options.runs else made_up_replicas():
        reports: list[SimulationReport] = []
        stability = assess_stability(
            workload,
            replica,
            horizon_s=options.horizon,
            warmup_s=options.warmup,
            seeds=range(options.seeds),
            on_report=reports.append,
        )
        share = min(active_adapters(report) for report in reports) / replica.engine.num_slots
        spread = spread_of(name, stability, share)
        spreads.append(spread)
        print(
            f"{name:28} {spread.running:7.3f} {spread.throughput:10.3f} {spread.change:6.2f} {spread.backlog:7.2f} "
            f"{spread.slots_share:5.2f} {spread.evidence}",
            flush=True,
        )
    single = [spread for spread in spreads if "two regimes" not in spread.evidence]
    print(
        f"\n{len(spreads)} replicas, {len(spreads) - len(single)} with two regimes; the largest factors of the others:"
    )
    for field in ("running", "throughput", "change", "backlog"):
        largest = sorted(single, key=lambda spread: -getattr(spread, field))[:3]
        print(f"{field:10} {'; '.join(f'{getattr(spread, field):.3f} ({spread.name})' for spread in largest)}")


if __name__ == "__main__":
    main(sys.argv[1:])
