"""The twin's own error as a distribution: what real GPUs served over what the twin said, on runs that it had not seen.

Where a GPU keeps up, its throughput is the offered load, whatever the twin thinks of its capacity. So only runs count
that served less than `MOST_SERVED` of what was offered: their throughput is what the GPU can do.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from placer.validation import Validation

FILE_NAME = "twin_error.json"
MOST_SERVED = 0.98


class MeasuredThroughput(BaseModel):
    """One run: tokens per second as measured, and as the twin predicts (the mean over its seeds)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    measured_tps: float
    predicted_tps: float


class TwinError(BaseModel):
    """Measured and predicted throughput of overloaded runs.

    Attributes
    ----------
    source, rule
        Where the runs come from, and which of them are in.
    inputs
        SHA-256 of the table of runs and of the profile, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    source: str
    rule: str
    inputs: dict[str, str]
    runs: tuple[MeasuredThroughput, ...]

    @property
    def capacity_factors(self) -> NDArray[np.float64]:
        """Measured over predicted throughput of each run, float64 [N]."""
        return np.array([run.measured_tps / run.predicted_tps for run in self.runs])


@lru_cache(maxsize=1)
def load_twin_error() -> TwinError:
    """Return the shipped distribution."""
    text = (resources.files("placer.whatif") / FILE_NAME).read_text(encoding="utf-8")
    return TwinError.model_validate_json(text)


def twin_error_of(validation: Validation, *, source: str) -> TwinError:
    """Return the distribution that a validation amounts to.

    Parameters
    ----------
    validation
        Of runs that the profile was not fitted to, for it to be honest.
    source
        Where the runs come from, in words.
    """
    runs = tuple(
        MeasuredThroughput(
            run_id=row.run_id,
            measured_tps=round(row.measured.tok_per_s, 2),
            predicted_tps=round(row.predicted.tok_per_s, 2),
        )
        for row in validation.rows
        if row.is_headline
        and row.measured.tok_per_s
        and row.predicted.tok_per_s
        and row.measured.goodput_ratio is not None
        and row.measured.goodput_ratio < MOST_SERVED
    )
    return TwinError(
        source=source,
        rule=f"runs whose client kept up, and that served less than {MOST_SERVED:.0%} of the offered tokens",
        inputs={entry.name: entry.sha256 for entry in validation.inputs},
        runs=runs,
    )
