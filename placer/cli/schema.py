"""`placer schema`: the JSON Schema of the files that placer reads and writes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from placer.cli.exits import OK, reports_errors
from placer.cli.options import VerboseOption


@reports_errors
def schema(
    document: Annotated[
        str, typer.Argument(help="problem, plan, validation, calibration, measurement or measurement-validation.")
    ] = "problem",
    *,
    verbose: VerboseOption = False,
) -> int:
    """Print the JSON Schema of a problem file, of plan.json, or of what other commands print with --json."""
    del verbose
    from twin.errors import InputError

    if document == "problem":
        from solvers.problem_file import problem_schema as make
    elif document == "plan":
        from placer.plan_document import plan_schema as make
    elif document == "validation":
        from placer.validation import validation_schema as make
    elif document == "calibration":
        from placer.calibration_document import calibration_schema as make
    elif document == "measurement":
        from twin.measurement.manifest import manifest_schema as make
    elif document == "measurement-validation":
        from placer.measurement_validation import measurement_validation_schema as make
    else:
        raise InputError(
            "the document must be one of problem, plan, validation, calibration, measurement, measurement-validation. "
            f"Got {document!r}.",
            field="document",
            value=document,
        )
    typer.echo(json.dumps(make(), indent=2, sort_keys=True))
    return OK
