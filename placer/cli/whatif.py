"""`placer whatif`: what a problem would need under other rates, adapters, GPUs, models, lengths or limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from placer.cli.exits import (
    NO_SOLUTION,
    OK,
    print_hint,
    print_note,
    print_warning,
    reports_errors,
)
from placer.cli.options import HorizonOption, JsonOption, ProfileOption, SeedOption, VerboseOption, WarmupOption

if TYPE_CHECKING:
    from placer.whatif.document import WhatIf
    from placer.whatif.scenario import Scenario

_NUMBERS = "numbers A,B or A:B:STEP"


def _sweep(option: str, text: str) -> Any:
    return typer.Option(option, help=text, show_default=False, rich_help_panel=None)


@reports_errors
def whatif(
    problem: Annotated[Path, typer.Argument(help="Problem file, YAML or JSON.", show_default=False)],
    *,
    study: Annotated[str, typer.Option("--study", help="sweep, risk, break-even or sensitivity.")] = "sweep",
    scenarios: Annotated[Path | None, _sweep("--scenarios", "File of scenarios; see `placer schema whatif`.")] = None,
    scale_rates: Annotated[str | None, _sweep("--scale-rates", f"Factors on all rates: {_NUMBERS}.")] = None,
    add_adapters: Annotated[str | None, _sweep("--add-adapters", f"More adapters, drawn: {_NUMBERS}.")] = None,
    gpu_type: Annotated[list[str] | None, _sweep("--gpu-type", "Only this type of the problem; repeatable.")] = None,
    price: Annotated[str | None, _sweep("--price", f"Price of the only GPU type: {_NUMBERS}.")] = None,
    model: Annotated[list[str] | None, _sweep("--model", "Another base model; repeatable.")] = None,
    burstiness: Annotated[str | None, _sweep("--burstiness", f"gap_cv of all adapters: {_NUMBERS}.")] = None,
    lengths: Annotated[str | None, _sweep("--lengths", f"Factors on all lengths: {_NUMBERS}.")] = None,
    prompt_lengths: Annotated[str | None, _sweep("--prompt-lengths", f"On prompts only: {_NUMBERS}.")] = None,
    output_lengths: Annotated[str | None, _sweep("--output-lengths", f"On answers only: {_NUMBERS}.")] = None,
    lose_gpus: Annotated[str | None, _sweep("--lose-gpus", f"GPUs of the only type that are lost: {_NUMBERS}.")] = None,
    itl_p95_ms: Annotated[str | None, _sweep("--itl-p95-ms", f"Limits in ms: {_NUMBERS}.")] = None,
    ttft_p95_ms: Annotated[str | None, _sweep("--ttft-p95-ms", f"Limits in ms: {_NUMBERS}.")] = None,
    starvation_tolerance: Annotated[
        str | None, _sweep("--starvation-tolerance", f"Shares that may be missed: {_NUMBERS}.")
    ] = None,
    rate_cv: Annotated[float, typer.Option("--rate-cv", help="Risk: std over mean of each adapter's rate.")] = 0.3,
    common_cv: Annotated[float, typer.Option("--common-cv", help="Risk: the same of all rates together.")] = 0.1,
    probability: Annotated[
        str, typer.Option("--probability", help="Risk: with which each GPU is planned to keep its limits.")
    ] = "0.8,0.9,0.95,0.99,0.999",
    draws: Annotated[int, typer.Option("--draws", min=1, help="Risk: sets of rates that each fleet must stand.")] = 100,
    twin_error: Annotated[
        bool, typer.Option("--twin-error/--no-twin-error", help="Risk: with the twin's measured error.")
    ] = True,
    candidates: Annotated[
        int, typer.Option("--candidates", min=0, help="Sensitivity: adapters to leave out one at a time.")
    ] = 10,
    solver: Annotated[str, typer.Option("--solver", help="See `placer solvers`.")] = "portfolio",
    surrogate: Annotated[str, typer.Option("--surrogate", help="auto, exact (the twin), or an ONNX file.")] = "auto",
    profile: ProfileOption = None,
    budget: Annotated[
        float | None, typer.Option("--budget", help="Seconds for each solve.", show_default=False)
    ] = None,
    max_evaluations: Annotated[
        int | None, typer.Option("--max-evaluations", min=0, help="Rows for each solve: the same on every machine.")
    ] = None,
    seed: SeedOption = 0,
    margin: Annotated[float, typer.Option("--margin", help="Share by which rates are raised for the surrogate.")] = 0.0,
    risk: Annotated[float | None, typer.Option("--risk", help="As for `placer solve`.", show_default=False)] = None,
    replicas: Annotated[str, typer.Option("--replicas", help="given or auto, as for `placer solve`.")] = "given",
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Simulate each GPU, repair.")] = True,
    improve: Annotated[bool, typer.Option("--improve/--no-improve", help="As for `placer solve`.")] = True,
    horizon: HorizonOption = 1800.0,
    warmup: WarmupOption = 300.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for cells, tables and plots; continued.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Scenarios at a time.")] = 1,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Address of a Dask scheduler, tcp://host:port, to run on.")
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Plan PROBLEM anew for every scenario: each combination of the given values, and the cases of a file.

    With --output, the same command goes on where it was interrupted.
    """
    from placer.cli.parts_progress import PartsProgress
    from placer.files import load_problem
    from placer.whatif.cell import PlanSettings
    from placer.whatif.risk import RiskSettings
    from placer.whatif.study import Study, run_study
    from placer.whatif.tables import cell_line

    given = {
        "scale_rates": scale_rates, "add_adapters": add_adapters, "gpu_type": gpu_type, "price": price, "model": model,
        "burstiness": burstiness, "lengths": lengths, "prompt_lengths": prompt_lengths,
        "output_lengths": output_lengths, "lose_gpus": lose_gpus, "itl_p95_ms": itl_p95_ms, "ttft_p95_ms": ttft_p95_ms,
        "starvation_tolerance": starvation_tolerance,
    }  # fmt: skip
    asked = Study(
        name=cast("Any", _study_name(study)),
        scenarios=tuple(_scenarios({name: value for name, value in given.items() if value}, scenarios)),
        risk=RiskSettings(rate_cv, common_cv, draws, twin_error, seed),
        probabilities=tuple(_probabilities(probability)),
        num_candidates=candidates,
    )
    settings = PlanSettings(
        solver=solver,
        surrogate=surrogate,
        budget_s=budget,
        max_evaluations=max_evaluations,
        seed=seed,
        margin=margin,
        risk=risk,
        replicas=replicas,
        is_verified=verify,
        is_improved=improve,
        horizon_s=horizon,
        warmup_s=warmup,
    )
    with PartsProgress("scenarios", cell_line, is_verbose=verbose) as display:
        try:
            result = run_study(
                load_problem(problem, profile=profile),
                asked,
                settings=settings,
                folder=problem.parent,
                output=output,
                workers=workers,
                cluster=cluster,
                observer=display,
            )
        except KeyboardInterrupt:
            return display.say_interrupted(output)
    _conclude(result, output, prints_json=json_output)
    return OK if any(cell.has_plan for cell in result.cells) else NO_SOLUTION


