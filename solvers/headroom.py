"""How far GPUs are from being refused: by how much all rates may grow, and the same questions at a larger load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.acceptance import accepts
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.surrogate_per_gpu_type import inflated

# Load factors at which the headroom is looked for: finely for a learned surrogate, which answers in microseconds.
FINE_FACTORS = np.round(np.arange(0.50, 3.001, 0.01), 2)
COARSE_FACTORS = np.array([1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0])


def headrooms(
    model: FeasibilityModel,
    gpus: Sequence[GpuAssignment],
    factors: NDArray[np.float64],
    *,
    factors_per_question: int | None = None,
) -> list[float | None]:
    """Return by how much all rates of each GPU may grow until the surrogate refuses it.

    Parameters
    ----------
    model
        Whose surrogate is asked, as it is: with a margin, the headroom is what remains of it.
    gpus
        With their settings.
    factors
        On the rates, ascending, float64 [F].
    factors_per_question
        Only GPUs that are accepted at so many factors are asked about the next ones; ``None``: all at once, in one
        batch per GPU type.

    Returns
    -------
    For each GPU the largest tried factor up to which all are accepted, minus 1: 0.2 is 20 %, negative is too much
    already; ``None`` where no factor is accepted.
    """
    num_accepted = np.zeros(len(gpus), dtype=np.int64)
    step = factors_per_question or len(factors)
    for start in range(0, len(factors), step):
        asked = factors[start : start + step]
        for gpu_type in sorted({gpu.gpu_type for gpu in gpus}):
            mine = [
                index for index, gpu in enumerate(gpus) if gpu.gpu_type == gpu_type and num_accepted[index] == start
            ]
            if mine:
                num_accepted[mine] += _num_accepted(model, [gpus[index] for index in mine], asked)
    return [round(float(factors[count - 1]) - 1.0, 4) if count else None for count in num_accepted]


def _num_accepted(
    model: FeasibilityModel, gpus: Sequence[GpuAssignment], factors: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return at how many of the first factors each GPU of a type is accepted, int64 [N]."""
    sums = np.array([model.aggregates[list(gpu.adapters)].sum(axis=0) for gpu in gpus])
    owner = np.repeat(np.arange(len(gpus)), len(factors))
    output = model.predict(
        sums[owner],
        model.settings_of(gpus).take(owner),
        members=[gpu.adapters for gpu in gpus for _ in factors] if model.uses_members else None,
        load=np.tile(factors, len(gpus)),
    )
    limits = model.limits_of(sums, repeats=len(factors))
    accepted = accepts(limits, output).reshape(len(gpus), len(factors))
    return np.where(accepted.all(axis=1), len(factors), np.argmin(accepted, axis=1))


class LoadedModel(FeasibilityModel):
    """The same problem and surrogate, asked as if all rates were larger; its questions are counted by the model.

    Parameters
    ----------
    model
        Whose problem and surrogate these are.
    factor
        On all rates, > 0.
    """

    def __init__(self, model: FeasibilityModel, factor: float) -> None:
        super().__init__(model.problem, inflated(model.surrogate, factor))
        self.slots = model.slots
        self._model = model

    def count(self, num_rows: int) -> None:
        """Count a question of so many rows, here and where the budget is watched."""
        super().count(num_rows)
        self._model.count(num_rows)
