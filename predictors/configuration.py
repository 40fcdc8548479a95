"""The configuration model of arXiv 2508.08343: from a population the best number of adapters and slots of a GPU.

A model holds a small ensemble, and a shallow tree that approximates the same and can be read as rules. Both correct
what arithmetic says (`predictors.capacity`) by a factor. It is a JSON file of numbers: running it needs no library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from predictors.capacity import Capacity
from predictors.configuration_features import FEATURE_NAMES, FEATURE_UNITS, FEATURES_VERSION, describe
from predictors.optimum import STARVATION_TESTS, SearchSettings, StarvationTest
from predictors.provenance import profile_fingerprint
from twin.atomic_write import write_atomically
from twin.bounded_read import read_bounded
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.workload import Adapter

SUFFIX = ".configuration.json"
# Logarithms of the factors on what arithmetic says.
OUTPUT_NAMES = ("log_adapters_factor", "log_slots_factor")
_LEAF = -1
_RETRAIN = "make one for this version and profile with `placer train-configuration`"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tree(_Document):
    """A decision tree as columns over its M nodes; node 0 is the root, children come after their parents.

    Attributes
    ----------
    feature
        Index of the feature that a node asks about; -1 for a leaf.
    threshold
        Features up to this go left.
    left, right
        Children; -1 for a leaf.
    value
        What a leaf says, one number per output.
    rows
        Populations that a node was fitted to; 0 in the trees of an ensemble.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[tuple[float, ...], ...]
    rows: tuple[int, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        size = len(self.feature)
        columns = (self.threshold, self.left, self.right, self.value, self.rows)
        if size == 0 or any(len(column) != size for column in columns):
            raise ValueError("the columns of a tree must have one length of at least 1")
        for node, (feature, left, right) in enumerate(zip(self.feature, self.left, self.right, strict=True)):
            if not _LEAF <= feature < len(FEATURE_NAMES):
                raise ValueError(f"node {node} must ask about one of {len(FEATURE_NAMES)} features. Got {feature}")
            # Children behind their parents: every path ends.
            if feature != _LEAF and not (node < left < size and node < right < size):
                raise ValueError(f"the children of node {node} must come after it")
        return self

    def path(self, features: NDArray[np.float64]) -> tuple[int, ...]:
        """Return the nodes from the root to the leaf of `features`, float64 [F]."""
        nodes = [0]
        while self.feature[nodes[-1]] != _LEAF:
            node = nodes[-1]
            goes_left = features[self.feature[node]] <= self.threshold[node]
            nodes.append(self.left[node] if goes_left else self.right[node])
        return tuple(nodes)

    def predict(self, features: NDArray[np.float64]) -> tuple[float, ...]:
        """Return what the leaf of `features` says."""
        return self.value[self.path(features)[-1]]

    def is_leaf(self, node: int) -> bool:
        """Return whether a node has no children."""
        return self.feature[node] == _LEAF


class Ensemble(_Document):
    """A sum of trees with one output.

    Attributes
    ----------
    base
        To which their values are added.
    """

    base: float
    trees: tuple[Tree, ...]

    def predict(self, features: NDArray[np.float64]) -> float:
        """Return the prediction for `features`, float64 [F]."""
        return self.base + sum(tree.predict(features)[0] for tree in self.trees)


class FeatureList(_Document):
    """Names, units and version of the features that a model was fitted to."""

    version: int
    names: tuple[str, ...]
    units: tuple[str, ...]


class ProfileName(_Document):
    """Name of a profile, and hash of its numbers."""

    name: str
    fingerprint: str


class Fit(_Document):
    """What was fitted to the best configurations by one test of starvation.

    Attributes
    ----------
    ensembles
        By name of the output.
    rules
        The shallow tree, with both outputs.
    """

    ensembles: dict[str, Ensemble]
    rules: Tree

    @model_validator(mode="after")
    def _check(self) -> Self:
        if set(self.ensembles) != set(OUTPUT_NAMES):
            raise ValueError(f"there must be one ensemble each for {' and '.join(OUTPUT_NAMES)}")
        if any(len(value) != len(OUTPUT_NAMES) for value in self.rules.value):
            raise ValueError(f"the rules must say {len(OUTPUT_NAMES)} numbers")
        return self

    def factors(self, features: NDArray[np.float64]) -> tuple[float, ...]:
        """Return what the ensembles say about `features`, float64 [F], in the order of `OUTPUT_NAMES`."""
        return tuple(self.ensembles[name].predict(features) for name in OUTPUT_NAMES)


class ConfigurationModel(_Document):
    """A configuration model as it stands in its file.

    Attributes
    ----------
    profile
        Whose twin labelled the populations.
    most_adapters, slot_options
        Between which the best was looked for.
    fits
        By test of starvation.
    training
        Populations, settings, errors.
    """

    schema_version: Literal[1] = 1
    features: FeatureList = FeatureList(version=FEATURES_VERSION, names=FEATURE_NAMES, units=FEATURE_UNITS)
    profile: ProfileName
    most_adapters: int = Field(ge=1)
    slot_options: tuple[int, ...] = Field(min_length=1)
    fits: dict[StarvationTest, Fit]
    training: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.features.version, self.features.names) != (FEATURES_VERSION, FEATURE_NAMES):
            raise ValueError(f"the features must be those of version {FEATURES_VERSION}. Got {self.features.version}")
        if set(self.fits) != set(STARVATION_TESTS):
            raise ValueError(f"there must be one fit each for {' and '.join(STARVATION_TESTS)}")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a model.

        Raises
        ------
        SurrogateError
            When the file is unreadable, or no configuration model of this version.
        """
        file = str(path)
        try:
            return cls.model_validate_json(read_bounded(path))
        except OSError as error:
            raise SurrogateError(
                f"a configuration model must be a readable file. {file}: {error.strerror}.", file=file, hint=_RETRAIN
            ) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise SurrogateError(
                f"{file} must be a configuration model. `{field}`: {first['msg']}.",
                file=file,
                field=field,
                hint=_RETRAIN,
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the model as JSON with sorted keys, whole or not at all (InputError when that is not possible)."""
        write_atomically(Path(path), json.dumps(self.model_dump(mode="json"), sort_keys=True) + "\n")

    def require_profile(self, profile: PerformanceProfile, *, file: str) -> None:
        """Raise SurrogateError unless the model was made with this profile."""
        fingerprint = profile_fingerprint(profile)
        if (self.profile.name, self.profile.fingerprint) != (profile.name, fingerprint):
            raise SurrogateError(
                f"a configuration model must have been made with the profile it is used with, {profile.name!r} "
                f"({fingerprint}). {file} was made with {self.profile.name!r} ({self.profile.fingerprint}).",
                file=file,
                field="profile",
                value=self.profile.name,
                hint=_RETRAIN,
            )

    def predict(
        self,
        adapters: Sequence[Adapter],
        replica: Replica,
        *,
        test: StarvationTest = "adapter",
        slot_options: Sequence[int] | None = None,
    ) -> Prediction:
        """Return the best configuration of a GPU for a population.

        Parameters
        ----------
        adapters
            The population: its law counts, not its size. At least one adapter has a rate above 0.
        replica
            Model, GPU, profile, and all settings but slots and CPU cache.
        test
            Whose starvation rules a configuration out.
        slot_options
            Slots to choose from; ``None``: those between which the best was looked for.

        Raises
        ------
        InputError
            When the replica starts with none of the slots.
        """
        options = tuple(sorted(slot_options)) if slot_options else self.slot_options
        settings = SearchSettings(most_adapters=self.most_adapters, slot_options=options)
        description = describe(adapters, replica, settings)
        # The trees were fitted to numbers in this precision.
        features = description.features.astype(np.float32).astype(np.float64)
        fit = self.fits[test]
        path = fit.rules.path(features)

        def decoded(logs: Sequence[float]) -> tuple[int, int]:
            return _decode(logs, description.capacity, description.slot_options, self.most_adapters)

        rule = Rule(*decoded(fit.rules.value[path[-1]]), path)
        return Prediction(*decoded(fit.factors(features)), rule, description.capacity, features)


