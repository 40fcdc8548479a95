"""`placer schema`: the JSON Schema of the files that placer reads and writes."""

from __future__ import annotations

import importlib
import json
from typing import Annotated

import typer

from placer.cli.exits import OK, reports_errors
from placer.cli.options import VerboseOption

# Where the schema of each document is made: a module, which is imported when it is asked for, and a function of it.
_MAKERS = {
    "problem": ("solvers.problem_file", "problem_schema"),
    "plan": ("placer.plan_document", "plan_schema"),
    "replan": ("placer.replan_document", "replan_schema"),
    "why-not": ("placer.why_not_document", "why_not_schema"),
    "advice": ("placer.advice_document", "advice_schema"),
    "comparison": ("placer.comparison_document", "comparison_schema"),
    "routing": ("placer.routing_document", "routing_schema"),
    "whatif": ("placer.whatif.scenario", "scenarios_schema"),
    "whatif-study": ("placer.whatif.document", "whatif_schema"),
    "observation": ("placer.observing.document", "observation_schema"),
    "export-options": ("placer.export.options", "options_schema"),
    "routing-table": ("placer.export.routing_table", "routing_table_schema"),
    "placement": ("placer.export.placement", "placement_schema"),
    "import": ("placer.export.exporting", "import_schema"),
    "validation": ("placer.validation", "validation_schema"),
    "calibration": ("placer.calibration_document", "calibration_schema"),
    "openapi": ("placer.service.published", "openapi_document"),
    "measurement": ("twin.measurement.manifest", "manifest_schema"),
    "measurement-validation": ("placer.measurement_validation", "measurement_validation_schema"),
}


@reports_errors
def schema(
    document: Annotated[str, typer.Argument(help=f"One of {', '.join(_MAKERS)}.")] = "problem",
    *,
    verbose: VerboseOption = False,
) -> int:
    """Print the JSON Schema of a file, of what commands print with --json, or the OpenAPI document of the service."""
    del verbose
    from twin.errors import InputError

    if document not in _MAKERS:
        raise InputError(
            f"the document must be one of {', '.join(_MAKERS)}. Got {document!r}.", field="document", value=document
        )
    module, maker = _MAKERS[document]
    typer.echo(json.dumps(getattr(importlib.import_module(module), maker)(), indent=2, sort_keys=True))
    return OK
