"""How soon best fit has a plan whose every GPU the twin accepts, and what that costs.

``python -m benchmarks.verified_plan [--adapters 10000] [--family discrete|zipf] [--risk 0.05] [--seed 0] [--improve]``

The families are those of `benchmarks.packing_speed`. Each row is one `placer.planning.plan` up to the moment when all
GPUs are verified, before those near a limit are looked at with further seeds; with ``--improve``, after GPUs were
emptied into others. Risk 0 is the default: a GPU is packed to one half of the probability of starvation. As in
`placer solve`, the garbage collector leaves the problem alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field

from benchmarks.packing_speed import FAMILIES, make_problem
from placer.events import GpuVerified, PhaseStarted, PlanEvent
from placer.garbage import keep_what_is_there
from placer.planning import plan

HEADINGS = (
    "| family | adapters | risk | GPUs packed | rejected at first | GPUs verified | twin calls | pack s | check s "
    "| repair s | improve s | all s | CPU s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass
class Phases:
    """Seconds of each phase, read from what planning reports, until it would look at GPUs near a limit again.

    Attributes
    ----------
    wall_s
        By phase.
    num_packed, num_rejected
        GPUs of the solver's placement, and those of them that the twin rejected.
    """

    wall_s: dict[str, float] = field(default_factory=dict)
    num_packed: int = 0
    num_rejected: int = 0
    _phase: str = ""
    _since: float = 0.0

    def observe(self, event: PlanEvent) -> None:
        """Note a phase; raise KeyboardInterrupt when every GPU is verified, which planning answers with its plan."""
        if isinstance(event, PhaseStarted):
            now = time.perf_counter()
            if self._phase:
                self.wall_s[self._phase] = now - self._since
            is_over = event.phase == "verify" and "verify" in self.wall_s
            is_over = is_over or (event.phase == "verify" and self._phase == "verify")
            self._phase, self._since = event.phase, now
            if is_over:
                raise KeyboardInterrupt
        elif isinstance(event, GpuVerified) and self._phase == "verify":
            self.num_packed = event.total
            self.num_rejected += not event.is_accepted


def plan_once(family: str, num_adapters: int, *, risk: float, seed: int, is_improved: bool) -> str:
    """Return a table's row about one plan."""
    problem = make_problem(family, num_adapters, seed=seed)
    keep_what_is_there()
    phases = Phases()
    started, started_cpu = time.perf_counter(), time.process_time()
    made = plan(problem, solver="bfd", seed=seed, risk=risk or None, improve=is_improved, observer=phases.observe)
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    walls = " | ".join(f"{phases.wall_s.get(phase, 0.0):.1f}" for phase in ("solve", "verify", "repair", "improve"))
    return (
        f"| {family} | {num_adapters:,} | {risk:g} | {phases.num_packed} | {phases.num_rejected} | {made.num_gpus} "
        f"| {made.repair.twin_calls:,} | {walls} | {elapsed_s:.1f} | {cpu_s:.1f} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """Plan and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, action="append", help="repeatable; default 1000 and 10000")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="repeatable; default both")
    parser.add_argument("--risk", type=float, action="append", help="repeatable; default 0 and 0.05")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--improve", action="store_true", help="empty GPUs into others, too")
    parser.add_argument("--smoke", action="store_true", help="few adapters, to see that it runs")
    options = parser.parse_args(arguments)
    sizes = [60] if options.smoke else options.adapters or [1_000, 10_000]
    # Loads and compiles everything.
    plan_once("discrete", 60, risk=0.0, seed=options.seed, is_improved=False)
    print(HEADINGS)
    for family in options.family or FAMILIES:
        for size in sizes:
            for risk in options.risk or [0.0, 0.05]:
                row = plan_once(family, size, risk=risk, seed=options.seed, is_improved=options.improve)
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
