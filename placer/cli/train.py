"""`placer train`: from training data to a surrogate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_hint, print_warning, print_written, reports_errors
from placer.cli.options import JsonOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from predictors.packed_verdicts import GpusPacked
    from predictors.recorded_rows import GpusLabelled
    from predictors.training import TrainingReport, TrialDone


@reports_errors
def train(
    data: Annotated[list[Path], typer.Argument(help="Folders that `placer dataset` wrote.", show_default=False)],
    *,
    profile: Annotated[
        str, typer.Option("--profile", help="Performance profile that labelled them: a shipped name or a path.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="ONNX file to write; its cards are written beside it.")
    ],
    kin: Annotated[
        list[str] | None,
        typer.Option(
            "--kin", help="Another profile, which labelled some of the DATA: it is learned from, too; repeatable."
        ),
    ] = None,
    from_rejections: Annotated[
        list[Path] | None,
        typer.Option("--from-rejections", help="Folder of `placer solve --record-rejections`; repeatable."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            help="Surrogate that this command wrote, of the same profile: its network is fitted further.",
        ),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            help="Only these: neural, boosting, forest, tree, polyhedra; repeatable. Default: all but polyhedra.",
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=1.0, help="Seconds for the search of each family.")
    ] = 600.0,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Fits of each family at most.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split, the searches and the fits.")] = 0,
    risk_gpus: Annotated[
        int, typer.Option("--risk-gpus", min=0, help="GPUs to pack and simulate, for `solve --risk`; 0: no risk known.")
    ] = 400,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Fit families of models to labelled rows, and export the best one where plans are decided as a surrogate."""
    from placer.cli.live_line import LiveLine
    from placer.files import write_atomically
    from placer.output_paths import check_outputs
    from predictors.packed_verdicts import GpusPacked
    from predictors.recorded_rows import GpusLabelled
    from predictors.training import FAMILY_NAMES, TrainingSettings, facts_to_json, train_surrogate
    from twin.profile import load_profile

    page = output.with_suffix(".html")
    can_draw = _can_draw()
    check_outputs(
        {"--output": output, "card": output.with_suffix(".md"), "card in HTML": page},
        inputs={f"DATA {number}": path for number, path in enumerate(data, start=1)}
        | {f"--from-rejections {number}": path for number, path in enumerate(from_rejections or (), start=1)}
        | {"--profile": profile}
        | ({} if start is None else {"--start": start}),
        prints_json=json_output,
    )
    settings = TrainingSettings(
        families=tuple(family or (FAMILY_NAMES if start is None else ("neural",))),
        time_limit_s=time_limit,
        max_trials=trials,
        seed=seed,
        risk_gpus=risk_gpus,
    )
    with LiveLine() as line:
        line.update("loading rows")

        def show(event: TrialDone | GpusLabelled | GpusPacked) -> None:
            if isinstance(event, GpusLabelled):
                line.update(f"labelling recorded GPUs: {event.done:,} of {event.total:,}")
                return
            if isinstance(event, GpusPacked):
                line.update(f"packing GPUs for the risk: {event.done:,} of {event.total:,}")
                return
            text = f"{event.family}, fit {event.number}: score {event.score:.4f} after {event.seconds:.0f} s"
            line.update(text)
            if verbose or not line.is_live:
                line.print(text)

        report = train_surrogate(
            data,
            load_profile(profile),
            output=output,
            kin=[load_profile(name) for name in kin or ()],
            rejections=from_rejections or (),
            start=start,
            settings=settings,
            workers=workers,
            observer=show,
        )
    print_written(report.file)
    print_written(report.card)
    if can_draw:
        from placer.model_card_report import render_card

        write_atomically(page, render_card(report))
        print_written(page)
    if json_output:
        typer.echo(facts_to_json(report), nl=False)
    else:
        _print_report(report)
    return OK


def _can_draw() -> bool:
    """Return whether the card can also be a page with figures; if not, say before the work what it lacks."""
    from placer.html_page import require_report_libraries
    from twin.errors import InputError

    try:
        require_report_libraries()
    except InputError as error:
        print_warning(f"the card is written in Markdown only: {error.message}")
        print_hint(error.hint or "")
        return False
    return True


def _print_report(report: TrainingReport) -> None:
    from placer.cli.tables import print_lines, print_table

    numbers = ("score", "ratio\nerror", "Brier", "F1", "1 row\nus", "10,000\nms", "KiB")
    columns = [("family", False), *((heading, True) for heading in numbers)]
    rows = [
        (
            family.name + (" *" if family.name == report.chosen else ""),
            f"{family.score:.4f}",
            f"{family.errors['near_border']['ratio_mae']:.4f}",
            f"{family.errors['near_border']['brier']:.4f}",
            f"{family.errors['all']['starvation_f1']:.3f}",
            f"{family.latency_us[1]:.0f}",
            f"{family.latency_us[10_000] / 1000.0:.1f}",
            f"{family.size_bytes / 1024.0:.0f}",
        )
        for family in report.families
    ]
    print_table(columns, rows)
    thresholds = report.facts["thresholds"]
    levels = ", ".join(f"{value:.3g} at {float(risk):.0%} risk" for risk, value in thresholds["by_risk"].items())
    packed = f"({thresholds['gpus']} packed GPUs)"
    print_lines(["", f"* written. Probability of starvation at most: {levels or 'not known'} {packed}."])
