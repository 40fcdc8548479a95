"""The report of a plan's file: the problem is found, GPUs are simulated once more, one GPU less is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from placer.events import PlanObserver
from placer.files import ProblemFromFile, load_plan
from placer.plan_document import Plan
from placer.recheck import load_problem_of
from placer.report.page import Page
from placer.report.plan_page import plan_page
from placer.report.series import GpuSeries, simulate_series
from placer.why_not import explain_why_not, question_of
from placer.why_not_document import WhyNot


@dataclass(frozen=True)
class PlanReport:
    """What a report says about a plan; `series` is ``None`` where it was not simulated."""

    plan: Plan
    problem: ProblemFromFile
    series: dict[str, GpuSeries] | None
    page: Page


def report_plan(
    path: Path,
    *,
    problem_path: Path | None,
    simulates: bool,
    one_fewer_s: float | None,
    workers: int | None,
    observer: PlanObserver,
) -> PlanReport:
    """Return the report of a plan.json.

    Parameters
    ----------
    path, problem_path
        The plan, and its problem; ``None``: it is looked for as `placer verify` does.
    simulates
        Whether the twin simulates each GPU once more, for its time series.
    one_fewer_s
        Seconds to ask why not one GPU less; ``None``: not asked.
    workers, observer
        Of the simulations.

    Raises
    ------
    InputError
        When a file is not valid, or the problem is not found or not that of the plan.
    """
    plan = load_plan(path)
    problem, warnings = load_problem_of(plan, plan_path=path, problem_path=problem_path)
    series = simulate_series(plan, problem, workers=workers, observer=observer) if simulates and plan.gpus else None
    answer: WhyNot | None = None
    if one_fewer_s is not None and plan.num_gpus > 1:
        question = question_of(path, surrogate=None, problem_path=problem_path)
        answer = explain_why_not(question, plan.num_gpus - 1, budget_s=one_fewer_s, seed=plan.seed, observer=observer)
    page = plan_page(plan, problem, name=path.name, series=series, one_fewer=answer, warnings=warnings)
    return PlanReport(plan, problem, series, page)
