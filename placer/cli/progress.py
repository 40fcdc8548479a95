"""Show on standard error what planning does: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from placer.cli.live_line import LiveLine
from placer.events import (
    FitIterated,
    FleetChanged,
    GpuAssessed,
    GpuVerified,
    IncumbentFound,
    KernelCompiling,
    PhaseStarted,
    PlanEvent,
    RepairRound,
    RunReplayed,
    TimeSimulated,
)
from placer.wording import counted

_PHASES = {
    "load": "loading the {}",
    "replicate": "looking for replicas of {}",
    "bound": "computing the lower bound",
    "solve": "solving with {}",
    "verify": "simulating {}",
    "repair": "repairing {}",
    "improve": "looking for {}",
    "fit": "fitting {}",
    "explain": "looking for an answer: {}",
    "advise": "simulating {}",
    "route": "simulating {}",
}

# Where there is no live line, one of so many replays gets a line of its own.
REPLAYS_PER_LINE = 100


class ProgressDisplay(LiveLine):
    """An observer of planning that draws on standard error.

    Parameters
    ----------
    is_verbose
        Also print every placement of the solver and every simulated GPU.
    """

    def __init__(self, *, is_verbose: bool) -> None:
        super().__init__()
        self._is_verbose = is_verbose

    def __call__(self, event: PlanEvent) -> None:
        """Show an event."""
        if isinstance(event, PhaseStarted):
            self._show(_PHASES[event.phase].format(event.detail))
        elif isinstance(event, KernelCompiling):
            self.print(f"compiling the simulation kernel (first run only, about {event.expected_s:.0f} s)")
        elif isinstance(event, IncumbentFound):
            self._show(f"solving: {counted(event.num_gpus, 'GPU')}", is_detail=True)
        elif isinstance(event, TimeSimulated):
            self._show(f"simulated {event.simulated_s:,.0f} of {event.total_s:,.0f} s", is_detail=True)
        elif isinstance(event, GpuVerified):
            verdict = "accepted" if event.is_accepted else f"rejected: {'; '.join(event.reasons)}"
            self._show(f"simulated GPU {event.done} of {event.total}: {verdict}", is_detail=True)
        elif isinstance(event, GpuAssessed):
            finding = f"metastable: {'; '.join(event.reasons)}" if event.is_metastable else "stable"
            self._show(f"assessed GPU {event.done} of {event.total}: {finding}", is_detail=True)
        elif isinstance(event, RunReplayed):
            self._show(
                f"replayed {event.done} of {event.total} simulations", is_detail=event.done % REPLAYS_PER_LINE != 0
            )
        elif isinstance(event, FitIterated):
            self._show(f"iteration {event.number}: TPOT of the runs is off by {event.error_percent:.2f} %")
        elif isinstance(event, RepairRound):
            self._show(f"repair round {event.number}: {event.num_rejected} rejected")
        elif isinstance(event, FleetChanged):
            self.print(f"{counted(event.num_gpus, 'GPU')}, {event.num_accepted} accepted by the twin ({event.detail})")

    def _show(self, text: str, *, is_detail: bool = False) -> None:
        """Put `text` on the live line; details become lines of their own with ``-v`` only."""
        self.update(text)
        if self._is_verbose or not (self.is_live or is_detail):
            self.print(text)