def _study_name(name: str) -> str:
    from typing import get_args

    from placer.whatif.document import StudyName
    from twin.errors import InputError

    known = get_args(StudyName)
    if name not in known:
        raise InputError(f"`--study` must be one of {', '.join(known)}. Got {name!r}.", field="study", value=name)
    return name


def _scenarios(given: dict[str, Any], file: Path | None) -> list[Scenario]:
    """Return the scenarios of the options, then those of a file."""
    from placer.whatif.scenario import parse_scenarios, read_scenarios

    made: list[Scenario] = []
    if given:
        made += parse_scenarios({"grid": given}, "the command line").grid.scenarios()
    if file is not None:
        content = read_scenarios(file)
        made += [*content.grid.scenarios(), *content.cases]
    return made


def _probabilities(text: str) -> list[float]:
    from placer.whatif.ranges import expanded
    from twin.errors import InputError

    try:
        values = [float(value) for value in expanded(text)]
    except ValueError as error:
        raise InputError(f"`--probability`: {error}", field="probability", value=text) from error
    for value in values:
        if not 0.5 <= value < 1.0:
            raise InputError(
                f"`--probability` must be at least 0.5 and below 1. Got {value:g}.", field="probability", value=value
            )
    return values


def _conclude(study: WhatIf, output: Path | None, *, prints_json: bool) -> None:
    """Write the files, and print the tables."""
    from placer.cli.tables import print_lines, print_table
    from placer.comparison_document import as_json
    from placer.whatif.output import write_study
    from placer.whatif.tables import study_lines, study_tables

    for warning in study.warnings:
        print_warning(warning)
    if output is not None:
        written = write_study(study, output)
        print_note(f"wrote {', '.join(path.name for path in written)} to {output}")
        if not any(path.suffix == ".png" for path in written):
            print_hint("plots need the extra `report`: pip install 'lora-placer[report]'")
    if prints_json:
        typer.echo(as_json(study), nl=False)
        return
    for table in study_tables(study):
        print_table(table.columns, table.rows)
        print_lines([""])
    print_lines(study_lines(study))
