"""Look twice at GPUs near a limit: other seeds, and a start with a backlog, must lead to the same verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType

from placer.events import GpuAssessed, PlanObserver, announce_compilation
from placer.judge import judge_report
from placer.plan_document import Stability, Verification
from solvers.problem_file import Limits
from twin.drawn_traffic import DrawnTraffic
from twin.errors import PlacerError
from twin.parallel import each_in_parallel
from twin.replica import Replica
from twin.report import SimulationReport
from twin.stability import NUM_FURTHER_SEEDS, assess_stability
from twin.stability_report import SeedOutcome
from twin.workload import Workload

# By how much more margin metastable GPUs are worth another plan.
MARGIN_STEP = 0.1


@dataclass(frozen=True)
class GpuQuestion:
    """A GPU that the twin accepts with the seed of `verification`, and is asked about again.

    `outcome` is that of the same simulation; ``None``: it is simulated once more. `traffic` draws the requests of that
    seed; ``None``: they are drawn anew.
    """

    workload: Workload
    replica: Replica
    limits: Limits
    verification: Verification
    outcome: SeedOutcome | None = None
    traffic: DrawnTraffic | None = None


def assess_gpu(question: GpuQuestion) -> Stability:
    """Simulate a GPU with `NUM_FURTHER_SEEDS` seeds more, and after a backlog.

    The compiled engine does it, whichever verified the GPU: engines take identical steps.
    """
    first, limits, num_slots = question.verification, question.limits, question.replica.engine.num_slots
    verdicts: list[Verification] = [] if question.outcome is None else [first]

    def judge(report: SimulationReport) -> None:
        verdicts.append(judge_report(report, limits, num_slots=num_slots))

    try:
        report = assess_stability(
            question.workload,
            question.replica,
            horizon_s=first.horizon_s,
            warmup_s=first.warmup_s,
            seeds=range(first.seed, first.seed + 1 + NUM_FURTHER_SEEDS),
            starvation_tolerance=limits.starvation_tolerance,
            known=question.outcome,
            traffic=question.traffic,
            on_report=judge,
        )
    except PlacerError as error:
        # The first seed was simulated: it is the requests of another one that the replica cannot take.
        seed = first.seed + len(verdicts)
        return Stability(is_metastable=True, reasons=(f"seed {seed}: {error.message}",), rejected_seeds=(), report=None)
    rejected = [verdict for verdict in verdicts if not verdict.is_accepted]
    reasons = [str(reason) for reason in report.reasons if reason.evidence != "verdict flips"]
    if rejected:
        detail = f"with seed {rejected[0].seed}, {'; '.join(rejected[0].reasons)}"
        reasons.insert(0, f"rejected with {len(rejected)} of {len(verdicts)} seeds: {detail}")
    return Stability(
        is_metastable=bool(reasons),
        reasons=tuple(reasons),
        rejected_seeds=tuple(verdict.seed for verdict in rejected),
        report=report,
    )


def confirm_verdicts(
    replicas: Sequence[tuple[Workload, Replica]],
    verdicts: Mapping[int, Verification],
    limits: Sequence[Limits],
    *,
    workers: int | None,
    observer: PlanObserver,
    keep: Callable[[int, Verification], None],
    outcomes: Mapping[int, SeedOutcome | None] = MappingProxyType({}),
    traffic: DrawnTraffic | None = None,
) -> None:
    """Assess the stability of replicas that are accepted near a limit, in parallel.

    Parameters
    ----------
    replicas, verdicts
        Verdicts by position among the replicas; those that say something about stability already are left as they are.
    limits
        What each replica must keep.
    workers, observer
        See `placer.verify.TwinSettings`; told about each one that is assessed.
    keep
        Called with position and the verdict that says something about stability, before the observer is.
    outcomes
        Of the simulations that the verdicts are from, by position, as far as they were kept.
    traffic
        Draws the requests under the verdicts' seed, and may have done so.
    """
    asked = [
        index
        for index, verdict in verdicts.items()
        if verdict.is_accepted and verdict.near_limits and verdict.stability is None
    ]
    if asked:
        announce_compilation(observer, (replicas[index][1].engine for index in asked))
    questions = [
        GpuQuestion(*replicas[index], limits[index], verdicts[index], outcomes.get(index), traffic) for index in asked
    ]
    with closing(each_in_parallel(assess_gpu, questions, workers=workers, backend="threading")) as results:
        for done, (position, stability) in enumerate(results, start=1):
            index = asked[position]
            keep(index, verdicts[index].model_copy(update={"stability": stability}))
            observer(GpuAssessed(stability.is_metastable, done, len(asked), stability.reasons))


def instabilities(verdicts: Sequence[tuple[str, Verification | None]], *, margin: float) -> list[str]:
    """Return a sentence about each metastable GPU of these names and verdicts, and what to do about those near limits.

    Parameters
    ----------
    margin
        That the GPUs were planned with.
    """
    found = [
        f"{name} is metastable: {'; '.join(verdict.stability.reasons)}."
        for name, verdict in verdicts
        if verdict is not None and verdict.stability is not None and verdict.stability.is_metastable
    ]
    if found:
        found.append(
            "The verdict about a metastable GPU is that of the plan's seed, and a matter of chance. "
            f"`placer solve --margin {margin + MARGIN_STEP:g}` keeps further away from its limits."
        )
    unconfirmed = sum(
        1 for _, verdict in verdicts if verdict is not None and verdict.near_limits and verdict.stability is None
    )
    if unconfirmed:
        found.append(
            f"{unconfirmed} of {len(verdicts)} GPUs are near a limit and were accepted with one seed only; "
            "`placer verify` on the plan's file also looks at them with further seeds and after a backlog."
        )
    return found
