"""`placer replan`: from a plan in place to one for the workload of now, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import (
    INTERRUPTED,
    NO_SOLUTION,
    OK,
    REJECTED,
    print_error,
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
    SeedOption,
    VerboseOption,
    WarmupOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from placer.replan_document import Replan


@reports_errors
def replan(
    plan: Annotated[Path, typer.Argument(help="plan.json that is in place.", show_default=False)],
    workload: Annotated[Path, typer.Argument(help="Problem file with the workload of now.", show_default=False)],
    *,
    lose_gpu: Annotated[
        list[str] | None, typer.Option("--lose-gpu", help="GPU of PLAN that serves no more; may be repeated.")
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option("--max-moves", min=0, help="Most adapters that change GPU.", show_default=False)
    ] = None,
    max_loads: Annotated[
        int | None, typer.Option("--max-loads", min=0, help="Most adapters that are loaded.", show_default=False)
    ] = None,
    max_restarts: Annotated[
        int | None, typer.Option("--max-restarts", min=0, help="Most replicas that restart.", show_default=False)
    ] = None,
    moves_per_gpu: Annotated[
        float | None,
        typer.Option(
            "--moves-per-gpu",
            help="Moves that one GPU fewer is worth; inf: any number; default: the mean adapters of a GPU in place.",
            show_default=False,
        ),
    ] = None,
    spare_gpus: Annotated[
        int, typer.Option("--spare-gpus", min=0, help="GPUs that may be used for a while if no other order is safe.")
    ] = 1,
    restarts_at_once: Annotated[
        int, typer.Option("--restarts-at-once", min=1, help="Replicas that may restart together.")
    ] = 1,
    restart_s: Annotated[
        float | None,
        typer.Option("--restart-s", help="Seconds of a start; default: the profile's.", show_default=False),
    ] = None,
    handover_horizon: Annotated[
        float, typer.Option("--handover-horizon", help="Simulated seconds while two GPUs serve an adapter; 0: none.")
    ] = 120.0,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy", help="near: few GPUs and moves; repair: GPUs keep what they have; scratch: a new plan."
        ),
    ] = "near",
    solver: Annotated[str, typer.Option("--solver", help="See `placer solvers`.")] = "portfolio",
    surrogate: Annotated[str, typer.Option("--surrogate", help="auto, exact (the twin), or an ONNX file.")] = "auto",
    profile: ProfileOption = None,
    budget: Annotated[
        float | None, typer.Option("--budget", help="Seconds for the solver; as `placer solve`.", show_default=False)
    ] = None,
    max_evaluations: Annotated[
        int | None,
        typer.Option("--max-evaluations", min=0, help="Rows that the solver may ask for.", show_default=False),
    ] = None,
    seed: SeedOption = 0,
    margin: Annotated[float, typer.Option("--margin", help="Share by which rates are raised for the surrogate.")] = 0.0,
    horizon: HorizonOption = 1800.0,
    warmup: WarmupOption = 300.0,
    workers: WorkersOption = None,
    output: OutputOption = None,
    plan_output: Annotated[
        Path | None, typer.Option("--plan-output", help="File for the new plan.json alone.", show_default=False)
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Change PLAN for WORKLOAD: few GPUs, few moves, and an order of steps in which nobody starves on the way."""
    from typing import cast

    from placer.cli.progress import ProgressDisplay
    from placer.files import load_problem, save_plan, write_atomically
    from placer.output_paths import check_outputs, has_standard_output, problem_inputs
    from placer.replanning.arguments import Strategy
    from placer.replanning.run import replan as make_replan

    inputs = problem_inputs(workload, output) | {"PLAN": plan, "--profile": profile, "--surrogate": surrogate}
    check_outputs({"--output": output, "--plan-output": plan_output}, inputs=inputs, prints_json=json_output)
    with ProgressDisplay(is_verbose=verbose) as display:
        made = make_replan(
            plan,
            load_problem(workload, profile=profile),
            lose_gpus=tuple(lose_gpu or ()),
            max_moves=max_moves,
            max_loads=max_loads,
            max_restarts=max_restarts,
            moves_per_gpu="auto" if moves_per_gpu is None else moves_per_gpu,
            spare_gpus=spare_gpus,
            restarts_at_once=restarts_at_once,
            restart_s=restart_s,
            handover_horizon_s=handover_horizon,
            strategy=cast("Strategy", strategy),
            solver=solver,
            surrogate=surrogate,
            budget="auto" if budget is None else budget,
            max_evaluations=max_evaluations,
            seed=seed,
            margin=margin,
            horizon_s=horizon,
            warmup_s=warmup,
            workers=workers,
            observer=display,
        )
    try:
        if output is not None:
            write_atomically(output, _as_json(made))
            print_written(output)
        if plan_output is not None:
            save_plan(made.plan, plan_output)
            print_written(plan_output)
    finally:
        _print_result(made, is_json=json_output, is_shown=not has_standard_output(output, plan_output))
    return _conclude(made)


def _as_json(made: Replan) -> str:
    import json

    return json.dumps(made.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _print_result(made: Replan, *, is_json: bool, is_shown: bool) -> None:
    for warning in made.plan.warnings:
        print_warning(warning)
    if not is_shown:
        return
    if is_json:
        typer.echo(_as_json(made), nl=False)
        return
    from placer.cli.replan_tables import print_replan

    print_replan(made)


def _conclude(made: Replan) -> int:
    if made.plan.termination == "interrupted":
        print_error("interrupted: this is the best plan so far.")
        return INTERRUPTED
    if made.message and made.verdict == "accepted":
        print_note(made.message)
    if made.verdict == "accepted":
        return OK
    print_error(made.message or "the twin rejects the plan.")
    return NO_SOLUTION if made.unserved_adapters else REJECTED
