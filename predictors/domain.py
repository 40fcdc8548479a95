"""Where a surrogate was fitted: a box of the features, and ratios of them that a box alone cannot describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from predictors.features import ENGINE_NAMES, FEATURE_SCHEMA, FeatureSchema
from twin.bounded_read import parse_json
from twin.errors import SurrogateError

# A feature that never varied in the training data (a rank that nobody has, say) has a box without width: rounding to
# float32 must not put a row outside of it.
RELATIVE_SLACK = 1e-4


class RatioRule(BaseModel):
    """A bound on the sum of some features divided by the sum of others; rows with a zero denominator satisfy it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    numerator: tuple[str, ...]
    denominator: tuple[str, ...]
    min: float
    max: float


# Load per capacity (what the KV cache and the batch are asked to hold, adapters per slot) and lengths per request.
# Lower bounds are those of the lengths only: less load than was ever sampled is not a reason to distrust "not
# starved".
HULL_RATIOS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("kv_load_per_capacity", ("sum_kv_token_steps",), ("kv_tokens",)),
    ("output_load_per_sequence", ("sum_output_tps",), ("max_num_seqs",)),
    ("adapters_per_slot", ("num_adapters",), ("max_loras",)),
    ("prompt_tokens_per_request", ("sum_prompt_tps",), ("sum_rate_rps",)),
    ("output_tokens_per_request", ("sum_output_tps",), ("sum_rate_rps",)),
)
_LENGTH_RATIOS = frozenset({"prompt_tokens_per_request", "output_tokens_per_request"})


class Domain(BaseModel):
    """The domain of a surrogate.

    Attributes
    ----------
    features
        Smallest and largest value of each feature, by name.
    ratios
        The hull rule: every ratio within its bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: dict[str, tuple[float, float]]
    ratios: tuple[RatioRule, ...] = ()

    @model_validator(mode="after")
    def _check_bounds(self) -> Domain:
        for name, (lower, upper) in self.features.items():
            if not lower <= upper:
                raise ValueError(f"the bounds of `{name}` must be [min, max]. Got [{lower}, {upper}]")
        named = {name for rule in self.ratios for name in (*rule.numerator, *rule.denominator)}
        unknown = sorted(named - set(self.features))
        if unknown:
            raise ValueError(f"ratios must name features of the domain. Got {', '.join(unknown)}")
        return self

    @classmethod
    def from_rows(cls, features: NDArray[np.float32], schema: FeatureSchema = FEATURE_SCHEMA) -> Domain:
        """Return the domain that the training rows `features` [N, F] span; N >= 1.

        The bounds of the aggregates (all columns that a smaller set of adapters would lower) start at 0.
        """
        values = np.asarray(features, dtype=np.float64)
        box = {
            name: (float(values[:, i].min()) if name in ENGINE_NAMES else 0.0, float(values[:, i].max()))
            for i, name in enumerate(schema.names)
        }
        rules = []
        for name, numerator, denominator in HULL_RATIOS:
            ratio = _ratio(values, schema.names, numerator, denominator)
            finite = ratio[np.isfinite(ratio)]
            lower = float(finite.min()) if name in _LENGTH_RATIOS else 0.0
            upper = float(finite.max())
            rules.append(RatioRule(name=name, numerator=numerator, denominator=denominator, min=lower, max=upper))
        return cls(features=box, ratios=tuple(rules))

    def joined(self, other: Domain) -> Domain:
        """Return the smallest domain of the same features and ratios that holds both."""

        def span(one: tuple[float, float], another: tuple[float, float]) -> tuple[float, float]:
            return min(one[0], another[0]), max(one[1], another[1])

        others = {rule.name: rule for rule in other.ratios}
        rules = []
        for rule in self.ratios:
            lower, upper = span((rule.min, rule.max), (others[rule.name].min, others[rule.name].max))
            rules.append(rule.model_copy(update={"min": lower, "max": upper}))
        box = {name: span(bounds, other.features[name]) for name, bounds in self.features.items()}
        return Domain(features=box, ratios=tuple(rules))

    def outside(self, features: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.bool_]:
        """Return for each row of `features` [N, F] (columns `names`) whether it is outside the domain, bool [N]."""
        values = np.asarray(features, dtype=np.float64)
        lower = np.array([self.features[name][0] for name in names])
        upper = np.array([self.features[name][1] for name in names])
        slack = RELATIVE_SLACK * np.maximum(np.abs(lower), np.abs(upper))
        outside = ~((values >= lower - slack) & (values <= upper + slack)).all(axis=1)
        for rule in self.ratios:
            ratio = _ratio(values, names, rule.numerator, rule.denominator)
            margin = RELATIVE_SLACK * max(abs(rule.min), abs(rule.max))
            outside |= (ratio < rule.min - margin) | (ratio > rule.max + margin)
        return np.asarray(outside, dtype=np.bool_)

    @classmethod
    def parse(cls, text: str, *, schema: FeatureSchema, file: str) -> Domain:
        """Read the domain from a model's metadata; SurrogateError unless it covers exactly the features of `schema`."""
        try:
            content: Any = parse_json(text)
            domain = cls.model_validate(content)
        except (ValueError, ValidationError) as error:
            raise SurrogateError(
                f"the metadata key `domain` must give [min, max] per feature and the ratios. {file}: {error}",
                file=file,
                field="domain",
            ) from error
        differing = sorted(set(schema.names) ^ set(domain.features))
        if differing:
            raise SurrogateError(
                f"the metadata key `domain` must bound each feature of the schema. "
                f"{file} differs in {', '.join(differing)}.",
                file=file,
                field="domain",
                value=differing,
            )
        return domain


def _ratio(
    values: NDArray[np.float64], names: Sequence[str], numerator: Sequence[str], denominator: Sequence[str]
) -> NDArray[np.float64]:
    """Return numerator over denominator per row, float64 [N]; NaN (never outside) where the denominator is 0."""
    columns = {name: index for index, name in enumerate(names)}
    above = values[:, [columns[name] for name in numerator]].sum(axis=1)
    below = values[:, [columns[name] for name in denominator]].sum(axis=1)
    ratio = np.full(len(values), np.nan)
    np.divide(above, below, out=ratio, where=below > 0.0)
    return ratio
