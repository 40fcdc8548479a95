"""What a scenario makes of a problem: the same kind of problem, checked as one that was read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from placer.files import ProblemFromFile
from placer.whatif.relaxing import relaxed
from placer.whatif.scenario import Scenario
from predictors.uncertainty import RateUncertainty
from solvers.constraints import matching_adapters
from solvers.limits import Limits
from solvers.problem import profile_of
from solvers.problem_checks import check_problem
from solvers.problem_errors import ProblemSource
from twin.errors import InputError
from twin.hardware import GpuType, load_model
from twin.workload import Adapter, Workload


def changed(problem: ProblemFromFile, scenario: Scenario, *, seed: int, folder: Path) -> ProblemFromFile:
    """Return the problem of a scenario; lost GPUs are taken off where types have a `max_count`, and else left to plans.

    Parameters
    ----------
    seed
        Of the adapters that are added: those of a smaller number are the first ones of a larger one.
    folder
        That relative paths of models and profiles start from.

    Raises
    ------
    InputError, ProfileError
        When the scenario does not fit the problem; the field is the scenario's.
    """
    made = _with_adapters(problem, scenario, seed)
    made = _with_rates(made, scenario)
    made = _with_lengths(made, scenario)
    made = _with_gpus(made, scenario, folder)
    made = replace(made, limits=_limits(made.limits, scenario))
    if scenario.probability is not None or scenario.rate_cv is not None or scenario.common_cv is not None:
        made = replace(made, uncertainty=_uncertainty(scenario))
    if scenario.relax is not None:
        made = relaxed(made, scenario.relax)
    if made is not problem:
        data = {"adapters": [{"name": adapter.name} for adapter in made.adapters]}
        check_problem(made, ProblemSource(data, problem.inputs[0].name if problem.inputs else "the problem"))
    return made


def fewer_of_each(problem: ProblemFromFile, lost: Mapping[str, int], before: Mapping[str, int]) -> ProblemFromFile:
    """Return the problem with at most the GPUs that are left of those before, by the names of their types.

    Raises
    ------
    InputError
        When there are not so many to lose, or none is left.
    """
    left = []
    for gpu_type, profile in zip(problem.gpu_types, problem.profiles, strict=True):
        count, gone = before.get(gpu_type.name, 0), lost.get(gpu_type.name, 0)
        if gone > count:
            raise _refused("lose_gpus", gone, f"must be at most the {count} GPUs of type {gpu_type.name!r}")
        if count - gone > 0:
            left.append((gpu_type.model_copy(update={"max_count": count - gone}), profile))
    if not left:
        raise _refused("lose_gpus", dict(lost), "must leave a GPU")
    gpu_types, profiles = zip(*left, strict=True)
    return replace(problem, gpu_types=gpu_types, profiles=profiles)


def lost_gpus(problem: ProblemFromFile, scenario: Scenario) -> dict[str, int]:
    """Return how many GPUs of each type a scenario loses, by name; nothing where it loses none.

    Raises
    ------
    InputError
        When a type is not in the problem, or must be named.
    """
    if not scenario.lose_gpus:
        return {}
    return {name: int(count) for name, count in _by_type(problem, "lose_gpus", scenario.lose_gpus).items() if count}


def _with_adapters(problem: ProblemFromFile, scenario: Scenario, seed: int) -> ProblemFromFile:
    """Drop and add adapters."""
    if scenario.drop_adapters:
        names = [adapter.name for adapter in problem.adapters]
        for pattern in scenario.drop_adapters:
            if not matching_adapters([pattern], names):
                raise _refused("drop_adapters", pattern, "must name adapters of the problem")
        gone = set(matching_adapters(scenario.drop_adapters, names))
        kept = [index for index in range(len(names)) if index not in gone]
        if not kept:
            raise _refused("drop_adapters", list(scenario.drop_adapters), "must leave an adapter")
        problem = replace(problem, workload=problem.workload.subset(kept))
    if scenario.add_adapters:
        if problem.workload.trace is not None:
            raise _refused("add_adapters", scenario.add_adapters, "must be for drawn requests, not a replayed trace")
        added = _copies(problem.adapters, scenario.add_adapters, seed)
        problem = replace(problem, workload=replace(problem.workload, adapters=(*problem.adapters, *added)))
    return problem


def _copies(adapters: Sequence[Adapter], count: int, seed: int) -> list[Adapter]:
    """Return copies of drawn adapters under names of their own."""
    # One number at a time, so that fewer are a prefix of more.
    drawn = np.random.default_rng(seed).integers(len(adapters), size=count)
    taken = {adapter.name for adapter in adapters}
    copies = []
    for index in drawn:
        original = adapters[int(index)]
        number = 1
        while f"{original.name}+{number}" in taken:
            number += 1
        taken.add(f"{original.name}+{number}")
        copies.append(original.model_copy(update={"name": f"{original.name}+{number}"}))
    return copies


def _with_rates(problem: ProblemFromFile, scenario: Scenario) -> ProblemFromFile:
    if scenario.scale_rates is None or scenario.scale_rates == 1.0:
        return problem
    factor = scenario.scale_rates
    problem = replace(problem, workload=problem.workload.scaled(factor))
    if problem.scenarios is None:
        return problem
    # Rates that a case gives itself do not follow from those of the adapters.
    cases = tuple(
        case.model_copy(update={"rates_rps": {name: rate * factor for name, rate in case.rates_rps.items()}})
        for case in problem.scenarios.cases
    )
    return replace(problem, scenarios=problem.scenarios.model_copy(update={"cases": cases}))


def _with_lengths(problem: ProblemFromFile, scenario: Scenario) -> ProblemFromFile:
    """Change lengths and burstiness."""
    prompt = (scenario.lengths or 1.0) * (scenario.prompt_lengths or 1.0)
    output = (scenario.lengths or 1.0) * (scenario.output_lengths or 1.0)
    if prompt == output == 1.0 and scenario.burstiness is None:
        return problem
    if problem.workload.trace is not None:
        field = "burstiness" if prompt == output == 1.0 else "lengths"
        raise _refused(field, getattr(scenario, field), "must be for drawn requests, not a replayed trace")

    def changed_adapter(adapter: Adapter) -> Adapter:
        update: dict[str, object] = {
            "prompt_tokens": adapter.prompt_tokens.scaled(prompt),
            "output_tokens": adapter.output_tokens.scaled(output),
        }
        if scenario.burstiness is not None:
            update["gap_cv"] = scenario.burstiness
        return adapter.model_copy(update=update)

    adapters = tuple(changed_adapter(adapter) for adapter in problem.adapters)
    return replace(problem, workload=replace(problem.workload, adapters=adapters))


def _with_gpus(problem: ProblemFromFile, scenario: Scenario, folder: Path) -> ProblemFromFile:
    """Change model, GPU types, profiles and prices, and take off GPUs that are lost."""
    if scenario.gpu_type is not None:
        problem = _only_type(problem, scenario.gpu_type, folder)
    if scenario.model is not None or scenario.profile is not None:
        model = problem.model if scenario.model is None else load_model(scenario.model, base_directory=folder)
        # A profile is of one model: those of the problem do not hold for another.
        gpu_types = tuple(entry.model_copy(update={"profile": scenario.profile}) for entry in problem.gpu_types)
        profiles = tuple(profile_of(model, gpu_type, base_directory=folder) for gpu_type in gpu_types)
        problem = replace(problem, model=model, gpu_types=gpu_types, profiles=profiles)
    if scenario.price is not None:
        prices = _by_type(problem, "price", scenario.price)
        gpu_types = tuple(
            entry.model_copy(update={"cost_per_hour": prices.get(entry.name, entry.cost_per_hour)})
            for entry in problem.gpu_types
        )
        problem = replace(problem, gpu_types=gpu_types)
    lost = lost_gpus(problem, scenario)
    counts = {entry.name: entry.max_count for entry in problem.gpu_types}
    if lost and all(count is not None for count in counts.values()):
        return fewer_of_each(problem, lost, {name: count or 0 for name, count in counts.items()})
    return problem


def _only_type(problem: ProblemFromFile, wanted: str | GpuType, folder: Path) -> ProblemFromFile:
    if isinstance(wanted, GpuType):
        return replace(
            problem, gpu_types=(wanted,), profiles=(profile_of(problem.model, wanted, base_directory=folder),)
        )
    names = [gpu_type.name for gpu_type in problem.gpu_types]
    if wanted not in names:
        raise _refused("gpu_type", wanted, f"must be one of {', '.join(names)}, or a GPU type in full")
    position = names.index(wanted)
    return replace(problem, gpu_types=(problem.gpu_types[position],), profiles=(problem.profiles[position],))


def _by_type(problem: ProblemFromFile, field: str, value: float | Mapping[str, float]) -> dict[str, float]:
    """Return values by the names of GPU types: of each, or one number of the only type."""
    names = [gpu_type.name for gpu_type in problem.gpu_types]
    if not isinstance(value, Mapping):
        if len(names) > 1:
            raise _refused(field, value, f"must name the type where there are several: {', '.join(names)}")
        return {names[0]: value}
    for name in value:
        if name not in names:
            raise _refused(field, name, f"must name types of the problem: {', '.join(names)}")
    return dict(value)


def _limits(limits: Limits, scenario: Scenario) -> Limits:
    given = {name: getattr(scenario, name) for name in ("itl_p95_ms", "ttft_p95_ms", "starvation_tolerance")}
    return limits.model_copy(update={name: value for name, value in given.items() if value is not None})


def _uncertainty(scenario: Scenario) -> RateUncertainty:
    given = {name: getattr(scenario, name) for name in ("rate_cv", "common_cv", "probability")}
    return RateUncertainty(**{name: value for name, value in given.items() if value is not None})


def _refused(field: str, value: object, rule: str) -> InputError:
    return InputError(f"`{field}` of a scenario {rule}. Got {value!r}.", field=field, value=value)


def with_workload(problem: ProblemFromFile, workload: Workload) -> ProblemFromFile:
    """Return the problem of other traffic that is known for certain."""
    return replace(problem, workload=workload, uncertainty=None, scenarios=None)
