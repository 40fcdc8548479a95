"""`max_num_seqs` as a decision: with which value a fleet is planned, and which single GPUs are quicker with another.

How many requests run at a time is one value for most GPUs of a fleet: it depends on the lengths of the requests, the
limits and the GPU more than on which adapters are where. So best fit places all adapters under each value, the
surrogate says what that needs, and plans are made in that order until no value promises more than the twin has
confirmed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from placer.plan_document import Plan
from placer.searches import ANSWER_TOKENS, other_sequences
from placer.verify import TwinVerifier
from predictors.surrogate import Surrogate
from solvers.alone import UnplaceableError
from solvers.budget import Budget
from solvers.merging import merged_problem
from solvers.objective import Evaluation, objective_value
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.registry import get_solver
from solvers.result import SolveStatistics, Termination

# Who places all adapters under each value.
PROBE = "bfd"
# Plans that are made at most, each with another value.
MOST_PLANS = 3
NO_PLACEMENT = (math.inf, math.inf)


@dataclass(frozen=True)
class Candidate:
    """A problem with one value of `max_num_seqs`, and what may come of it.

    Attributes
    ----------
    problem, surrogate
        What is planned, neither divided further nor merged, and who is asked.
    expected
        The objective of best fit's placement; see `solvers.objective.objective_value`. Infinite where there is none.
    answer_s
        About how long an answer takes on the GPU where it takes longest.
    statistics
        What best fit asked; ``None``: it was not run.
    """

    problem: Problem
    surrogate: Surrogate
    expected: tuple[float, float] = NO_PLACEMENT
    answer_s: float = math.inf
    statistics: SolveStatistics | None = None

    def may_beat(self, plan: Plan) -> bool:
        """Return whether best fit's placement is better than a plan, or the twin rejects the plan."""
        if plan.verdict in {"rejected", "none"}:
            return self.expected != NO_PLACEMENT
        return self.expected < _value(plan)


def candidates_of(
    problem: Problem,
    surrogate_of: Callable[[Problem], Surrogate],
    careful: Callable[[Surrogate, Problem], Surrogate],
    *,
    budget: Budget,
) -> list[Candidate]:
    """Return a problem with each value of `max_num_seqs` that may be chosen, the most promising first.

    Parameters
    ----------
    problem
        Not merged.
    surrogate_of, careful
        Return who is asked about a problem, and the same with margin and threshold.
    budget
        Of a solver; each value gets an equal share of it.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C: there is no plan yet.
    """
    options = problem.max_num_seqs_options
    if not options:
        return [Candidate(problem, surrogate_of(problem))]
    own = problem.engine.max_num_seqs
    found = [
        _candidate(problem.with_max_num_seqs(value), surrogate_of, careful, budget, len(options)) for value in options
    ]

    def promise(candidate: Candidate) -> tuple[float, ...]:
        value = candidate.problem.engine.max_num_seqs
        return *candidate.expected, candidate.answer_s, abs(math.log(value / own)), value

    return sorted(found, key=promise)


def common_max_num_seqs(problem: Problem, running: Iterable[int]) -> int:
    """Return the `max_num_seqs` that most replicas run with, of those that may be chosen; else the problem's."""
    counts = Counter(running)
    known = [value for value in problem.max_num_seqs_options if counts[value]]
    return max(known, key=counts.__getitem__, default=problem.engine.max_num_seqs)


def better_plan(first: Plan | None, second: Plan) -> Plan:
    """Return the plan that the twin accepts, or of two of the same verdict that of the better objective."""
    if first is None:
        return second

    def standing(plan: Plan) -> tuple[float, ...]:
        num_rejected = sum(1 for gpu in plan.gpus if gpu.verification is not None and not gpu.verification.is_accepted)
        return plan.verdict == "none", num_rejected, *_value(plan)

    return min(first, second, key=standing)


def quickest(problem: Problem, verifier: TwinVerifier, gpus: Sequence[GpuAssignment]) -> tuple[GpuAssignment, ...]:
    """Return GPUs each with the `max_num_seqs` of which the twin measures the smallest latency, of those it accepts."""
    choices = [(gpu, *other_sequences(problem, gpu)) for gpu in gpus]
    verifier.verify([gpu for choice in choices for gpu in choice])

    def latency_s(gpu: GpuAssignment) -> tuple[bool, float]:
        verdict = verifier.known(gpu)
        assert verdict is not None
        value_s = verdict.itl_p95_s if problem.latency_metric == "itl_p95_ms" else verdict.ttft_p95_s
        return not verdict.is_accepted, value_s or 0.0

    # The first of equal ones is the GPU as it is.
    return tuple(min(choice, key=latency_s) for choice in choices)


def _candidate(
    problem: Problem,
    surrogate_of: Callable[[Problem], Surrogate],
    careful: Callable[[Surrogate, Problem], Surrogate],
    budget: Budget,
    num_options: int,
) -> Candidate:
    surrogate = surrogate_of(problem)
    candidate = Candidate(problem, surrogate)
    merged = merged_problem(problem)
    try:
        result = get_solver(PROBE).solve(merged, careful(surrogate, merged), budget=budget.share(1.0 / num_options))
    except UnplaceableError:
        return candidate
    if result.termination is Termination.INTERRUPTED:
        raise KeyboardInterrupt
    candidate = replace(candidate, statistics=result.statistics)
    if result.evaluation is None:
        return candidate
    expected = objective_value(merged, result.evaluation)
    return replace(candidate, expected=expected, answer_s=_longest_answer_s(result.evaluation))


def _longest_answer_s(evaluation: Evaluation) -> float:
    return max(gpu.ttft_s + ANSWER_TOKENS * gpu.itl_s for gpu in evaluation.gpus)


def _value(plan: Plan) -> tuple[float, float]:
    """Return the objective of a plan as `objective_value` does; latencies are the simulated ones, where there are."""
    objective = plan.configuration.objective
    if objective == "fewest_gpus":
        return float(plan.num_gpus), plan.cost_per_hour
    if objective == "least_cost":
        return plan.cost_per_hour, float(plan.num_gpus)
    by_itl = plan.configuration.latency_metric == "itl_p95_ms"
    latencies = []
    for gpu in plan.gpus:
        shown = gpu.predicted if gpu.verification is None else gpu.verification
        latencies.append((shown.itl_p95_s if by_itl else shown.ttft_p95_s) or 0.0)
    return max(latencies, default=math.inf), float(plan.num_gpus)
