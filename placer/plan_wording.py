"""What a plan amounts to, in sentences: the command line and the report say the same."""

from __future__ import annotations

from collections.abc import Sequence

from placer.plan_document import Plan, Verification
from placer.wording import counted
from solvers.constraints import Constraints

# Headroom is not looked for beyond this.
MOST_HEADROOM = 2.0


def scenario_lines(verdicts: Sequence[tuple[str, Verification]]) -> list[str]:
    """Say under which scenario each GPU is shown, and under which it is rejected."""
    lines = []
    for shown in dict.fromkeys(verdict.scenario for _, verdict in verdicts if verdict.scenario is not None):
        names = ", ".join(name for name, verdict in verdicts if verdict.scenario == shown)
        lines.append(f"simulated numbers under scenario {shown!r}: {names}")
    for name, verdict in verdicts:
        if verdict.rejected_scenarios:
            under = ", ".join(repr(scenario) for scenario in verdict.rejected_scenarios)
            allowed = ", which the scenarios' risk allows" if verdict.is_accepted else ""
            lines.append(f"{name} is rejected under {under}{allowed}")
    return lines


def verdict_text(verdict: Verification) -> str:
    """Return the verdict in a word, or two."""
    return f"{verdict.verdict}, metastable" if verdict.is_metastable else verdict.verdict


def headroom_text(headroom: float | None) -> str:
    """Return by how much rates may grow, as a share; a dash when nobody asked."""
    if headroom is None:
        return "-"
    if headroom >= MOST_HEADROOM:
        return f"> {MOST_HEADROOM:.0%}"
    return "< 0%" if headroom < 0 else f"{headroom:.0%}"


def rejection_lines(plan: Plan) -> list[str]:
    """Say which GPUs the twin rejects, and why."""
    return [
        f"{gpu.name} is rejected: {reason}"
        for gpu in plan.gpus
        if gpu.verification is not None
        for reason in gpu.verification.reasons
    ]


def summary_lines(plan: Plan) -> list[str]:
    """Say what the plan needs, what is proven about it, and what was done for it."""
    verdicts = {
        "accepted": "the twin simulated every GPU and accepts it",
        "rejected": "THE TWIN REJECTS THIS PLAN",
        "unverified": "not every GPU was simulated",
        "none": "there is no plan",
    }
    fleet = f"{counted(plan.num_gpus, 'GPU')}, {plan.cost_per_hour:g} per hour"
    lines = [f"{fleet}: {verdicts[plan.verdict]}"]
    bound = plan.lower_bound
    if bound is not None:
        gap = "the bound is met" if plan.gap == 0 else f"gap {plan.gap:.0%}" if plan.gap is not None else "no gap"
        lines.append(
            f"lower bound: {bound.value} ({bound.proof} bound, of the {bound.model}'s mean rates), {gap}"
            if bound.proof == "work"
            else f"lower bound: {bound.value} ({bound.proof}, of the {bound.model}'s problem), {gap}"
        )
        if plan.configuration.objective == "least_cost" and bound.cost_per_hour is not None:
            gap = "" if plan.cost_gap is None else f", gap in cost {max(plan.cost_gap, 0.0):.1%}"
            lines.append(f"lower bound on the cost: {bound.cost_per_hour:,.2f} per hour ({bound.proof} bound){gap}")
    lines += _surrogate_bound(plan)
    lines += [*_constraints(plan.configuration.constraints), *_replicas(plan), *_secondary(plan), _search(plan)]
    repair = plan.repair
    if repair.twin_calls:
        steps = [
            counted(repair.twin_calls, "simulation"),
            f"{counted(repair.rejected_at_first, 'GPU')} rejected at first",
        ]
        if repair.rounds:
            steps.append(f"{counted(repair.rounds, 'round')} of repair moved {counted(repair.given_back, 'adapter')}")
        if repair.gpus_added or repair.gpus_dissolved:
            steps.append(f"GPUs added {repair.gpus_added}, emptied {repair.gpus_dissolved}")
        lines.append(f"checks: {', '.join(steps)}")
    lines += _stability([gpu.verification for gpu in plan.gpus if gpu.verification is not None])
    return lines


def _surrogate_bound(plan: Plan) -> list[str]:
    """Say what is proven of the sets that the surrogate accepts."""
    bound = plan.surrogate_bound
    if bound is None:
        return []
    cost = ""
    if plan.configuration.objective == "least_cost" and bound.cost_per_hour is not None:
        cost = f" and {bound.cost_per_hour:,.2f} per hour"
    return [f"of sets that the surrogate accepts: at least {counted(bound.value, 'GPU')}{cost} ({bound.proof})"]


