"""What can be certified about a surrogate in a whole box of its features: that it accepts nothing there, or little.

A lower bound on the number of GPUs needs a statement about all adapter sets, asked or not. The set of rows between two
corners is a box; a certificate says for a box which linear inequalities every accepted row in it keeps. Certificates
are of the surrogate's problem: they say nothing about the twin.

How a surrogate gets certificates:

- it offers `accepted_cuts` (`HasAcceptedCuts`): a closed form, or a model whose structure is known;
- it is a function of sums whose author says what it accepts (`predictors.aggregate_oracle.CertifiesSums`);
- it declares that more is never better (`DeclaresMonotone`, which other proofs use as well), or only which features
  never help (`MonotoneFeasibility`): then a box is empty when its best corner is refused;
- it accepts polyhedra in the sums, as `predictors.polyhedra` has them, and shows them (`HasPolyhedra`);
- it is a network behind physics, as `predictors.neural` makes them, and shows it (`HasNetwork`);
- it is a graph of trees and arithmetic through which intervals can be sent, and shows it (`HasAnswerBounds`).

Otherwise nothing is certified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA
from predictors.surrogate import MONOTONE_SIGNS, declares_monotone, keeps_order, unwrapped
from solvers import acceptance
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from solvers.patterns.cuts import Cuts
from solvers.patterns.interval_cuts import interval_bound
from solvers.patterns.network_cuts import network_bound
from solvers.patterns.polyhedra_cuts import polyhedra_bound
from solvers.patterns.sum_cuts import sums_bound
from solvers.problem_file import Limits

_SLOTS_COLUMN = FEATURE_SCHEMA.index("max_loras")
_ACTIVE_COLUMNS = [FEATURE_SCHEMA.index(name) for name in ("active_10s", "active_40s")]
# Numbers of slots that are asked about for one box.
MOST_SLOTS = 64


class BoxBound(Protocol):
    """Certificates about the surrogate of one GPU type."""

    @property
    def certificate(self) -> str:
        """What they rest on: ``closed form``, ``sums``, ``polyhedra``, ``monotone``, ``network`` or ``intervals``."""
        ...

    @property
    def asks_surrogate(self) -> bool:
        """Whether certificates cost questions to the surrogate."""
        ...

    @property
    def is_curved(self) -> bool:
        """Whether cuts are planes beside something curved, which they come closer to in narrower boxes."""
        ...

    @property
    def matters(self) -> NDArray[np.bool_]:
        """Features in which a narrower box may have better certificates, bool [F]."""
        ...

    def cuts(self, lower: NDArray[np.float64], upper: NDArray[np.float64], is_tied: NDArray[np.bool_]) -> Cuts:
        """Return what every accepted row keeps in each of B boxes.

        Parameters
        ----------
        lower, upper
            Corners, float64 [B, F] in the order of `FEATURE_SCHEMA`; a row is in a box when each of its columns, before
            it is rounded to float32, is between them, it is of a set of the problem's adapters, and `max_cpu_loras`
            is the larger of the numbers of adapters and of slots, or less where CPU memory is limited.
        is_tied
            In which boxes rows have as many slots as adapters, bool [B].
        """
        ...


@runtime_checkable
class HasPieces(Protocol):
    """Certificates of a union, of whose pieces each has better ones."""

    @property
    def pieces(self) -> Sequence[BoxBound]:
        """Certificates of each piece; every accepted row is in some piece."""
        ...


@runtime_checkable
class MonotoneFeasibility(Protocol):
    """A surrogate that knows in which features its acceptance is monotone, and may be so in some of them only."""

    @property
    def feature_signs(self) -> Mapping[str, int]:
        """By feature name: 1 where more never makes any output better, -1 where less never does, 0 without influence.

        Better is a larger throughput ratio, a smaller starvation probability, and smaller latencies. About features
        that are not named nothing is claimed.
        """
        ...


@runtime_checkable
class HasAcceptedCuts(Protocol):
    """A surrogate that can say which inequalities its accepted rows keep."""

    def accepted_cuts(self, limits: Limits, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> Cuts:
        """Return what every row in each of B boxes keeps that is accepted under `limits`; see `BoxBound.cuts`."""
        ...


class MonotoneBoxBound:
    """Certificates of a surrogate that declares its monotone features: the best corner of a box is asked about.

    Parameters
    ----------
    model
        Who is asked; counts the questions.
    gpu_type
        Whose surrogate.
    feature_signs
        As `MonotoneFeasibility` has them.
    """

    certificate = "monotone"
    asks_surrogate = True
    is_curved = False

    def __init__(self, model: FeasibilityModel, gpu_type: int, feature_signs: Mapping[str, int]) -> None:
        self._model = model
        self._gpu_type = gpu_type
        names = FEATURE_SCHEMA.names
        self._is_helped_by_more = np.array([feature_signs.get(name) == -1 for name in names])
        self._is_unclaimed = np.array([name not in feature_signs for name in names])
        self._clips_active = all(feature_signs.get(names[column]) == 1 for column in _ACTIVE_COLUMNS)
        self.matters = np.array([feature_signs.get(name) != 0 for name in names])

    def cuts(self, lower: NDArray[np.float64], upper: NDArray[np.float64], is_tied: NDArray[np.bool_]) -> Cuts:
        """Return a negative slack where the best corner is refused; nothing where unclaimed features vary.

        Only the slots may vary: all of a few numbers of them are asked about.
        """
        del is_tied
        slots = np.stack([lower[:, _SLOTS_COLUMN], upper[:, _SLOTS_COLUMN]]).astype(np.int64)
        width = slots[1] - slots[0] + 1
        varies = (lower < upper) & self._is_unclaimed
        varies[:, _SLOTS_COLUMN] = width > MOST_SLOTS
        certifiable = np.flatnonzero(~varies.any(axis=1))
        owners = np.repeat(certifiable, width[certifiable])
        first = np.cumsum(width[certifiable]) - width[certifiable]
        corners = np.where(self._is_helped_by_more, upper, lower)[owners]
        if self._clips_active:
            # A row of adapters has no more active adapters than adapters, and no less than the corner.
            corners[:, _ACTIVE_COLUMNS] = np.minimum(corners[:, _ACTIVE_COLUMNS], corners[:, [NUM_ADAPTERS_COLUMN]])
        corners[:, _SLOTS_COLUMN] = slots[0][owners] + np.arange(len(owners)) - np.repeat(first, width[certifiable])
        limits = self._model.problem.limits
        accepted = acceptance.accepts(limits, self._model.ask(self._gpu_type, corners.astype(np.float32)))
        is_refused = np.ones(len(lower), dtype=np.bool_)
        is_refused[owners[accepted]] = False
        slack = np.full((len(lower), 1), np.inf)
        slack[certifiable[is_refused[certifiable]]] = -1.0
        return Cuts(np.zeros((len(lower), 1, lower.shape[1])), slack)


class _OwnBoxBound:
    """Certificates that a surrogate offers itself."""

    certificate = "closed form"
    asks_surrogate = False
    is_curved = False

    def __init__(self, surrogate: HasAcceptedCuts, limits: Limits) -> None:
        self._surrogate = surrogate
        self._limits = limits
        self.matters = np.ones(len(FEATURE_SCHEMA.names), dtype=np.bool_)

    def cuts(self, lower: NDArray[np.float64], upper: NDArray[np.float64], is_tied: NDArray[np.bool_]) -> Cuts:
        """Return what the surrogate says."""
        del is_tied
        return self._surrogate.accepted_cuts(self._limits, lower, upper)


def box_bound_for(model: FeasibilityModel, gpu_type: int) -> BoxBound | None:
    """Return certificates about the surrogate that `model` asks for a GPU type, or None when nothing is certified.

    A surrogate that looks at the members of a set is none of its features alone, and is not certified.
    """
    if model.uses_members or model.problem.scenarios is not None:
        return None
    for maker in _MAKERS:
        bound = maker(model, gpu_type)
        if bound is not None:
            return bound
    return None


def _own(model: FeasibilityModel, gpu_type: int) -> BoxBound | None:
    surrogate = model.surrogate_of(gpu_type)
    return _OwnBoxBound(surrogate, model.problem.limits) if isinstance(surrogate, HasAcceptedCuts) else None


def _monotone(model: FeasibilityModel, gpu_type: int) -> BoxBound | None:
    # A margin scales the load up and a threshold shifts the probability: what never helps still never does.
    inner = unwrapped(model.surrogate_of(gpu_type))
    if not keeps_order(model.surrogate_of(gpu_type)):
        return None
    if isinstance(inner, MonotoneFeasibility):
        return MonotoneBoxBound(model, gpu_type, inner.feature_signs)
    return MonotoneBoxBound(model, gpu_type, MONOTONE_SIGNS) if declares_monotone(inner) else None


# Asked in this order; the first that knows the surrogate answers.
_MAKERS: tuple[Callable[[FeasibilityModel, int], BoxBound | None], ...] = (
    _own,
    sums_bound,
    polyhedra_bound,
    _monotone,
    network_bound,
    interval_bound,
)
