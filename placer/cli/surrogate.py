"""`placer surrogate`: whether an ONNX file can be used as a surrogate, check by check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import BAD_INPUT, OK, print_error, reports_errors
from placer.cli.options import JsonOption, VerboseOption

if TYPE_CHECKING:
    from placer.testing import SurrogateCheck


@reports_errors
def surrogate(
    file: Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)],
    *,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Performance profile that it is to be used with: a shipped name or a path."),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Check that FILE keeps the interface of surrogates and that its answers make sense; exit code 2 if not."""
    import json

    from placer.testing import check_surrogate

    report = check_surrogate(file, profile=profile, raise_on_failure=False)
    if json_output:
        typer.echo(json.dumps(report.as_json(), indent=2, sort_keys=True))
    else:
        _print_checks(report, shows_skipped=verbose)
    if report.is_ok:
        return OK
    names = ", ".join(check.name for check in report.failures)
    print_error(
        f"a surrogate must keep its interface. {file} fails {len(report.failures)} of {len(report.checks)} checks: "
        f"{names}.",
        hint="docs/bring-your-own-surrogate.md says what each asks for; `auto` and `exact` need no file",
    )
    return BAD_INPUT


def _print_checks(report: SurrogateCheck, *, shows_skipped: bool) -> None:
    from placer.cli.tables import print_lines, print_table

    print_table(
        [("check", False), ("outcome", False), ("", False)],
        [
            (check.name, check.outcome, check.detail)
            for check in report.checks
            if shows_skipped or check.outcome != "skipped"
        ],
    )
    counts = {
        outcome: sum(1 for check in report.checks if check.outcome == outcome)
        for outcome in ("passed", "warning", "failed", "skipped")
    }
    asked = "not asked" if report.row_latency_s is None else f"{report.row_latency_s * 1e6:.0f} us for one row"
    found = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    print_lines(["", f"{report.subject}: {found}; {asked}"])
