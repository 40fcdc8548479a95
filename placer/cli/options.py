"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show tracebacks of errors.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the simulated traffic, and of the solver.")]
HorizonOption = Annotated[float, typer.Option("--horizon", help="Simulated seconds per GPU.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Seconds at the start that are not measured.")]
EngineOption = Annotated[str, typer.Option("--engine", help="Engine of the twin: fast, simpy or vllm.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Parallel simulations; default: all cores.")
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="Performance profile instead of the file's: a shipped name or a path.")
]
RecordRejectionsOption = Annotated[
    Path | None,
    typer.Option(
        "--record-rejections", help="Folder to keep what the twin judged, for `placer train`.", show_default=False
    ),
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)]
