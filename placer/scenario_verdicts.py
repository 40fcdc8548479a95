"""One verdict about a GPU from those under each scenario of a problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from placer.plan_document import Verification
from solvers.problem import Problem
from twin.workload import Workload


def traffics_of(problem: Problem, adapters: Sequence[int]) -> list[Workload]:
    """Return what a GPU with `adapters` must withstand: its traffic, or that under each scenario."""
    if problem.scenarios is None:
        return [problem.traffic_of(adapters)]
    return [problem.traffic_of(adapters, scenario=index) for index in range(len(problem.scenarios.cases))]


def shown_traffic(problem: Problem, adapters: Sequence[int], verdict: Verification) -> Workload:
    """Return the traffic of a GPU with `adapters` that its verdict is about."""
    names = [] if problem.scenarios is None else [case.name for case in problem.scenarios.cases]
    scenario = names.index(verdict.scenario) if verdict.scenario in names else None
    return problem.traffic_of(adapters, scenario=scenario)


def shown_scenario(problem: Problem, verdicts: Sequence[Verification]) -> int:
    """Return the position of the verdict that stands for all: the worst of those that say the same as all together.

    Parameters
    ----------
    problem
        Whose scenarios, if it has any, the verdicts are about.
    verdicts
        Under each scenario in turn, or the only one.
    """
    is_accepted = _is_accepted(problem, verdicts)
    alike = [index for index, verdict in enumerate(verdicts) if verdict.is_accepted == is_accepted]
    return min(alike, key=lambda index: (-len(verdicts[index].near_limits), verdicts[index].throughput_ratio, index))


def joint_verdict(problem: Problem, verdicts: Sequence[Verification]) -> Verification:
    """Return what the verdicts under all scenarios amount to: accepted where those that accept weigh enough."""
    shown = shown_scenario(problem, verdicts)
    if problem.scenarios is None:
        return verdicts[shown]
    names = [case.name for case in problem.scenarios.cases]
    rejected = tuple(name for name, verdict in zip(names, verdicts, strict=True) if not verdict.is_accepted)
    reasons = tuple(f"scenario {names[shown]!r}: {reason}" for reason in verdicts[shown].reasons)
    return verdicts[shown].model_copy(
        update={"scenario": names[shown], "rejected_scenarios": rejected, "reasons": reasons}
    )


def _is_accepted(problem: Problem, verdicts: Sequence[Verification]) -> bool:
    if problem.scenarios is None:
        return verdicts[0].is_accepted
    accepted = np.array([[verdict.is_accepted] for verdict in verdicts], dtype=np.bool_)
    kept = problem.scenarios.kept(accepted, np.zeros(accepted.shape))
    return bool((accepted | ~kept).all())
