"""Physics in front of a neural network: what the features imply under a profile's step times, in few large operations.

`predictors.derived` gives trees the same quantities as a hundred small nodes, which take longer than the trees of a
single question. Here each quantity is a posynomial (a sum of products of powers with positive coefficients) of sums of
features, so that all of them together are three matrix products with a logarithm, an exponential and a logarithm
between them: ``log(C exp(W log(max(A x + a, floor))))``. Minima and maxima of the derived columns are left to the
network, which is given both sides.

Matrix products round differently in batches of different sizes, by a unit or two in the last place. A network does not
mind; a tree that splits on such a value would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA
from twin.profile import PerformanceProfile
from twin.step_time import EXPAND_TILE_TOKENS, LARGE_SPLIT_SHARE, SHRINK_TILE_RANKS, SHRINK_TILE_TOKENS

# Logarithms need positive numbers: less than this of anything (a rate, an adapter) is as good as nothing.
FLOOR = 1e-3
# Added to every column, so that one without terms, as under a profile that lacks a cost, has a logarithm.
_TINY = 1e-9

Monomial = tuple[tuple[str, int], ...]


class Posynomial:
    """A sum of products of powers of named quantities, with coefficients >= 0; sums and products are formed."""

    def __init__(self, terms: dict[Monomial, float]) -> None:
        self.terms = {monomial: value for monomial, value in terms.items() if value > 0.0}

    @classmethod
    def constant(cls, value: float) -> Posynomial:
        """Return a number >= 0."""
        return cls({(): value})

    @classmethod
    def of(cls, name: str, power: int = 1) -> Posynomial:
        """Return a power of a quantity."""
        return cls({((name, power),): 1.0})

    def __add__(self, other: Posynomial | float) -> Posynomial:
        """Return the sum."""
        terms = dict(self.terms)
        for monomial, value in _posynomial(other).terms.items():
            terms[monomial] = terms.get(monomial, 0.0) + value
        return Posynomial(terms)

    def __mul__(self, other: Posynomial | float) -> Posynomial:
        """Return the product."""
        terms: dict[Monomial, float] = {}
        for (left, a), (right, b) in product(self.terms.items(), _posynomial(other).terms.items()):
            monomial = _multiplied(left, right)
            terms[monomial] = terms.get(monomial, 0.0) + a * b
        return Posynomial(terms)


def _posynomial(value: Posynomial | float) -> Posynomial:
    return value if isinstance(value, Posynomial) else Posynomial.constant(value)


def _multiplied(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for name, power in right:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted((name, power) for name, power in powers.items() if power != 0))


@dataclass(frozen=True)
class PhysicsLayer:
    """The arrays of ``log(C exp(W log(max(A x + a, floor))))`` with F features, B sums, M products and D columns.

    Attributes
    ----------
    names
        Of the D columns.
    sums, offsets, floors
        A float32 [F, B], a float32 [B], and the least value of each sum, float32 [B]; ``None``: no sum of features that
        are >= 0 is below 0.
    powers
        W float32 [B, M].
    coefficients
        C float32 [M, D], >= 0.
    offered
        Which of the sums is the offered load, in tokens/s.
    """

    names: tuple[str, ...]
    sums: NDArray[np.float32]
    offsets: NDArray[np.float32]
    floors: NDArray[np.float32] | None
    powers: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    offered: int

    def columns(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the columns of `features` [N, F], float32 [N, D]."""
        sums = features @ self.sums + self.offsets
        bases = np.log(sums if self.floors is None else np.maximum(sums, self.floors))
        columns: NDArray[np.float32] = np.log(np.exp(bases @ self.powers) @ self.coefficients).astype(np.float32)
        return columns


def smooth_physics_layer(profile: PerformanceProfile) -> PhysicsLayer:
    """Return the layer as networks see it: to every sum its floor is added, at most `FLOOR`, instead of cutting it off.

    That is one operation less in a question. Slots of a rank below a tile cost as much as their rank says then, where
    they take a whole tile; a network sees the rank as well.
    """
    layer = physics_layer(profile)
    assert layer.floors is not None
    return replace(layer, offsets=layer.offsets + np.minimum(layer.floors, np.float32(FLOOR)), floors=None)


