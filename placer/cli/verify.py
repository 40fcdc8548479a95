"""`placer verify`: simulate the GPUs of a plan again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placer.cli.exits import OK, REJECTED, print_error, print_warning, reports_errors
from placer.cli.options import EngineOption, JsonOption, VerboseOption, WorkersOption


@reports_errors
def verify(
    plan: Annotated[Path, typer.Argument(help="plan.json of `placer solve`.", show_default=False)],
    *,
    problem: Annotated[Path | None, typer.Option("--problem", help="Problem file; default: the plan's own.")] = None,
    engine: EngineOption = "fast",
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="Only this GPU; may be repeated.")] = None,
    horizon: Annotated[float | None, typer.Option("--horizon", help="Simulated seconds; default: the plan's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the traffic; default: the plan's.")] = None,
    json_output: JsonOption = False,
    workers: WorkersOption = None,
    verbose: VerboseOption = False,
) -> int:
    """Simulate the GPUs of PLAN with the settings it gives them, and say whether the twin accepts them."""
    from placer.cli.progress import ProgressDisplay
    from placer.files import load_plan
    from placer.recheck import recheck_plan

    with ProgressDisplay(is_verbose=verbose) as display:
        recheck = recheck_plan(
            load_plan(plan),
            plan_path=plan,
            problem_path=problem,
            names=tuple(gpu or ()),
            engine=engine,
            horizon_s=horizon,
            seed=seed,
            workers=workers,
            observer=display,
        )
    for warning in recheck.warnings:
        print_warning(warning)
    if json_output:
        typer.echo(recheck.model_dump_json(indent=2))
    else:
        from placer.cli.tables import print_verdicts

        print_verdicts([entry.name for entry in recheck.gpus], [entry.verification for entry in recheck.gpus])
    if recheck.verdict == "accepted":
        return OK
    rejected = [entry.name for entry in recheck.gpus if not entry.verification.is_accepted]
    print_error(
        f"the twin rejects {', '.join(rejected)}.", hint="`placer solve` repairs such GPUs; try it with --margin 0.05"
    )
    return REJECTED
