"""From the runs of a comparison to what is known of each instance and one summary per solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from placer.comparison_document import BoundRecord, InstanceRecord, RunRecord, SolverSummary

Number = float | int | None


def best_bound(candidates: Iterable[BoundRecord | None]) -> BoundRecord | None:
    """Return the largest of some bounds, the first of equals; ``None``: there is none."""
    known = [bound for bound in candidates if bound is not None]
    return max(known, key=lambda bound: bound.value) if known else None


def best_cost_bound(candidates: Iterable[BoundRecord | None], cheapest_gpu_per_hour: float) -> float | None:
    """Return the largest cost that some bounds prove: what they say of it, or that of so many of the cheapest GPUs."""
    known = [bound for bound in candidates if bound is not None]
    costs = [max(bound.cost_per_hour or 0.0, bound.value * cheapest_gpu_per_hour) for bound in known]
    return max(costs, default=None)


def summarise(
    solvers: Sequence[str],
    instances: Sequence[InstanceRecord],
    runs: Sequence[RunRecord],
    *,
    reference: str | None,
    is_cost: bool,
) -> tuple[SolverSummary, ...]:
    """Return the summary of each solver.

    Parameters
    ----------
    solvers, instances, runs
        What was compared.
    reference
        With whom all others are compared.
    is_cost
        Whether solvers are compared by cost instead of the number of GPUs.
    """
    by_name = {instance.name: instance for instance in instances}
    references = {(run.instance, run.seed): _objective(run, is_cost=is_cost) for run in runs if run.solver == reference}
    return tuple(
        _summary(
            solver,
            [run for run in runs if run.solver == solver],
            by_name,
            references if reference is not None and solver != reference else None,
            is_cost=is_cost,
        )
        for solver in solvers
    )


def over_bound(run: RunRecord, instance: InstanceRecord) -> float | None:
    """Return GPUs / bound - 1 of what one would deploy; ``None`` without bound or placement."""
    if instance.bound is None or run.final_gpus is None:
        return None
    return run.final_gpus / instance.bound.value - 1.0


def cost_over_bound(run: RunRecord, instance: InstanceRecord) -> float | None:
    """Return cost / bound on the cost - 1; ``None`` without placement or bound, or where the bound is 0."""
    least = instance.least_cost_per_hour
    if least is None:
        least = best_cost_bound([instance.bound], instance.cheapest_gpu_per_hour)
    if not least or run.final_cost_per_hour is None:
        return None
    return run.final_cost_per_hour / least - 1.0


def _summary(
    solver: str,
    runs: Sequence[RunRecord],
    instances: Mapping[str, InstanceRecord],
    references: Mapping[tuple[str, int], float | None] | None,
    *,
    is_cost: bool,
) -> SolverSummary:
    asked = [run for run in runs if run.twin is not None and run.num_gpus]
    gpus = sum(run.num_gpus or 0 for run in asked)
    rejected = sum(run.twin.rejected_gpus for run in asked if run.twin is not None)
    ratios = [run.twin.worst_service_ratio for run in asked if run.twin is not None]
    known_ratios = [ratio for ratio in ratios if ratio is not None]
    pairs = (
        None
        if references is None
        else [(_objective(run, is_cost=is_cost), references.get((run.instance, run.seed))) for run in runs]
    )

    def mean(value: Callable[[RunRecord], Number]) -> float | None:
        return _mean(value(run) for run in runs)

    return SolverSummary(
        solver=solver,
        num_runs=len(runs),
        num_placed=sum(1 for run in runs if run.final_gpus is not None),
        num_failed=sum(1 for run in runs if run.status in {"failed", "unavailable"}),
        mean_gpus=mean(lambda run: run.final_gpus),
        gpus_over_bound=mean(lambda run: over_bound(run, instances[run.instance])),
        cost_over_bound=mean(lambda run: cost_over_bound(run, instances[run.instance])),
        first_s=mean(lambda run: run.first_s),
        best_s=mean(lambda run: run.best_s),
        within_one_percent_s=mean(lambda run: run.within_one_percent_s),
        runtime_s=mean(lambda run: run.runtime_s),
        num_evaluations=mean(lambda run: run.num_evaluations),
        accepted_share=1.0 - rejected / gpus if gpus else None,
        rejected_gpus=rejected if asked else None,
        worst_service_ratio=min(known_ratios, default=None),
        replay_accepted_share=mean(lambda run: None if run.replay is None else run.replay.accepted_share),
        mean_moves=mean(lambda run: run.moves),
        wins=_count(pairs, lambda mine, other: mine < other),
        ties=_count(pairs, lambda mine, other: mine == other),
        losses=_count(pairs, lambda mine, other: mine > other),
        mean_saving=None
        if pairs is None
        else _mean(1.0 - mine / other for mine, other in pairs if mine is not None and other),
    )


def _objective(run: RunRecord, *, is_cost: bool) -> float | None:
    return run.final_cost_per_hour if is_cost else run.final_gpus


def _count(
    pairs: Sequence[tuple[float | None, float | None]] | None, holds: Callable[[float, float], bool]
) -> int | None:
    """Count pairs; nothing to deploy is worse than anything, and two such are a tie."""
    if pairs is None:
        return None
    endless = float("inf")
    return sum(
        1 for mine, other in pairs if holds(endless if mine is None else mine, endless if other is None else other)
    )


def _mean(values: Iterable[Number]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
