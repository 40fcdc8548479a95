"""What happens in a job, as plain values: the kind of an event, and what it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from placer.events import (
    FleetChanged,
    GpuAssessed,
    GpuVerified,
    IncumbentFound,
    KernelCompiling,
    PhaseStarted,
    PlanEvent,
    RepairRound,
    TimeSimulated,
)
from placer.whatif.study import StudyProgress

# Names as clients see them. Other events do not come from what the service does.
_KINDS: dict[type[Any], str] = {
    PhaseStarted: "phase",
    IncumbentFound: "incumbent",
    KernelCompiling: "compiling",
    TimeSimulated: "simulated",
    GpuVerified: "gpu-verified",
    GpuAssessed: "gpu-assessed",
    RepairRound: "repair-round",
    FleetChanged: "fleet",
}
# Of these, one in this time is enough, and the last.
_FREQUENT = frozenset({"simulated", "gpu-verified", "gpu-assessed", "incumbent"})
_LEAST_GAP_S = 0.1


def event_record(event: PlanEvent) -> dict[str, Any]:
    """Return an event of planning as plain values."""
    return {"kind": _KINDS.get(type(event), "other"), **asdict(event)}


def scenario_record(progress: StudyProgress) -> dict[str, Any]:
    """Return how far a what-if study is as plain values."""
    record: dict[str, Any] = {"kind": "scenario", "done": progress.finished, "total": progress.total}
    if progress.latest is not None:
        record |= {"label": progress.latest.label[:200], "status": progress.latest.status}
        record["num_gpus"] = progress.latest.num_gpus
    return record


class Thinning:
    """Pass events on, frequent ones at most ten times a second each; nothing is kept back that ends a series.

    Nor an incumbent of other GPUs or cost: after it there may be none for as long as the solver has, and a job says
    what its best placement is.

    Parameters
    ----------
    tell
        Given what passes.
    clock
        Seconds, non-decreasing.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._last_s: dict[str, float] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._incumbent: tuple[int, float] | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Pass a record on, or keep it until another kind comes."""
        kind, now_s = record["kind"], self._clock()
        is_due = record.get("done") is not None and record["done"] == record.get("total")
        if kind == "incumbent":
            seen = record["num_gpus"], record["cost_per_hour"]
            is_due, self._incumbent = seen != self._incumbent, seen
        if kind in _FREQUENT and not is_due and now_s - self._last_s.get(kind, now_s - 1.0) < _LEAST_GAP_S:
            self._waiting[kind] = record
            return
        self._waiting.pop(kind, None)
        if kind not in _FREQUENT:
            self.flush()
        self._last_s[kind] = now_s
        self._tell(record)

    def flush(self) -> None:
        """Pass on what is kept back."""
        for record in self._waiting.values():
            self._tell(record)
        self._waiting.clear()
