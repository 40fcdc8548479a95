"""Accepted sets as a union of polyhedra in the sums, for every setting of an engine: what proofs about plans like best.

With the settings fixed, the logarithm of the throughput ratio is the least of some planes' answers, and the log-odds of
starvation are the least, over pieces, of the largest of a piece's planes. Each plane's answer is a rising function of
a weighted sum of the aggregates with weights >= 0. Whatever threshold stands on the probability and on the ratio, the
accepted sets of a piece therefore keep linear inequalities, and every part of an accepted set's load is accepted.

The weights are posynomials of the settings: sums of products of powers with coefficients >= 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from predictors.domain import Domain
from predictors.features import AGGREGATE_NAMES, FEATURE_SCHEMA
from twin.errors import SurrogateError

Array = NDArray[np.float64]

# Key of a file's metadata under which the polyhedra stand.
METADATA_KEY = "polyhedra"
# Settings that weights depend on. How many adapters CPU memory keeps is none: plans keep all of a GPU's.
SETTING_NAMES = (
    "max_loras",
    "max_lora_rank",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_tokens",
    "reserves_full_sequence",
)
SETTING_COLUMNS = np.array([FEATURE_SCHEMA.index(name) for name in SETTING_NAMES])
NUM_AGGREGATES = len(AGGREGATE_NAMES)
# Arrays whose numbers must be >= 0, or > 0: otherwise more load might look better, and a sum have no logarithm.
_NOT_NEGATIVE = ("rates", "constants", "weights")
_POSITIVE = ("scales", "offsets", "floors", "slopes")
# Unit of rounding of float32, and how far its logarithms and exponentials are off, in units in the last place.
FLOAT32_ROUNDING = 2.0**-24
_FUNCTION_ULPS = 8.0
# Rows on which a file is asked what its polyhedra say, and how far the two may differ.
_NUM_PROBES = 256
_PROBE_TOLERANCE = 1e-3


@runtime_checkable
class HasPolyhedra(Protocol):
    """A surrogate that may accept polyhedra, and then shows them: proofs about it can be made."""

    @property
    def polyhedra(self) -> Polyhedra | None:
        """What decides about ratio and probability, computed in float32; None when it is nothing of the kind."""
        ...


@dataclass(frozen=True)
class Polyhedra:
    """Arrays of ``slopes * log((exp(powers' g) * (rates' a + constants)) @ weights + floors) + intercepts``.

    There are K aggregates a, S settings, of which g is ``log(setting * scale + offset)``, T terms and P planes: those
    of the ratio first, then those of one piece after the other. All arrays are float32.

    Attributes
    ----------
    scales, offsets
        Of the settings in their logarithms, > 0, [S].
    powers
        Of the settings in each term, [S, T].
    rates, constants
        Of the aggregates in each term, >= 0, [K, T] and [T].
    weights, floors
        Of the terms in each plane, >= 0, [T, P]; and what is added to each plane's sum, > 0, [P].
    slopes, intercepts
        Of each plane's logarithm, > 0, and beside it, [P].
    num_pieces
        Pieces of the union, at least 1; they have as many planes each.
    num_ratio_planes
        Planes of the ratio, at least 1.
    """

    scales: NDArray[np.float32]
    offsets: NDArray[np.float32]
    powers: NDArray[np.float32]
    rates: NDArray[np.float32]
    constants: NDArray[np.float32]
    weights: NDArray[np.float32]
    floors: NDArray[np.float32]
    slopes: NDArray[np.float32]
    intercepts: NDArray[np.float32]
    num_pieces: int
    num_ratio_planes: int

    @classmethod
    def of(cls, arrays: Sequence[NDArray[np.float32]], *, num_pieces: int, num_ratio_planes: int) -> Polyhedra:
        """Return polyhedra from the arrays in the order of the attributes."""
        scales, offsets, powers, rates, constants, weights, floors, slopes, intercepts = arrays
        return cls(
            scales,
            offsets,
            powers,
            rates,
            constants,
            weights,
            floors,
            slopes,
            intercepts,
            num_pieces=num_pieces,
            num_ratio_planes=num_ratio_planes,
        )

    @property
    def planes_per_piece(self) -> int:
        """Planes of each piece."""
        return (len(self.slopes) - self.num_ratio_planes) // self.num_pieces

    def planes_of(self, piece: int) -> slice:
        """Return which planes are those of a piece."""
        start = self.num_ratio_planes + piece * self.planes_per_piece
        return slice(start, start + self.planes_per_piece)

    def answers(self, features: NDArray[np.float32]) -> tuple[Array, Array]:
        """Return the logarithm of the ratio, at most 0, and the log-odds of starvation of `features` [N, F].

        Both float64 [N]; the file's graph computes the same in float32.
        """
        settings = features[:, SETTING_COLUMNS].astype(np.float64)
        factors = np.exp(np.log(settings * self.scales + self.offsets) @ self.powers.astype(np.float64))
        sums = features[:, :NUM_AGGREGATES].astype(np.float64) @ self.rates + self.constants
        planes = np.log((factors * sums) @ self.weights + self.floors) * self.slopes + self.intercepts
        ratio, pieces = np.split(planes, [self.num_ratio_planes], axis=1)
        odds = pieces.reshape(-1, self.num_pieces, self.planes_per_piece).max(axis=2).min(axis=1)
        return -np.maximum(ratio.max(axis=1), 0.0), odds

    def least_sums(self, least: Array, most: Array) -> tuple[Array, Array]:
        """Return weights and constants that no plane's sum is below, for B boxes of the settings.

        Parameters
        ----------
        least, most
            Corners of the settings, float64 [B, S].

        Returns
        -------
        Weights of the aggregates, float64 [B, P, K], and constants, float64 [B, P]; exact where a box is a point, but
        for what the float32 graph may lose of them, which is taken off.
        """
        logs = np.stack([np.log(side * self.scales + self.offsets) for side in (least, most)])
        powers = self.powers.astype(np.float64)
        exponents = logs[0] @ np.maximum(powers, 0.0) + logs[1] @ np.minimum(powers, 0.0)
        largest = np.abs(logs).max(axis=0) @ np.abs(powers)
        factors = np.exp(exponents) * (1.0 - self._lost(largest, np.abs(powers).sum(axis=0)))
        weights = np.einsum("kt,bt,tp->bpk", self.rates.astype(np.float64), factors, self.weights, optimize=True)
        constants = (factors * self.constants) @ self.weights + self.floors * (1.0 - FLOAT32_ROUNDING)
        return weights, constants

    def most_sums(self, planes: slice, answer: float) -> Array:
        """Return the sums, float64 [planes], above which some planes answer more than `answer`, in float32 as well."""
        slopes, intercepts = self.slopes[planes].astype(np.float64), self.intercepts[planes].astype(np.float64)
        logs = (answer - intercepts) / slopes
        # The rounded product with the slope and the rounded sum move the answer; the logarithm is rounded itself.
        lost = (np.abs(answer) + 3.0 * np.abs(intercepts) + 1.0) * 2.0 * FLOAT32_ROUNDING / slopes
        lost += 2.0 * (np.abs(logs) + 1.0) * _FUNCTION_ULPS * FLOAT32_ROUNDING
        most: Array = np.exp(logs + lost)
        return most

    def calibrated(self, slope: float, offset: float) -> Polyhedra:
        """Return the same polyhedra with ``slope * log_odds + offset`` for the log-odds of starvation, slope > 0."""
        slopes, intercepts = self.slopes.copy(), self.intercepts.copy()
        own = slice(self.num_ratio_planes, None)
        slopes[own] *= np.float32(slope)
        intercepts[own] = intercepts[own] * np.float32(slope) + np.float32(offset)
        return replace(self, slopes=slopes, intercepts=intercepts)

    def as_json(self) -> str:
        """Return the arrays as they stand in a file's metadata."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values = {name: _shortest(value) if isinstance(value, np.ndarray) else value for name, value in content.items()}
        names = {"settings": list(SETTING_NAMES), "aggregates": list(AGGREGATE_NAMES)}
        return json.dumps({**names, **values}, sort_keys=True, separators=(",", ":"))

    def _lost(self, largest: Array, powers: Array) -> Array:
        """Return what float32 may lose of each term in each of B boxes, as a share, float64 [B, T].

        `largest` are the largest sums of exponents by absolute value, [B, T], `powers` the sums of absolute powers,
        [T]. Sums of numbers >= 0 lose a unit of rounding per term, whatever their order.
        """
        num_settings, num_terms = self.powers.shape
        in_logs = (2.0 + _FUNCTION_ULPS) * (powers + largest)
        in_exponents = (num_settings + 1.0) * largest + in_logs
        in_sums = NUM_AGGREGATES + num_terms + _FUNCTION_ULPS + 8.0
        lost: Array = np.expm1(2.0 * FLOAT32_ROUNDING * (in_exponents + in_sums))
        return np.minimum(lost, 1.0)


