"""Whether scenarios can be: adapters that exist, traffic that can have such rates, and whom to ask about them."""

from __future__ import annotations

from predictors.aggregate_oracle import AggregateOracle
from predictors.surrogate import Surrogate
from solvers.constraints import matching_adapters
from solvers.problem_errors import Location, ProblemSource
from solvers.rate_scenarios import RateScenario, RateScenarios
from twin.errors import SurrogateError
from twin.workload import Workload


def check_scenarios(scenarios: RateScenarios | None, workload: Workload, source: ProblemSource) -> None:
    """Raise InputError where a scenario names no adapter or one twice, or a trace cannot be replayed at its rates.

    Parameters
    ----------
    scenarios, workload
        Of the problem.
    source
        Where they stand.
    """
    names = [adapter.name for adapter in workload.adapters]
    for position, case in enumerate(scenarios.cases if scenarios is not None else ()):
        location: Location = ("scenarios", "cases", position)
        for field in ("factors", "rates_rps"):
            for pattern in getattr(case, field):
                if not matching_adapters([pattern], names):
                    raise source.error(
                        f"`{field}` of a scenario must name adapters. {pattern!r} names none",
                        location=(*location, field, pattern),
                        value=pattern,
                    )
        _require_one_of_both(case, names, location, source)
        if workload.trace is None:
            continue
        if not case.is_common or case.factor == 0.0:
            raise source.error(
                "a scenario of a replayed trace must be one factor above 0 on all rates. "
                f"{case.name!r} has other rates",
                location=location,
                value=case.name,
                hint="leave out `replay`, so that requests are drawn from rates",
            )


def _require_one_of_both(case: RateScenario, names: list[str], location: Location, source: ProblemSource) -> None:
    """Raise InputError where an adapter has a factor and a rate of its own, of which the factor would not apply."""
    for factor_of in case.factors:
        multiplied = {names[index] for index in matching_adapters([factor_of], names)}
        for rate_of in case.rates_rps:
            for index in matching_adapters([rate_of], names):
                if names[index] in multiplied:
                    raise source.error(
                        "an adapter must be in one of `factors` and `rates_rps` of a scenario. "
                        f"{names[index]!r} of scenario {case.name!r} is in `factors` (as {factor_of!r}) and in "
                        f"`rates_rps` (as {rate_of!r})",
                        location=(*location, "rates_rps", rate_of),
                        value=names[index],
                        hint="a rate replaces all factors: leave the adapter out of `factors`, or multiply the rate",
                    )


def require_scenarios(scenarios: RateScenarios | None, surrogate: Surrogate, *, uses_members: bool) -> None:
    """Raise SurrogateError where a surrogate cannot be asked about scenarios.

    That is one that says yes or no, or, where the scenarios change single adapters, one that looks at the members.
    """
    if scenarios is None:
        return
    if isinstance(surrogate, AggregateOracle):
        raise SurrogateError(
            "scenarios must be for a surrogate that gives predictions. This one says yes or no.",
            field="scenarios",
            hint="give it the largest of the rates instead",
        )
    if uses_members and not all(case.is_common for case in scenarios.cases):
        raise SurrogateError(
            "a surrogate that simulates the adapters of a set must be asked about common factors on their rates. These "
            "scenarios change single adapters.",
            field="scenarios",
            hint="take a learned surrogate; the twin then simulates every GPU of the plan under each scenario",
        )