def _constraints(constraints: Constraints) -> list[str]:
    """Say which rules were in force: how many of each kind."""
    kinds = [(name, len(getattr(constraints, name))) for name in Constraints.model_fields]
    given = [f"{name} ({counted(count, 'rule')})" for name, count in kinds if count]
    return [f"constraints: {', '.join(given)}"] if given else []


def _secondary(plan: Plan) -> list[str]:
    """Say what decided between placements with equal objectives, and what changes about what is in place."""
    lines = []
    names, rooms = plan.configuration.secondary, [gpu.headroom for gpu in plan.gpus if gpu.headroom is not None]
    if names:
        least = f"; the least headroom is {headroom_text(min(rooms))}" if "headroom" in names and rooms else ""
        lines.append(f"then, at the same objective: {', '.join(names)}{least}")
    moves = plan.moves
    if moves is not None:
        new = f", {counted(moves.num_new, 'new adapter')}" if moves.num_new else ""
        lines.append(
            f"moves: {moves.num_moved:,} of {counted(moves.num_placed, 'adapter')} ({moves.share:.1%}) from the "
            f"{counted(moves.num_gpus_before, 'GPU')} in place{new}; {moves.loaded_mib:,.0f} MiB to load"
        )
    return lines


def _replicas(plan: Plan) -> list[str]:
    """Say which adapters are on several GPUs, with which part of their requests on each."""
    divided = [(adapter, gpus) for adapter, gpus in plan.routes().items() if len(gpus) > 1]
    return [
        f"replicas: {adapter} on {counted(len(gpus), 'GPU')}: "
        f"{', '.join(f'{share:.1%} of its requests on {gpu}' for gpu, share in gpus.items())}"
        for adapter, gpus in divided
    ]


def _search(plan: Plan) -> str:
    """Say how much the solver asked, and what ended it."""
    asked = f"{plan.solver_evaluations:,} rows in {plan.solver_calls:,} questions to the surrogate"
    return f"search: {plan.configuration.solver}, {asked}, {_end_of_search(plan)}"


def _end_of_search(plan: Plan) -> str:
    configuration = plan.configuration
    if plan.termination == "time_limit":
        return f"ended by the limit of {configuration.budget_s:g} s"
    if plan.termination == "iteration_limit":
        if configuration.max_evaluations is not None:
            return f"ended by the limit of {configuration.max_evaluations:,} rows"
        return f"ended by the limit of {configuration.max_improving_evaluations:,} rows after the first placement"
    return {"proven": "ended by the bound", "completed": "nothing more to try"}.get(
        plan.termination, plan.termination.replace("_", " ")
    )


def _stability(verdicts: Sequence[Verification]) -> list[str]:
    assessed = [verdict for verdict in verdicts if verdict.stability is not None]
    if not assessed:
        return []
    num_metastable = sum(verdict.is_metastable for verdict in assessed)
    asked = f"{counted(len(assessed), 'GPU')} near a limit simulated with other seeds and after a backlog"
    return [f"stability: {asked}, {num_metastable or 'none'} metastable"]


def source_lines(plan: Plan) -> list[str]:
    """Say which model each number comes from."""
    configuration = plan.configuration
    surrogate = configuration.surrogate
    care = f"margin {configuration.margin:.0%}"
    if configuration.risk is not None:
        care += (
            f", probability of starvation at most {configuration.threshold:.3g} (risk {100 * configuration.risk:g}%)"
        )
    lines = ["offered: mean rates and lengths of the problem"]
    if configuration.uncertainty is not None:
        share = 1.0 - configuration.uncertainty.probability
        lines.append(f"simulated: the load that each GPU exceeds with a probability of {share:.3g}")
    if configuration.scenarios is not None:
        scenarios = configuration.scenarios
        allowed = f" that weigh at least {1.0 - scenarios.risk:.3g} of all" if scenarios.risk else ""
        names = ", ".join(case.name for case in scenarios.cases)
        lines.append(f"predicted, simulated: the worst of the scenarios{allowed}: {names}")
    lines += [
        f"predicted, headroom: surrogate {surrogate.name} ({surrogate.details}), {care}",
    ]
    if any(gpu.verification is not None for gpu in plan.gpus):
        lines.append(
            f"simulated, ITL, verdict: twin, {configuration.verification_engine} engine, {configuration.horizon_s:g} s "
            f"({configuration.warmup_s:g} s of it warm-up), seed {plan.seed}, profile {', '.join(_profiles(plan))}"
        )
    return lines


def _profiles(plan: Plan) -> list[str]:
    return list(dict.fromkeys(plan.configuration.profiles))
