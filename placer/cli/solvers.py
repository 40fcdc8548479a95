"""`placer solvers`: which solvers exist, and which can run here."""

from __future__ import annotations

import typer

from placer.cli.exits import OK, reports_errors
from placer.cli.options import JsonOption, VerboseOption


@reports_errors
def solvers(*, json_output: JsonOption = False, verbose: VerboseOption = False) -> int:
    """List the solvers, and whether what they need is installed."""
    del verbose
    from solvers.registry import solver_entries

    entries = [(entry, entry.availability()) for entry in solver_entries()]
    if json_output:
        import json

        rows = [
            {
                "name": entry.name,
                "summary": entry.summary,
                "capabilities": sorted(capability.value for capability in entry.capabilities),
                "is_available": availability.is_available,
                "reason": availability.reason,
                "extra": availability.extra,
            }
            for entry, availability in entries
        ]
        typer.echo(json.dumps({"schema_version": 1, "solvers": rows}, indent=2, sort_keys=True))
        return OK
    from placer.cli.tables import print_table

    cells = []
    for entry, availability in entries:
        extra = f", pip install 'lora-placer[{availability.extra}]'" if availability.extra else ""
        available = "yes" if availability.is_available else f"no ({availability.reason}{extra})"
        capabilities = ", ".join(sorted(capability.value for capability in entry.capabilities))
        cells.append((entry.name, available, entry.summary, capabilities))
    print_table([("solver", False), ("available", False), ("what it does", False), ("capabilities", False)], cells)
    return OK
