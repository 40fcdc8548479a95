"""Read the lists that `placer workload` takes as text."""

from __future__ import annotations

from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.traces import TraceColumns


def parse_columns(text: str, time_unit: str) -> TraceColumns:
    """Read ``role=column`` pairs such as ``time=t,prompt=in,output=out`` (InputError for anything else)."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(role and separator and name for role, separator, name in pairs):
        raise InputError(
            f"columns must be given as role=column,role=column. Got {text!r}.",
            field="columns",
            value=text,
            hint="for example --columns time=t,prompt=in,output=out",
        )
    return TraceColumns.from_mapping({role.strip(): name.strip() for role, _, name in pairs}, time_unit=time_unit)


def parse_ranks(text: str) -> tuple[int, ...]:
    """Read ranks such as ``8,16,32`` (InputError for others than vLLM's)."""
    supported = {str(rank): rank for rank in SUPPORTED_RANKS}
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in supported:
            raise InputError(
                f"`ranks` must be of {', '.join(supported)}. Got {part!r}.",
                field="ranks",
                value=text,
                hint="for example --ranks 8,16,32",
            )
    return tuple(supported[part] for part in parts)
