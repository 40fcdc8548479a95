"""Why so many GPUs cannot serve a problem: from a problem file or a plan to an answer with its proof."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placer.events import IncumbentFound, PhaseStarted, PlanObserver, announce_compilation, ignore
from placer.files import load_plan, load_problem
from placer.provenance import describe_surrogate, plan_inputs
from placer.recheck import load_problem_of
from placer.replicas import Replicas
from placer.shortfall import gpu_record, shortfall
from placer.surrogates import SurrogateChoice, careful, uses_simulation
from placer.unmeasured import unmeasured_warnings
from placer.why_not_document import (
    AttemptRecord,
    KnownBound,
    ProofRecord,
    Shortfall,
    StepNeed,
    Unplaceable,
    WhyNot,
    WorkPart,
    WorkRecord,
)
from predictors.surrogate import STARVED_PROBABILITY, Surrogate
from solvers.alone import UnplaceableError, largest_share
from solvers.bounds import least_work
from solvers.budget import AUTOMATIC_SECONDS, Budget, RunningBudget
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from solvers.result import Incumbent
from solvers.sufficiency import Answer, Findings, is_enough
from twin.bounded_read import parse_json, read_bounded
from twin.errors import InputError
from twin.parallel import available_cores

# Adapters that are named.
LISTED_ADAPTERS = 5
# Of the budget, for proofs and searches; the rest is for how far so many GPUs get.
SEARCH_SHARE = 0.85


@dataclass(frozen=True)
class Question:
    """What is asked about.

    Attributes
    ----------
    problem, surrogate
        The surrogate as it is chosen: ``auto``, ``exact``, or an ONNX file.
    margin, threshold
        With which it is asked: those of a plan.
    planned_with
        Name of the surrogate of the plan; ``None``: there is no plan, or another one is asked for.
    warnings
        About the files.
    """

    problem: Problem
    surrogate: str
    margin: float = 0.0
    threshold: float = STARVED_PROBABILITY
    planned_with: str | None = None
    warnings: tuple[str, ...] = ()


def question_of(
    path: Path, *, surrogate: str | None, profile: str | None = None, problem_path: Path | None = None
) -> Question:
    """Return the question about a problem file, or about a plan.json: then with its surrogate, margin and threshold.

    Parameters
    ----------
    path
        A file with ``configuration`` and ``verdict`` is a plan, whose problem is looked for as `placer verify` does.
    surrogate
        ``None``: the plan's, or ``auto``.
    profile
        Instead of the problem file's; not for a plan.
    problem_path
        Of a plan, instead of the file that it names.

    Raises
    ------
    InputError
        When a file is unreadable or not valid, or a profile is given for a plan.
    """
    if not _is_plan(path):
        asked, notes = _of_one_value(load_problem(path, profile=profile), None)
        return Question(asked, surrogate or "auto", warnings=notes)
    if profile is not None:
        raise InputError(
            "a plan must be explained with its own profiles. Got another one.",
            field="profile",
            value=profile,
            hint="give the problem file instead of the plan",
        )
    plan = load_plan(path)
    problem, warnings = load_problem_of(plan, plan_path=path, problem_path=problem_path)
    configuration = plan.configuration
    asked, notes = _of_one_value(problem, configuration.engine.max_num_seqs)
    return Question(
        asked,
        surrogate or _planned_choice(configuration.surrogate.name, path.parent),
        margin=configuration.margin,
        threshold=configuration.threshold,
        planned_with=None if surrogate else configuration.surrogate.name,
        warnings=(*warnings, *notes),
    )


def _of_one_value(problem: Problem, planned: int | None) -> tuple[Problem, tuple[str, ...]]:
    """Return the problem with one `max_num_seqs`, and a warning that others were not looked at if there are any."""
    options = problem.max_num_seqs_options
    if not options:
        return problem, ()
    value = planned if planned in options else problem.engine.max_num_seqs
    others = ", ".join(str(other) for other in options if other != value)
    return problem.with_given_max_num_seqs(value), (
        f"`max_num_seqs` is {value} here; what is said need not hold for the others that may be chosen: {others}.",
    )


def explain_why_not(
    question: Question,
    num_gpus: int,
    *,
    budget_s: float | None = AUTOMATIC_SECONDS,
    max_evaluations: int | None = None,
    seed: int = 0,
    surrogate: Surrogate | None = None,
    observer: PlanObserver = ignore,
) -> WhyNot:
    """Say whether `num_gpus` GPUs are enough; if not, by which proof, and if that is open, how far they get.

    Parameters
    ----------
    question
        See `question_of`.
    num_gpus
        At least 1.
    budget_s, max_evaluations
        Limits of proofs and searches: seconds, and rows asked of the surrogate; ``None``: none.
    seed
        Of the searches, and of the traffic that the surrogate ``exact`` simulates.
    surrogate
        Instead of the question's choice, without margin and threshold.
    observer
        Told what is done; see `placer.events`. Ctrl-C ends with what is known by then.

    Raises
    ------
    InputError, SurrogateError
        When the arguments do not hold, or the surrogate is refused.
    """
    if num_gpus < 1:
        raise InputError(f"`--why-not` must be at least 1 GPU. Got {num_gpus}.", field="why_not", value=num_gpus)
    observer(PhaseStarted("load", "surrogate"))
    surrogates = SurrogateChoice(surrogate or question.surrogate, seed=seed, workers=available_cores())
    if uses_simulation(surrogates.of(question.problem)):
        announce_compilation(observer)
    question = _divided(question, surrogates)
    problem = question.problem
    own = surrogates.of(problem)
    asked = careful(own, problem, threshold=question.threshold, margin=question.margin)
    running = Budget(budget_s, max_evaluations).start()

    def show(incumbent: Incumbent) -> None:
        evaluation = incumbent.evaluation
        observer(IncumbentFound(evaluation.num_gpus, evaluation.cost_per_hour, incumbent.num_evaluations))

    findings = is_enough(
        problem,
        asked,
        num_gpus,
        budget=running.remaining(0).share(SEARCH_SHARE).start(),
        seed=seed,
        announce=lambda step: observer(PhaseStarted("explain", step)),
        observer=show,
    )
    left: Shortfall | None = None
    unplaceable: tuple[Unplaceable, ...] = ()
    try:
        if not findings.is_interrupted:
            unplaceable = _unplaceable(problem, asked, findings)
            left = _shortfall(problem, asked, findings, running, observer)
    except KeyboardInterrupt:
        findings.is_interrupted = True
    return _answer(
        question,
        own,
        findings,
        unplaceable=unplaceable,
        left=left,
        budget=Budget(budget_s, max_evaluations),
        seed=seed,
    )


def why_not_to_json(answer: WhyNot) -> str:
    """Return an answer as JSON: sorted keys, ending in a newline."""
    return json.dumps(answer.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def work_record(problem: Problem) -> WorkRecord:
    """Return the work bound of a problem, taken apart."""
    problem = problem.told
    terms = least_work(problem)
    total = float(terms.total.sum())

    def part(name: str, gpus: float) -> WorkPart:
        return WorkPart(name=name, gpus=round(gpus, 6), share=round(gpus / total, 6) if total else 0.0)

    parts = {
        "scheduled tokens": terms.tokens,
        "requests in steps": terms.requests,
        "KV tokens read": terms.context,
        "fixed costs of steps": terms.binding.work,
    }
    by_adapter = sorted(enumerate(terms.total.tolist()), key=lambda pair: -pair[1])[:LISTED_ADAPTERS]
    ranks = [int(rank) for rank in np.unique(problem.ranks)]
    return WorkRecord(
        gpus=round(total, 6),
        binding=terms.binding.limit,
        parts=_descending(part(name, float(work.sum())) for name, work in parts.items()),
        steps=tuple(
            StepNeed(
                limit=step.limit,
                needed_per_s=round(step.needed_ps, 3),
                per_step=step.per_step,
                steps_per_s=round(step.needed_ps / step.per_step, 3),
                gpus=round(float(step.work.sum()), 6),
            )
            for step in terms.steps
        ),
        adapters=tuple(part(problem.adapters[index].name, work) for index, work in by_adapter),
        ranks=_descending(part(f"rank {rank}", _of_rank(problem, terms.total, rank)) for rank in ranks),
    )


def _of_rank(problem: Problem, work: NDArray[np.float64], rank: int) -> float:
    return float(work[problem.ranks == rank].sum())


def _descending(parts: Iterable[WorkPart]) -> tuple[WorkPart, ...]:
    return tuple(sorted(parts, key=lambda part: -part.gpus))


def _is_plan(path: Path) -> bool:
    """Return whether a file is meant to be a plan: JSON with a verdict and the configuration that led to it."""
    if path.suffix != ".json":
        return False
    try:
        data: Any = parse_json(read_bounded(path))
    except (OSError, ValueError):
        # Whoever reads the file next says what is wrong with it.
        return False
    return isinstance(data, dict) and "configuration" in data and "verdict" in data


def _planned_choice(name: str, folder: Path) -> str:
    """Return the choice that a plan names: the twin, a file from here or beside the plan, or what is shipped."""
    if name == "exact":
        return name
    files = [file for file in (Path(name), folder / name) if file.is_file()]
    return str(files[0]) if files else "auto"


def _divided(question: Question, surrogates: SurrogateChoice) -> Question:
    """Return the question with the numbers of replicas that a plan would try first; a plan's problem is divided."""
    problem = question.problem
    if problem.shares is not None and problem.told.replication.automatic:
        of_plan = (
            "The numbers of replicas are those of the plan. Only the work bound is about all numbers; other proofs"
        )
        return replace(question, warnings=(*question.warnings, f"{of_plan} are about these."))
    if problem.shares is not None or not problem.replication.is_asked:
        return question
    replicas = Replicas(
        problem,
        surrogate_of=lambda some: careful(
            surrogates.of(some), some, threshold=question.threshold, margin=question.margin
        ),
        verifier_of=None,
    )
    # Adapters that no number helps are found again, alone on a GPU.
    with suppress(UnplaceableError):
        replicas.find()
    warnings = question.warnings
    if problem.replication.automatic:
        found = [f"{adapter.name} {count}" for adapter, count in replicas.found()]
        looked_for = (
            f"Numbers of replicas were looked for ({', '.join(found) or 'none needed'}). Only the work bound is about "
            "all numbers; other proofs are about these."
        )
        warnings = (*warnings, looked_for)
    return replace(question, problem=replicas.divided(), warnings=warnings)


