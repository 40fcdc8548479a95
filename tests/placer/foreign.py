"""Surrogates that tests name as ``module:object``."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.surrogate import SurrogateOutput
from tests.solvers.analytic import AnalyticSurrogate


class Oracle:
    """A function of a set's sums."""

    def feasible(  # noqa: PLR0917 - the signature that users write
        self,
        n: int,
        sum_rate: float,
        sum_rate_sq: float,
        sum_rate_prompt: float,
        sum_rate_output: float,
        max_rank: int,
    ) -> tuple[bool, int]:
        """Decide with few slots, none of which is on a grid of ours."""
        del sum_rate, sum_rate_sq
        for slots in (7, 21, 63):
            work = 3e-5 * sum_rate_prompt + 3e-4 * sum_rate_output + 0.01 * max(0, n - slots)
            if work <= 1.0 and slots * max_rank <= 2048:
                return True, slots
        return False, 0


class FastSurrogate(AnalyticSurrogate):
    """An optimist: GPUs are ten times as fast, so that the twin rejects what is packed against it."""

    def __init__(self) -> None:
        super().__init__(speed=10.0)


class HastySurrogate(AnalyticSurrogate):
    """An optimist of a more common kind: a fifth too fast."""

    def __init__(self) -> None:
        super().__init__(speed=0.365)


class FailingSurrogate(AnalyticSurrogate):
    """A surrogate that fails when it is asked."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Fail."""
        raise ZeroDivisionError(f"asked about {len(features)} rows")


class OldSurrogate(AnalyticSurrogate):
    """A surrogate with features of another version."""

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return FeatureSchema(version=1, names=FEATURE_SCHEMA.names, units=FEATURE_SCHEMA.units)


def feasible(*arguments: Any) -> tuple[bool, int]:
    """Accept what `Oracle` accepts."""
    return Oracle().feasible(*arguments)


class NeedsArguments:
    """A class that cannot be called without arguments."""

    def __init__(self, path: str) -> None:
        self.path = path


def fail_at_import() -> None:
    """Do nothing; the name is loaded, and is a function all the same."""


NUMBER = 3
