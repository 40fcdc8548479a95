"""The workload of a problem file that names a trace instead of adapters.

Importing this module loads pandas: `solvers.problem` does so only for problems that have a trace.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from solvers.problem_file import TraceAdaptersSection, TraceSection
from twin.derive import derive_workload, trace_workload
from twin.errors import InputError
from twin.popularity import Assignment, assign_as_labelled, assign_by_popularity, assign_ranks, parse_popularity
from twin.trace import Trace, replicate
from twin.traces import TraceColumns, read_trace
from twin.workload import Phase, Workload

GIVEN = "given"


def workload_from_trace(section: TraceSection, phases: tuple[Phase, ...], *, base_directory: Path) -> Workload:
    """Derive adapters, rates and lengths from a trace, or replay it.

    Parameters
    ----------
    section
        What the problem file says about the trace.
    phases
        Rate scales of the problem; a replayed trace has none.
    base_directory
        Folder that relative paths start from.

    Raises
    ------
    InputError
        When a file is unreadable, a row is no request, or trace and adapters do not go together; `field` is relative
        to the section.
    """
    if section.replay and phases:
        raise InputError(
            "a trace that is replayed must have no `phases`. Leave out one of them.", field="replay", value=True
        )
    trace = read_trace(
        base_directory / section.file,
        trace_format=section.format,
        columns=_columns(section),
        sort=section.sort,
        drop_empty=section.drop_empty,
    )
    trace = replicate(trace, copies=section.copies, seed=section.adapters.seed)
    assignment = _assign(trace, section.adapters, base_directory)
    ranks = assign_ranks(len(assignment.names), section.adapters.ranks, seed=section.adapters.seed)
    make = trace_workload if section.replay else derive_workload
    return replace(make(trace, assignment, ranks), phases=phases)


def _columns(section: TraceSection) -> TraceColumns | None:
    if section.columns is None:
        return None
    return TraceColumns(**section.columns.model_dump(exclude_none=True))


def _assign(trace: Trace, adapters: TraceAdaptersSection, base_directory: Path) -> Assignment:
    """Return the adapter of each request, as the trace or a popularity model says."""
    if adapters.popularity == GIVEN:
        if adapters.count is not None:
            raise InputError(
                f"`count` must be left out when the trace names its adapters. Got {adapters.count}.",
                field="adapters.count",
                value=adapters.count,
            )
        return assign_as_labelled(trace)
    if adapters.count is None:
        raise InputError(
            f"`count` must be given for the popularity {adapters.popularity!r}. It is missing.",
            field="adapters.count",
            hint=f"write the number of adapters, or popularity: {GIVEN} if the trace names them",
        )
    model = parse_popularity(adapters.popularity, base_directory=base_directory)
    return assign_by_popularity(trace, num_adapters=adapters.count, popularity=model, seed=adapters.seed)
