"""What planning, validation and calibration report while they run: small records for whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from twin.engine import EngineConfig

Phase = Literal[
    "load", "replicate", "bound", "solve", "verify", "repair", "improve", "fit", "explain", "advise", "route"
]


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins.

    Attributes
    ----------
    detail
        What it works on, in a few words.
    """

    phase: Phase
    detail: str = ""


@dataclass(frozen=True)
class IncumbentFound:
    """The solver has a better placement."""

    num_gpus: int
    cost_per_hour: float
    num_evaluations: int


@dataclass(frozen=True)
class KernelCompiling:
    """The twin's engine has to be compiled first."""

    expected_s: float = 15.0


@dataclass(frozen=True)
class TimeSimulated:
    """A slow engine has come so far with the GPUs of this batch; simulated seconds, of all of them together."""

    simulated_s: float
    total_s: float


@dataclass(frozen=True)
class GpuVerified:
    """The twin has simulated a GPU: the `done`-th of `total` in this batch."""

    is_accepted: bool
    done: int
    total: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class GpuAssessed:
    """The twin has simulated a GPU near a limit with further seeds: the `done`-th of `total`."""

    is_metastable: bool
    done: int
    total: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class RepairRound:
    """A round of repair begins, with that many rejected GPUs."""

    number: int
    num_rejected: int


@dataclass(frozen=True)
class FleetChanged:
    """Repair or improvement has a new complete placement."""

    num_gpus: int
    num_accepted: int
    detail: str


@dataclass(frozen=True)
class RunReplayed:
    """The twin has replayed a measured run once: the `done`-th of `total` simulations."""

    done: int
    total: int


@dataclass(frozen=True)
class FitIterated:
    """A fit to serving runs has simulated them once more: the `number`-th time, counted from 0."""

    number: int
    error_percent: float


PlanEvent = (
    PhaseStarted
    | IncumbentFound
    | KernelCompiling
    | TimeSimulated
    | GpuVerified
    | GpuAssessed
    | RepairRound
    | FleetChanged
    | RunReplayed
    | FitIterated
)
PlanObserver = Callable[[PlanEvent], None]


def ignore(event: PlanEvent) -> None:
    """Observe nothing: the observer when none is given."""
    del event


def announce_router_compilation(observer: PlanObserver) -> None:
    """Tell `observer` that a fleet behind a router has to wait for the compiler, if it has to."""
    from twin.kernel_fleet import router_is_cached  # noqa: PLC0415 - loads the compiler

    if not router_is_cached():
        observer(KernelCompiling())


def announce_compilation(observer: PlanObserver, engines: Iterable[EngineConfig] = ()) -> None:
    """Tell `observer` that a simulation of `engines` (none: synchronous) has to wait for the compiler, if it has to."""
    from twin.kernel import kernel_is_cached  # noqa: PLC0415 - loads the compiler, which planning needs late or never

    kinds = {engine.async_scheduling for engine in engines} or {False}
    if not all(kernel_is_cached(is_asynchronous=kind) for kind in kinds):
        observer(KernelCompiling())