def physics_layer(profile: PerformanceProfile) -> PhysicsLayer:
    """Return the layer for a profile: the features themselves, and what the load asks of a replica with them.

    Notes
    -----
    With O output tokens/s, P prompt tokens/s and K KV token steps/s, a replica must take at least O / max_num_seqs,
    K / kv_tokens and (O + P) / max_num_batched_tokens steps per second (see `predictors.derived`). Of each of these the
    columns have the share of a second that the load takes, by twin/step_time.py with half a tile of rounding: what is
    in proportion to the load, plus the fixed cost of so many steps, whose batches hold as many adapters as there are
    slots, or as are active.
    """
    bases = _bases()
    columns = {name: Posynomial.of(name) for name in FEATURE_SCHEMA.names} | _quantities(profile)
    columns = {name: column + _TINY for name, column in columns.items()}
    monomials = sorted({monomial for column in columns.values() for monomial in column.terms})
    row = {name: index for index, name in enumerate(bases)}
    powers = np.zeros((len(bases), len(monomials)), dtype=np.float32)
    coefficients = np.zeros((len(monomials), len(columns)), dtype=np.float32)
    for index, monomial in enumerate(monomials):
        for name, power in monomial:
            powers[row[name], index] = power
        for column, posynomial in enumerate(columns.values()):
            coefficients[index, column] = posynomial.terms.get(monomial, 0.0)
    sums = np.zeros((len(FEATURE_SCHEMA.names), len(bases)), dtype=np.float32)
    offsets, floors = (np.zeros(len(bases), dtype=np.float32) for _ in range(2))
    for index, base in enumerate(bases.values()):
        offsets[index], floors[index] = base.offset, base.floor
        for name, weight in base.weights.items():
            sums[FEATURE_SCHEMA.index(name), index] = weight
    return PhysicsLayer(tuple(columns), sums, offsets, floors, powers, coefficients, offered=row["tokens"])


@dataclass(frozen=True)
class _Base:
    """A weighted sum of features that stands in products."""

    weights: dict[str, float]
    offset: float = 0.0
    floor: float = FLOOR


def _bases() -> dict[str, _Base]:
    """Return the sums by name: each feature, and three that are none."""
    return {name: _Base({name: 1.0}) for name in FEATURE_SCHEMA.names} | {
        # Not raised by more than rounding: graphs take the offered load from here.
        "tokens": _Base({"sum_prompt_tps": 1.0, "sum_output_tps": 1.0}, floor=1e-6),
        "grid_slots": _Base({"max_loras": 1.0}, offset=1.0),
        # Ranks below a tile take a whole one.
        "rank_tiles": _Base({"max_lora_rank": 1.0 / SHRINK_TILE_RANKS}, floor=1.0),
    }


def _quantities(profile: PerformanceProfile) -> dict[str, Posynomial]:
    """Return the columns beside the features; times in seconds, utilisations as shares of a second."""
    c = profile.step_time
    of = Posynomial.of
    tokens, slots, adapters = of("tokens"), of("max_loras"), of("num_adapters")
    tiles = of("rank_tiles") * (LARGE_SPLIT_SHARE * c.shrink_tile_ms / SHRINK_TILE_TOKENS)
    grid = of("grid_slots") * (tiles + c.expand_tile_ms / EXPAND_TILE_TOKENS)
    load = (
        tokens * (grid + (c.token_ms + c.lora_token_ms))
        + of("sum_output_tps") * (c.request_ms + c.changed_request_ms)
        + of("sum_kv_token_steps") * (c.context_token_ms + c.mixed_context_token_ms)
    ) * 1e-3
    step = (grid * (0.5 * EXPAND_TILE_TOKENS) + (c.base_ms + c.lora_base_ms + c.lora_active_ms)) * 1e-3
    adapter = (
        of("rank_tiles") * (LARGE_SPLIT_SHARE * c.adapter_shrink_ms) + adapters * c.cached_adapter_ms + c.adapter_ms
    ) * 1e-3
    busy = {"slots": slots, "active": of("active_40s")}
    required = {
        "sequences": of("sum_output_tps") * of("max_num_seqs", -1),
        "kv": of("sum_kv_token_steps") * of("kv_tokens", -1),
        "tokens": tokens * of("max_num_batched_tokens", -1),
    }
    quantities = {
        "tokens_per_s": tokens,
        "load_utilisation": load,
        # Looking slots up takes as many of them as there are adapters at most.
        "load_utilisation_with_slots": load + tokens * slots * (c.slot_lookup_ms * 1e-3),
        "load_utilisation_with_adapters": load + tokens * adapters * (c.slot_lookup_ms * 1e-3),
        "step_s": step,
        "step_s_active_10s": step + adapter * of("active_10s"),
    }
    for name, number in busy.items():
        full = step + adapter * number
        pairs = of("max_num_seqs") * number * (c.adapter_request_ms * 1e-3)
        quantities[f"step_s_{name}"] = full
        for limit, steps in required.items():
            quantities[f"saturated_by_{limit}_{name}"] = load + steps * (full + pairs)
    return quantities