def _shortest(array: NDArray[np.float32]) -> Any:
    """Return an array as lists of the shortest decimal numbers that are these in float32."""
    if array.ndim > 1:
        return [_shortest(part) for part in array]
    return [float(str(value)) for value in array]


def parse_polyhedra(text: str, *, file: str) -> Polyhedra:
    """Return the polyhedra in a file's metadata; SurrogateError when the text gives none."""
    problem: Exception | str
    try:
        content: dict[str, Any] = json.loads(text)
        names = [entry.name for entry in fields(Polyhedra) if not entry.name.startswith("num_")]
        polyhedra = Polyhedra.of(
            [np.array(content[name], dtype=np.float32) for name in names],
            num_pieces=int(content["num_pieces"]),
            num_ratio_planes=int(content["num_ratio_planes"]),
        )
        problem = _first_problem(polyhedra, content)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    if not problem:
        return polyhedra
    raise SurrogateError(
        f"the metadata key `{METADATA_KEY}` must give polyhedra that more load never enters. {file}: {problem}.",
        file=file,
        field=METADATA_KEY,
        hint="`placer train --family polyhedra` writes it; without the key a file proves nothing with it",
    )


def _first_problem(polyhedra: Polyhedra, content: dict[str, Any]) -> str:
    """Return what is wrong with polyhedra; empty: nothing."""
    num_terms, num_planes = len(polyhedra.constants), len(polyhedra.slopes)
    shapes = {
        "scales": (len(SETTING_NAMES),),
        "offsets": (len(SETTING_NAMES),),
        "powers": (len(SETTING_NAMES), num_terms),
        "rates": (NUM_AGGREGATES, num_terms),
        "constants": (num_terms,),
        "weights": (num_terms, num_planes),
        "floors": (num_planes,),
        "slopes": (num_planes,),
        "intercepts": (num_planes,),
    }
    if content.get("settings") != list(SETTING_NAMES) or content.get("aggregates") != list(AGGREGATE_NAMES):
        return "its `settings` and `aggregates` are those of another version"
    for name, shape in shapes.items():
        array = getattr(polyhedra, name)
        if array.shape != shape or not np.isfinite(array).all():
            return f"`{name}` must be {list(shape)} finite numbers"
    for names, least, words in ((_NOT_NEGATIVE, 0.0, "be >= 0"), (_POSITIVE, np.finfo(np.float32).tiny, "be > 0")):
        for name in names:
            if getattr(polyhedra, name).min(initial=1.0) < least:
                return f"`{name}` must {words}"
    own_planes = num_planes - polyhedra.num_ratio_planes
    is_divided = polyhedra.num_pieces >= 1 and own_planes >= 1 and own_planes % max(polyhedra.num_pieces, 1) == 0
    if not is_divided or polyhedra.num_ratio_planes < 1:
        return f"{num_planes} planes are not one of the ratio or more, and as many for each piece"
    return ""


