"""What the configuration model says about a problem's adapters, why, and what the twin says about that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placer.files import ProblemFromFile
from predictors.adapter_sequence import AdapterSequence
from predictors.configuration import ConfigurationModel, Prediction, shipped_configuration_model
from predictors.configuration_features import FEATURE_NAMES
from predictors.configuration_rules import path_lines, rule_lines
from predictors.optimum import STARVATION_TESTS, Optimum, SearchSettings, StarvationTest, TwinProbe, find_optimum
from solvers.slots import SlotTables
from twin.errors import InputError, SurrogateError
from twin.profile import PerformanceProfile
from twin.replica import Replica


@dataclass(frozen=True)
class TwinCheck:
    """What the twin says about a configuration.

    Attributes
    ----------
    served_share
        Of the offered load, at most 1.
    """

    num_adapters: int
    max_loras: int
    starves: bool
    throughput_tps: float
    served_share: float


@dataclass(frozen=True)
class Explanation:
    """What a model says about a population on a GPU, and the twin about that.

    Attributes
    ----------
    profile
        Name of the GPU's profile.
    starvation_test
        Whose starvation rules a configuration out.
    num_adapters
        Of the population; a prediction may be larger, and then counts copies of them.
    prediction
        What the model says.
    rule_path
        How the rules came to what they say.
    check, rule_check
        The twin's view of the prediction and of the rules; None: it was not asked.
    optimum
        The twin's own best; None: it was not asked.
    """

    profile: str
    starvation_test: StarvationTest
    num_adapters: int
    prediction: Prediction
    rule_path: tuple[str, ...]
    check: TwinCheck | None
    rule_check: TwinCheck | None
    optimum: Optimum | None

    @property
    def features(self) -> dict[str, float]:
        """What the model saw, by name."""
        return dict(zip(FEATURE_NAMES, self.prediction.features.tolist(), strict=True))


def load_configuration_model(profile: PerformanceProfile, file: Path | None) -> ConfigurationModel:
    """Return the model in a file, or the shipped one of a profile.

    Raises
    ------
    SurrogateError
        When there is none for the profile, it is unreadable, or was made with other numbers.
    """
    path = file if file is not None else shipped_configuration_model(profile.name)
    if path is None:
        raise SurrogateError(
            f"a profile must have a configuration model. None is shipped for {profile.name!r}.",
            field="profile",
            value=profile.name,
            hint="make one with `placer train-configuration` and name it with --model",
        )
    model = ConfigurationModel.load(path)
    model.require_profile(profile, file=str(path))
    return model


def checked_test(name: str) -> StarvationTest:
    """Return a test of starvation by its name (InputError when there is none of that name)."""
    for test in STARVATION_TESTS:
        if test == name:
            return test
    raise InputError(
        f"`--starvation` must be {' or '.join(STARVATION_TESTS)}. Got {name!r}.",
        field="starvation",
        value=name,
        hint="`adapter` is what plans are judged by, `replica` is the papers' test",
    )


def replica_of_problem(problem: ProblemFromFile, gpu: str | None) -> Replica:
    """Return a GPU of a problem with slots of the largest rank; `gpu` names one of its types, the first by default.

    Raises
    ------
    InputError
        When there is no such type.
    """
    names = [gpu_type.name for gpu_type in problem.gpu_types]
    if gpu is not None and gpu not in names:
        raise InputError(f"`--gpu` must be one of {', '.join(names)}. Got {gpu!r}.", field="gpu", value=gpu)
    rank = SlotTables(problem).rank_of_slots(int(problem.ranks.max()))
    return problem.replica(0 if gpu is None else names.index(gpu), 1, rank, 1)


def explain_problem(
    problem: ProblemFromFile,
    replica: Replica,
    model: ConfigurationModel,
    *,
    settings: SearchSettings,
    is_checked: bool,
    is_searched: bool,
) -> Explanation:
    """Return what a model says about the adapters of a problem on a replica.

    Parameters
    ----------
    settings
        Of the twin; its slots and most adapters are the model's.
    is_checked, is_searched
        Whether the twin judges the predictions, and whether it looks for its own best.

    Raises
    ------
    InputError
        When no adapter has any traffic, or the replica starts with none of the slots.
    """
    adapters = problem.adapters
    if not any(adapter.rate_rps > 0.0 for adapter in adapters):
        raise InputError("an adapter must have a rate above 0. All have 0.", field="adapters")
    prediction = model.predict(adapters, replica, test=settings.starvation_test, slot_options=settings.slot_options)
    check = rule_check = optimum = None
    if is_checked:
        probe = TwinProbe(AdapterSequence(adapters), replica, settings)
        check = _check(probe, prediction.num_adapters, prediction.max_loras)
        rule_check = _check(probe, prediction.rule.num_adapters, prediction.rule.max_loras)
    if is_searched:
        optimum = find_optimum(adapters, replica, settings)
    path = path_lines(model.fits[settings.starvation_test].rules, prediction.rule.path, prediction.features)
    return Explanation(
        profile=replica.profile.name,
        starvation_test=settings.starvation_test,
        num_adapters=len(adapters),
        prediction=prediction,
        rule_path=tuple(path),
        check=check,
        rule_check=rule_check,
        optimum=optimum,
    )


def search_settings_for(
    problem: ProblemFromFile,
    model: ConfigurationModel,
    *,
    test: StarvationTest,
    num_seeds: int,
    seed: int,
    horizon_s: float,
    warmup_s: float,
) -> SearchSettings:
    """Return how the twin is asked: with the problem's tolerance, and its slots if it fixes them, else the model's."""
    fixed = problem.fixed_max_loras
    return SearchSettings(
        num_seeds=num_seeds,
        seed=seed,
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        starvation_test=test,
        starvation_tolerance=problem.limits.starvation_tolerance,
        most_adapters=model.most_adapters,
        slot_options=model.slot_options if fixed is None else (fixed,),
    )


def explanation_to_json(explanation: Explanation) -> str:
    """Return an explanation as JSON: sorted keys, ending in a newline."""
    prediction = explanation.prediction
    optimum = explanation.optimum
    capacity = prediction.capacity
    content = {
        "schema_version": 1,
        "profile": explanation.profile,
        "starvation_test": explanation.starvation_test,
        "num_adapters": explanation.num_adapters,
        "model": {"num_adapters": prediction.num_adapters, "max_loras": prediction.max_loras},
        "rules": {
            "num_adapters": prediction.rule.num_adapters,
            "max_loras": prediction.rule.max_loras,
            "path": list(explanation.rule_path),
        },
        "arithmetic": {
            "num_adapters": capacity.num_adapters,
            "max_loras": capacity.max_loras,
            "limit": capacity.limit,
        },
        "features": explanation.features,
        "twin": {
            "model": _check_json(explanation.check),
            "rules": _check_json(explanation.rule_check),
            "optimum": None
            if optimum is None or optimum.best is None
            else {
                "num_adapters": optimum.best.num_adapters,
                "max_loras": optimum.best.max_loras,
                "throughput_tps": optimum.best.throughput_tps,
                "is_at_limit": optimum.is_at_limit,
                "num_simulations": optimum.num_simulations,
            },
        },
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def model_to_json(model: ConfigurationModel) -> str:
    """Return the rules of a model and what is known about it as JSON: sorted keys, ending in a newline."""
    content = {
        "schema_version": 1,
        "profile": model.profile.model_dump(mode="json"),
        "rules": {
            test: {"tree": fit.rules.model_dump(mode="json"), "text": rule_lines(fit.rules)}
            for test, fit in model.fits.items()
        },
        "features": model.features.model_dump(mode="json"),
        "training": model.training,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _check(probe: TwinProbe, num_adapters: int, max_loras: int) -> TwinCheck:
    verdict = probe.verdict(num_adapters, max_loras, probe.settings.starvation_test)
    offered_tps = probe.sequence.offered_tps(num_adapters)
    share = verdict.throughput_tps / offered_tps if offered_tps else 1.0
    return TwinCheck(num_adapters, max_loras, verdict.starves, verdict.throughput_tps, share)


def _check_json(check: TwinCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    return {"starves": check.starves, "throughput_tps": check.throughput_tps, "served_share": check.served_share}
