"""Linear inequalities that accepted rows keep in boxes of features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cuts:
    """Inequalities for B boxes, M of them each: accepted rows x keep ``gradients @ (x - lower) <= slack``.

    A negative slack beside gradients that are nowhere negative says that nothing in the box is accepted; an infinite
    one says nothing.

    Attributes
    ----------
    gradients
        float64 [B, M, F], finite.
    slack
        float64 [B, M].
    """

    gradients: NDArray[np.float64]
    slack: NDArray[np.float64]

    @property
    def is_empty(self) -> NDArray[np.bool_]:
        """Whether a single inequality of a box already excludes all of it, bool [B]."""
        is_rising = np.asarray((self.gradients >= 0.0).all(axis=2))
        return np.asarray(((self.slack < 0.0) & is_rising).any(axis=1))
