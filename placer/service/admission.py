"""Whether a request may become a job: its sizes, and that it makes the server read no file of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from placer.service.documents import (
    AnyRequest,
    PlanningOptions,
    ReplanRequest,
    SolveRequest,
    VerifyRequest,
    WhatIfRequest,
)
from placer.service.settings import JobLimits
from placer.whatif.scenario import Grid, Scenario
from solvers.problem_file import ProblemFile
from solvers.registry import solver_names
from twin.errors import InputError
from twin.hardware import SHIPPED_MODELS
from twin.profile import shipped_profiles

# With one of these before it, a popularity is no file.
_FILE_PREFIX = "file:"
# Rates, lengths, prices, GiB and seconds are far smaller; products of a few of them are finite.
_LARGEST = 1e12
_LARGEST_WHOLE = 2**53


def check_numbers(data: object) -> None:
    """Raise InputError for a number that no quantity of a problem has: what follows would overflow.

    Parameters
    ----------
    data
        Plain values of a request. Whole numbers may be as large as seeds may be.
    """
    waiting: list[tuple[str, object]] = [("", data)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{field}.{key}", entry) for key, entry in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{field}.{position}", entry) for position, entry in enumerate(value)]
        elif isinstance(value, float):
            _at_most(field.removeprefix("."), abs(value), _LARGEST, "in size")
        elif isinstance(value, int):
            _at_most(field.removeprefix("."), abs(value), _LARGEST_WHOLE, "in size")


def check_request(request: AnyRequest, limits: JobLimits) -> None:
    """Raise InputError unless a request keeps all limits and names only what is shipped or came with it.

    What a problem file may name on the command line, a path of a trace, popularity, model or profile, is either the
    name of something that this package brings, or a key of the request's `files`. A solver is one of the registry, not
    ``module:object``, which would run code that is found by a path.
    """
    for field, name in _references(request):
        if name not in request.files:
            raise _refused_file(field, name, request.files)
    _check_sizes(request, limits)
    if not isinstance(request, VerifyRequest):
        _check_options(request.options, limits)
    elif request.options.horizon_s is not None:
        _at_most("options.horizon_s", request.options.horizon_s, limits.horizon_s, "simulated seconds")
    if isinstance(request, WhatIfRequest):
        _check_scenarios(request, limits)
    if isinstance(request, ReplanRequest | VerifyRequest):
        _check_plan("plan", request.plan.configuration.horizon_s, len(request.plan.gpus), limits)
    if isinstance(request, SolveRequest) and request.options.current is not None:
        _check_plan("options.current", 0.0, len(request.options.current.gpus), limits)


def _references(request: AnyRequest) -> Iterator[tuple[str, str]]:
    """Yield field and name of each file that a request names."""
    yield from _model_references("problem", request.problem.model)
    for position, gpu_type in enumerate(request.problem.gpu_types):
        yield from _profile_references(f"problem.gpu_types.{position}.profile", gpu_type.profile)
    trace = request.problem.trace
    if trace is not None:
        yield "problem.trace.file", trace.file
        if trace.adapters.popularity.startswith(_FILE_PREFIX):
            yield "problem.trace.adapters.popularity", trace.adapters.popularity.removeprefix(_FILE_PREFIX)
    if isinstance(request, WhatIfRequest):
        grid = request.scenarios.grid
        for scenario in request.scenarios.cases:
            yield from _scenario_references(scenario)
        for name in grid.model or ():
            yield from _model_references("scenarios.grid", name)
        for name in grid.profile or ():
            yield from _profile_references("scenarios.grid.profile", name)
        for choice in grid.gpu_type or ():
            yield from _profile_references(
                "scenarios.grid.gpu_type", None if isinstance(choice, str) else choice.profile
            )


def _scenario_references(scenario: Scenario) -> Iterator[tuple[str, str]]:
    if scenario.model is not None:
        yield from _model_references("scenarios.cases", scenario.model)
    yield from _profile_references("scenarios.cases.profile", scenario.profile)
    if scenario.gpu_type is not None and not isinstance(scenario.gpu_type, str):
        yield from _profile_references("scenarios.cases.gpu_type", scenario.gpu_type.profile)


def _model_references(where: str, name: str) -> Iterator[tuple[str, str]]:
    if name not in SHIPPED_MODELS:
        yield f"{where}.model", name


def _profile_references(field: str, name: str | None) -> Iterator[tuple[str, str]]:
    if name is not None and name not in shipped_profiles():
        yield field, name


def _refused_file(field: str, name: str, files: Mapping[str, str]) -> InputError:
    shipped: tuple[str, ...] = ()
    if field.endswith(".model"):
        shipped = tuple(SHIPPED_MODELS)
    elif field.endswith((".profile", ".gpu_type")):
        shipped = shipped_profiles()
    known = [*shipped, *files]
    return InputError(
        f"`{field}` must name something that is shipped or that comes with the request in `files`; the service reads "
        f"no other file. Got {name[:80]!r}" + (f", known are {', '.join(known)}." if known else "."),
        field=field,
        value=name[:200],
        hint="put the file's content into `files` under a plain name such as trace.csv, and give that name",
    )


def _check_sizes(request: AnyRequest, limits: JobLimits) -> None:
    """Raise InputError where problem or files are larger than is served."""
    problem: ProblemFile = request.problem
    _at_most("problem.adapters", len(problem.adapters or ()), limits.adapters, "adapters")
    if problem.scenarios is not None:
        _at_most("problem.scenarios.cases", len(problem.scenarios.cases), limits.scenarios, "sets of rates")
    size = sum(len(content) for content in request.files.values())
    _at_most("files", size, limits.trace_bytes, "bytes together")
    if problem.trace is not None:
        text = request.files[problem.trace.file]
        _at_most(
            "problem.trace",
            (text.count("\n") + text.count("\r") + 1) * problem.trace.copies,
            limits.trace_requests,
            "requests (lines of the file times `copies`)",
        )
        _at_most("problem.trace.adapters.count", problem.trace.adapters.count or 0, limits.adapters, "adapters")


def _check_options(options: PlanningOptions, limits: JobLimits) -> None:
    """Raise InputError where options are out of the limits, or name a solver that is not registered."""
    _at_most("options.budget_s", options.budget_s or 0.0, limits.budget_s, "seconds")
    _at_most("options.horizon_s", options.horizon_s, limits.horizon_s, "simulated seconds")
    if options.solver not in solver_names():
        raise InputError(
            f"`options.solver` must be one of {', '.join(solver_names())}. Got {options.solver!r}.",
            field="options.solver",
            value=options.solver,
            hint="solvers of your own are registered by the distribution that brings them, on the server",
        )


def _check_scenarios(request: WhatIfRequest, limits: JobLimits) -> None:
    """Raise InputError for too many scenarios, before any of them is made."""
    grid: Grid = request.scenarios.grid
    axes = [len(values) for name in type(grid).model_fields if (values := getattr(grid, name)) is not None]
    given = (math.prod(axes) if axes else 0) + len(request.scenarios.cases)
    study, options = request.options.study, request.options
    if study == "risk":
        given = max(1, given) * (1 + len(options.probabilities))
    elif study == "break-even":
        given = max(1, given) * len(request.problem.gpu_types)
    elif study == "sensitivity":
        given += options.candidates
    _at_most("scenarios", given, limits.scenarios, "scenarios")
    added = [*(grid.add_adapters or ()), *(case.add_adapters or 0 for case in request.scenarios.cases)]
    _at_most("scenarios.add_adapters", max(added, default=0), limits.adapters, "adapters")


def _check_plan(field: str, horizon_s: float, num_gpus: int, limits: JobLimits) -> None:
    _at_most(f"{field}.configuration.horizon_s", horizon_s, limits.horizon_s, "simulated seconds")
    _at_most(f"{field}.gpus", num_gpus, limits.adapters, "GPUs")


def _at_most(field: str, value: float, most: float, unit: str) -> None:
    # Not a number is not at most anything.
    if not value <= most:
        # Whole numbers of JSON may be longer than what a float holds.
        is_shown = value < 1e300
        raise InputError(
            f"`{field}` must be at most {most:,g} {unit} on this server. Got {f'{value:,g}' if is_shown else 'more'}.",
            field=field,
            value=value if is_shown else None,
            hint="ask for less, or have the server's limit raised (docs/service.md)",
        )