def require_answers(
    polyhedra: Polyhedra, ask: Callable[[NDArray[np.float32]], NDArray[np.float32]], domain: Domain, *, file: str
) -> None:
    """Raise SurrogateError unless a file answers rows from its domain as its polyhedra do.

    Parameters
    ----------
    ask
        Returns the outputs of rows, float32 [N, F], in the order of `predictors.surrogate.OUTPUT_NAMES`.
    """
    bounds = np.array([domain.features[name] for name in FEATURE_SCHEMA.names]).T
    generator = np.random.default_rng(0)
    # From next to no load to all of it, each aggregate on a scale of its own.
    shares = generator.uniform(size=(_NUM_PROBES, len(FEATURE_SCHEMA.names)))
    shares[:, :NUM_AGGREGATES] **= generator.uniform(1.0, 9.0, size=(_NUM_PROBES, 1))
    rows = (bounds[0] + shares * (bounds[1] - bounds[0])).astype(np.float32)
    log_ratio, log_odds = polyhedra.answers(rows)
    expected = np.stack([np.exp(log_ratio), 1.0 / (1.0 + np.exp(-np.clip(log_odds, -50.0, 50.0)))])
    if not np.allclose(ask(rows)[:2], expected, rtol=0.0, atol=_PROBE_TOLERANCE):
        raise not_computed(file, f"on {_NUM_PROBES} rows of its domain")


def not_computed(file: str, words: str) -> SurrogateError:
    """Return the error about a file whose graph computes something else than its polyhedra."""
    return SurrogateError(
        f"the graph of a surrogate must compute the polyhedra of its metadata, {words}. {file} computes something "
        "else: bounds that rest on them would not hold for what it accepts.",
        file=file,
        field=METADATA_KEY,
        hint="train it again with `placer train --family polyhedra`, or take the key out of the metadata",
    )