def _unplaceable(problem: Problem, surrogate: Surrogate, findings: Findings) -> tuple[Unplaceable, ...]:
    """Describe the adapters that no GPU holds alone."""
    is_memory = findings.proof is not None and findings.proof.kind == "memory"
    model = FeasibilityModel(problem, surrogate)
    return tuple(
        Unplaceable(
            name=problem.adapters[index].name,
            rank=problem.adapters[index].rank,
            share=None if is_memory else largest_share(model, index),
        )
        for index in findings.unplaceable[:LISTED_ADAPTERS]
    )


def _shortfall(
    problem: Problem, surrogate: Surrogate, findings: Findings, running: RunningBudget, observer: PlanObserver
) -> Shortfall | None:
    if findings.answer is not Answer.OPEN or findings.unplaceable:
        return None
    observer(PhaseStarted("explain", "how far the GPUs get"))
    left = running.remaining(findings.num_evaluations).start()
    return shortfall(problem, surrogate, findings.num_gpus, placement=findings.placement, budget=left)


def _allowed(problem: Problem) -> int | None:
    counts = [gpu_type.max_count for gpu_type in problem.gpu_types]
    return None if any(count is None for count in counts) else sum(count or 0 for count in counts)


def _answer(
    question: Question,
    surrogate: Surrogate,
    findings: Findings,
    *,
    unplaceable: Sequence[Unplaceable],
    left: Shortfall | None,
    budget: Budget,
    seed: int,
) -> WhyNot:
    """Put together what was found."""
    problem = question.problem
    described = describe_surrogate(surrogate)
    profiles = tuple(dict.fromkeys(profile.name for profile in problem.profiles))
    proof, bound, placement = findings.proof, findings.bound, findings.placement
    return WhyNot(
        num_gpus=findings.num_gpus,
        answer=findings.answer.value,
        proof=None
        if proof is None
        else ProofRecord(
            kind=proof.kind,
            model=proof.model,
            model_name=", ".join(profiles) if proof.model == "twin" else described.name,
            lower_bound=proof.lower_bound,
            relies_on_monotonicity=proof.relies_on_monotonicity,
        ),
        lower_bound=None if bound is None else KnownBound(value=bound.value, proof=bound.proof, model=bound.model),
        best_known_gpus=None if placement is None else placement.num_gpus,
        allowed_gpus=_allowed(problem),
        work=work_record(problem),
        unplaceable=tuple(unplaceable),
        attempts=tuple(
            AttemptRecord(step=attempt.step, outcome=attempt.outcome, extra=attempt.extra)
            for attempt in findings.attempts
        ),
        shortfall=left,
        placement=()
        if placement is None or findings.answer is not Answer.POSSIBLE
        else tuple(gpu_record(problem, gpu) for gpu in placement.gpus),
        surrogate=described,
        profiles=profiles,
        margin=question.margin,
        threshold=question.threshold,
        budget_s=None if budget.seconds is None or math.isinf(budget.seconds) else budget.seconds,
        max_evaluations=budget.max_evaluations,
        num_evaluations=findings.num_evaluations,
        seed=seed,
        is_interrupted=findings.is_interrupted,
        warnings=_warnings(question, described.name),
        inputs=plan_inputs(problem, surrogate),
    )


def _warnings(question: Question, asked: str) -> tuple[str, ...]:
    """Return what a reader of the answer must know."""
    warnings = [*question.warnings, *unmeasured_warnings(question.problem.profiles)]
    if question.planned_with is not None and question.planned_with != asked:
        warnings.append(
            f"The plan was made with the surrogate {question.planned_with}, which is not here: {asked} was asked. "
            "Name the plan's with --surrogate."
        )
    return tuple(warnings)