@dataclass(frozen=True)
class Rule:
    """What the shallow tree says: a configuration, and the nodes from the root to the leaf that it comes from."""

    num_adapters: int
    max_loras: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """What a model says about a population and a GPU.

    Attributes
    ----------
    num_adapters, max_loras
        Best configuration, by the ensemble.
    rule
        The same by the shallow tree.
    capacity
        What arithmetic says.
    features
        What the model saw, float64 [len(FEATURE_NAMES)].
    """

    num_adapters: int
    max_loras: int
    rule: Rule
    capacity: Capacity
    features: NDArray[np.float64]


def shipped_configuration_model(profile_name: str) -> Path | None:
    """Return the path of the shipped configuration model of the profile of that name, or None."""
    path = Path(str(resources.files("predictors") / "models" / f"{profile_name}{SUFFIX}"))
    return path if path.is_file() else None


def _decode(
    log_factors: Sequence[float], capacity: Capacity, slot_options: Sequence[int], most_adapters: int
) -> tuple[int, int]:
    """Return adapters and slots: arithmetic times factors, slots as the nearest that start, at most the adapters."""
    num_adapters = min(max(round(capacity.num_adapters * math.exp(log_factors[0])), 1), most_adapters)
    wanted = math.log(capacity.max_loras) + log_factors[1]
    options = set(slot_options)
    if len(options) > 1:
        # One slot per adapter instead of any that would be spare; slots that are given stay as they are.
        options = {slots for slots in options if slots < num_adapters} | {min(num_adapters, max(options))}
    return num_adapters, min(sorted(options), key=lambda slots: abs(math.log(slots) - wanted))
