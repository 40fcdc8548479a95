"""What a fitted model of any family says, in numbers and as names in an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from predictors.onnx_graph import GraphBuilder
    from predictors.risk import Calibration


@dataclass(frozen=True)
class Raw:
    """What a fitted model says about N rows; all float64 [N].

    Attributes
    ----------
    ratio
        Throughput over offered load.
    log_odds
        Of starvation, before calibration.
    log_itl, log_ttft, log_itl_mean
        Natural logarithms of the 95th percentiles, and of the mean inter-token latency, in seconds.
    """

    ratio: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    log_itl: NDArray[np.float64]
    log_ttft: NDArray[np.float64]
    log_itl_mean: NDArray[np.float64]


@dataclass(frozen=True)
class RawNames:
    """The same as names of float32 [N] in an ONNX graph: log-odds are calibrated, latencies in seconds.

    Beside them, the offered load in tokens/s.
    """

    offered_tps: str
    ratio: str
    log_odds: str
    itl_s: str
    ttft_s: str
    itl_mean_s: str


class FittedModel(Protocol):
    """A fitted model of any family."""

    def raw(self, features: NDArray[np.float32]) -> Raw:
        """Return what it says about `features`, float32 [N, F]."""
        ...

    def add_to(self, builder: GraphBuilder, calibration: Calibration, *, features: str) -> RawNames:
        """Add it to an ONNX graph with the input `features` [N, F]."""
        ...


@runtime_checkable
class HasMetadata(Protocol):
    """A fitted model that says more in its file's metadata than others do."""

    def metadata(self, calibration: Calibration) -> Mapping[str, str]:
        """Return texts by key."""
        ...
