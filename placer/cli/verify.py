"""`placer verify`: simulate the GPUs of a plan again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, REJECTED, print_error, print_warning, reports_errors
from placer.cli.options import EngineOption, JsonOption, RecordRejectionsOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from placer.recheck import Recheck
    from placer.verify_agreement import EngineAgreement


@reports_errors
def verify(
    plan: Annotated[Path, typer.Argument(help="plan.json of `placer solve`.", show_default=False)],
    *,
    problem: Annotated[Path | None, typer.Option("--problem", help="Problem file; default: the plan's own.")] = None,
    engine: EngineOption = "fast",
    compare: Annotated[
        bool | None,
        typer.Option("--compare/--no-compare", help="Does the fast engine simulate the same? Default: others ask it."),
    ] = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="Only this GPU; may be repeated.")] = None,
    horizon: Annotated[
        float | None,
        typer.Option("--horizon", help="Simulated seconds; more where few requests come. Default: the plan's."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the traffic; default: the plan's.")] = None,
    record_rejections: RecordRejectionsOption = None,
    json_output: JsonOption = False,
    workers: WorkersOption = None,
    verbose: VerboseOption = False,
) -> int:
    """Simulate the GPUs of PLAN with the settings it gives them, and say whether the twin accepts them."""
    from placer.cli.engines import choose_engine
    from placer.cli.progress import ProgressDisplay
    from placer.files import load_plan
    from placer.recheck import recheck_plan
    from twin.errors import InputError

    if engine == "fast" and compare:
        raise InputError(
            "`--compare` needs an engine that can be compared with the fast one. Got the fast one.",
            field="engine",
            value=engine,
            hint="add --engine vllm or --engine simpy",
        )
    content = load_plan(plan)
    chosen_engine = choose_engine(engine)
    with ProgressDisplay(is_verbose=verbose) as display:
        recheck = recheck_plan(
            content,
            plan_path=plan,
            problem_path=problem,
            names=tuple(gpu or ()),
            engine=chosen_engine,
            horizon_s=horizon,
            seed=seed,
            workers=workers,
            compares=chosen_engine != "fast" if compare is None else compare,
            observer=display,
            record_rejections=record_rejections,
        )
    for warning in recheck.warnings:
        print_warning(warning)
    if json_output:
        typer.echo(recheck.model_dump_json(indent=2))
    else:
        _print_recheck(recheck)
    planned_s = content.configuration.horizon_s
    return _conclude(recheck, shorter_than_s=planned_s if horizon is not None and horizon < planned_s else None)


def _print_recheck(recheck: Recheck) -> None:
    from placer.cli.tables import print_lines, print_verdicts

    print_verdicts([entry.name for entry in recheck.gpus], [entry.verification for entry in recheck.gpus])
    print_lines(recheck.notes)
    compared = [(entry.name, entry.agreement) for entry in recheck.gpus if entry.agreement is not None]
    if compared:
        _print_agreements(compared)


def _print_agreements(compared: list[tuple[str, EngineAgreement]]) -> None:
    from placer.cli.tables import number, print_lines, print_table
    from placer.verify_agreement import speeds

    engine = compared[0][1].checked.engine
    columns = [("GPU", False)]
    columns += [(f"{what}\n{name}", True) for what in ("served", "steps") for name in (engine, "fast")]
    rows = []
    for name, agreement in compared:
        pair = (agreement.checked, agreement.fast)
        counts = [figures.served_requests if figures else None for figures in pair]
        counts += [figures.num_steps if figures else None for figures in pair]
        shown = ["-" if count is None else number(count) for count in counts]
        rows.append((name, *shown, "yes" if agreement.is_same else "NO"))
    print_table([*columns, ("all the\nsame", False)], rows)
    checked, fast = speeds([agreement for _, agreement in compared])
    verdict = f"{engine} simulates {checked:,.0f} s in a second of CPU time"
    # Not a number where the fast engine failed.
    verdict += f", fast {fast:,.0f} s: {fast / checked:,.0f} times as many." if fast > 0.0 else "."
    print_lines(["", verdict])


def _conclude(recheck: Recheck, *, shorter_than_s: float | None) -> int:
    """Say what is wrong, and return the exit code; `shorter_than_s`: the plan's horizon, if this one is shorter."""
    rejected = [entry.name for entry in recheck.gpus if not entry.verification.is_accepted]
    if rejected:
        hint = "`placer solve` repairs such GPUs; try it with --margin 0.05"
        if shorter_than_s is not None:
            hint = (
                f"the plan was made with {shorter_than_s:g} s: in a shorter window, requests that are still being "
                "served at its end can decide"
            )
        print_error(f"the twin rejects {', '.join(rejected)}.", hint=hint)
    differing = [entry for entry in recheck.gpus if entry.agreement is not None and not entry.agreement.is_same]
    for entry in differing:
        assert entry.agreement is not None
        print_error(
            f"the fast engine does not simulate {entry.name} as {entry.verification.engine} does. "
            f"What differs: {', '.join(entry.agreement.differences)}"
        )
    return REJECTED if rejected or differing else OK
