"""What GPUs must keep: one set of limits for all of them, or for each those of its strictest adapter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What a placement must keep.

    Attributes
    ----------
    starvation_tolerance
        A replica or adapter is starved when it gets less than 1 minus this share of its offered tokens; in [0, 1).
    itl_p95_ms, ttft_p95_ms
        Largest 95th percentiles of a replica's inter-token latency and time to first token, in milliseconds; ``None``:
        no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    starvation_tolerance: float = Field(default=0.1, ge=0, lt=1, allow_inf_nan=False)
    itl_p95_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ttft_p95_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class RowLimits:
    """The limits of each of N GPUs; float64 [N] each, infinite where there is none."""

    starvation_tolerance: NDArray[np.float64]
    itl_p95_ms: NDArray[np.float64]
    ttft_p95_ms: NDArray[np.float64]

    @classmethod
    def same(cls, limits: Limits, num_rows: int) -> RowLimits:
        """Return the same limits for all of N GPUs."""

        def column(value: float | None) -> NDArray[np.float64]:
            return np.full(num_rows, np.inf if value is None else value)

        return cls(column(limits.starvation_tolerance), column(limits.itl_p95_ms), column(limits.ttft_p95_ms))

    def take(self, rows: NDArray[np.int64]) -> RowLimits:
        """Return the limits of some of the GPUs, also repeatedly."""
        return RowLimits(self.starvation_tolerance[rows], self.itl_p95_ms[rows], self.ttft_p95_ms[rows])

    def of(self, row: int) -> Limits:
        """Return the limits of one GPU."""

        def value(column: NDArray[np.float64]) -> float | None:
            return float(column[row]) if np.isfinite(column[row]) else None

        return Limits(
            starvation_tolerance=float(self.starvation_tolerance[row]),
            itl_p95_ms=value(self.itl_p95_ms),
            ttft_p95_ms=value(self.ttft_p95_ms),
        )
