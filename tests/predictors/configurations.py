"""Configuration models made by hand, whose answers can be seen."""

import math

from predictors.configuration import ConfigurationModel, Ensemble, Fit, ProfileName, Tree
from predictors.configuration_features import FEATURE_NAMES
from predictors.provenance import profile_fingerprint
from predictors.scenarios import SLOT_GRID
from twin.profile import PerformanceProfile

_FIT_FACTS = {
    "fitted": 6,
    "validated": 1,
    "tested": 1,
    "margins": {"0.1": 1.25},
    "errors": {
        "model": {
            quantity: {"median_percent": 1.0, "mean_percent": 2.0, "bias_percent": 0.5}
            for quantity in ("adapters", "slots")
        }
    },
}
FACTS = {"populations": 8, "fits": {"adapter": _FIT_FACTS, "replica": _FIT_FACTS}}


def constant_tree(*values: float) -> Tree:
    """Return a tree that is a leaf."""
    return Tree(feature=(-1,), threshold=(0.0,), left=(-1,), right=(-1,), value=(values,), rows=(6,))


def rank_rules(*, threshold: float = 12.0) -> Tree:
    """Return rules that halve the adapters where the slots' rank is above a threshold, and double the slots there."""
    return Tree(
        feature=(FEATURE_NAMES.index("max_lora_rank"), -1, -1),
        threshold=(threshold, 0.0, 0.0),
        left=(1, -1, -1),
        right=(2, -1, -1),
        value=((0.0, 0.0), (0.0, 0.0), (math.log(0.5), math.log(2.0))),
        rows=(6, 4, 2),
    )


def _fit(adapters_factor: float) -> Fit:
    return Fit(
        ensembles={
            "log_adapters_factor": Ensemble(base=math.log(adapters_factor), trees=(constant_tree(0.0),)),
            "log_slots_factor": Ensemble(base=0.0, trees=()),
        },
        rules=rank_rules(),
    )


def handmade_model(profile: PerformanceProfile, *, adapters_factor: float = 1.0) -> ConfigurationModel:
    """Return a model that multiplies arithmetic's adapters with a factor, twice that for the papers' test."""
    return ConfigurationModel(
        profile=ProfileName(name=profile.name, fingerprint=profile_fingerprint(profile)),
        most_adapters=1_000,
        slot_options=SLOT_GRID,
        fits={"adapter": _fit(adapters_factor), "replica": _fit(2.0 * adapters_factor)},
        training=FACTS,
    )
