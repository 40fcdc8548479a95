"""`placer solve`: from a problem file to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import (
    exit_code_of,
    print_error,
    print_hint,
    print_note,
    print_warning,
    print_written,
    reports_errors,
)
from placer.cli.options import (
    HorizonOption,
    JsonOption,
    OutputOption,
    ProfileOption,
    RecordRejectionsOption,
    SeedOption,
    VerboseOption,
    WarmupOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from placer.plan_document import Plan


@reports_errors
def solve(
    problem: Annotated[Path, typer.Argument(help="Problem file, YAML or JSON.", show_default=False)],
    *,
    solver: Annotated[str, typer.Option("--solver", help="See `placer solvers`.")] = "portfolio",
    surrogate: Annotated[str, typer.Option("--surrogate", help="auto, exact (the twin), or an ONNX file.")] = "auto",
    profile: ProfileOption = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", help="Seconds for the solver; default: 60, and 250 evaluations per adapter.", show_default=False
        ),
    ] = None,
    max_evaluations: Annotated[
        int | None,
        typer.Option(
            "--max-evaluations",
            min=0,
            help="Rows that the solver may ask the surrogate for: the same plan on every machine.",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    margin: Annotated[float, typer.Option("--margin", help="Share by which rates are raised for the surrogate.")] = 0.0,
    risk: Annotated[
        float | None,
        typer.Option(
            "--risk",
            help="Share of just accepted GPUs that the twin may reject: limits the probability of starvation.",
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        str,
        typer.Option(
            "--replicas", help="given: as in PROBLEM; auto: adapters that no GPU serves alone are on several, too."
        ),
    ] = "given",
    output: OutputOption = None,
    json_output: JsonOption = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Simulate each GPU, repair rejected ones.")
    ] = True,
    improve: Annotated[
        bool,
        typer.Option(
            "--improve/--no-improve", help="Afterwards, empty GPUs into others if the twin approves; not with --risk."
        ),
    ] = True,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm/--no-confirm",
            help="In the end, look at GPUs near a limit with further seeds, too.",
        ),
    ] = True,
    secondary: Annotated[
        str | None,
        typer.Option(
            "--secondary",
            help="What decides at equal objectives, by commas: moves, headroom; none: nothing. Default: the problem's.",
            show_default=False,
        ),
    ] = None,
    current: Annotated[
        Path | None,
        typer.Option("--current", help="plan.json that is in place: few adapters shall move.", show_default=False),
    ] = None,
    record_rejections: RecordRejectionsOption = None,
    horizon: HorizonOption = 1800.0,
    warmup: WarmupOption = 300.0,
    workers: WorkersOption = None,
    verbose: VerboseOption = False,
) -> int:
    """Place the adapters of PROBLEM on as few GPUs as possible, and check every GPU with the twin."""
    from placer.cli.progress import ProgressDisplay
    from placer.files import load_problem, save_plan
    from placer.garbage import keep_what_is_there
    from placer.output_paths import check_outputs, has_standard_output, problem_inputs
    from placer.planning import plan as make_plan

    inputs = problem_inputs(problem, output) | {"--profile": profile, "--surrogate": surrogate, "--current": current}
    check_outputs({"--output": output}, inputs=inputs, prints_json=json_output)
    with ProgressDisplay(is_verbose=verbose) as display:
        loaded = load_problem(problem, profile=profile)
        keep_what_is_there()
        plan = make_plan(
            loaded,
            solver=solver,
            surrogate=surrogate,
            budget="auto" if budget is None else budget,
            max_evaluations=max_evaluations,
            seed=seed,
            verify=verify,
            improve=improve,
            confirm=confirm,
            margin=margin,
            risk=risk,
            replicas=replicas,
            horizon_s=horizon,
            warmup_s=warmup,
            workers=workers,
            record_rejections=record_rejections,
            secondary=None if secondary is None else [name.strip() for name in secondary.split(",")],
            current=current,
            observer=display,
        )
    if record_rejections is not None:
        print_written(record_rejections)
    try:
        if output is not None:
            save_plan(plan, output)
            print_written(output)
    finally:
        # Also when the disk is full: what was computed must not be lost.
        _print_result(plan, is_json=json_output, is_shown=not has_standard_output(output))
    if plan.verdict == "none":
        print_error(f"there is no placement. {plan.message}".rstrip())
        if plan.termination != "proven":
            print_hint("a larger --budget, more GPUs (max_count), or a faster surrogate may help")
    elif plan.message:
        print_note(plan.message)
    if plan.termination == "interrupted":
        print_error("interrupted: this is the best plan so far.")
    elif plan.verdict == "rejected":
        print_error(
            "the twin rejects the plan after all rounds of repair.", hint="try --margin 0.1, or allow more GPUs"
        )
    return exit_code_of(plan)


def _print_result(plan: Plan, *, is_json: bool, is_shown: bool) -> None:
    for warning in plan.warnings:
        print_warning(warning)
    if not is_shown:
        return
    if is_json:
        from placer.files import plan_to_json

        typer.echo(plan_to_json(plan), nl=False)
    elif plan.gpus:
        from placer.cli.tables import print_plan

        print_plan(plan)
