"""Run a measurement segment by segment, so that whatever ends one, what it recorded is kept and said."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from twin.errors import InputError, PlacerError
from twin.measurement.folder import MeasurementFolder
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import Manifest, Segment, ServerFacts, Status
from twin.measurement.records import SENT, ShardReader
from twin.measurement.summary import nothing_served, summarise, summary_warnings
from twin.measurement.tables import consolidate, sent_requests
from twin.workload import NANOSECONDS, RequestTable, Workload

KILLED = "the process that measured was killed"
_ANOTHER_SERVER = "the engine has other settings, or another KV cache, than in the segment before"


@dataclass(frozen=True)
class Progress:
    """How far a measurement is.

    Attributes
    ----------
    what
        What is done at present, in a few words; ``None``: requests are sent.
    time_s, horizon_s
        On the measurement's clock.
    warning
        What a reader of the numbers should know, as soon as it is known; the rest then says nothing.
    num_sent, num_finished, num_failed
        Requests of this segment.
    """

    what: str | None = None
    time_s: float = 0.0
    horizon_s: float = 0.0
    num_sent: int = 0
    num_finished: int = 0
    num_failed: int = 0
    warning: str | None = None


@dataclass(frozen=True)
class SegmentFacts:
    """What is known about the other side of a segment.

    Attributes
    ----------
    server, versions, machine, warnings
        For the manifest.
    """

    server: ServerFacts = field(default_factory=ServerFacts)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentTask:
    """What one segment has to do.

    Attributes
    ----------
    number, start_s
        Of the segment; where its clock starts.
    rows
        int64 [N], numbers of the requests in the schedule, in order of arrival.
    requests
        Those requests.
    workload, horizon_s, seed
        As in the manifest.
    shards, log
        Where to write records, and what an engine says.
    on_progress
        To be called now and then.
    on_ready
        To be called once the other side is ready and before a request is sent: whoever kills the process afterwards
        does not kill what is known. The outcome may know more.
    """

    number: int
    start_s: float
    rows: NDArray[np.int64]
    requests: RequestTable
    workload: Workload
    horizon_s: float
    seed: int
    shards: Path
    log: Path
    on_progress: Callable[[Progress], None]
    on_ready: Callable[[SegmentFacts], None]


@dataclass(frozen=True)
class SegmentOutcome:
    """How a segment ended.

    Attributes
    ----------
    end_s
        On the measurement's clock; ``None``: unknown, to be read from the records.
    reason, cause
        Why it is partial, and whose doing that was; ``None`` when it is complete.
    facts
        About the other side, as it is known at the end.
    """

    end_s: float | None
    reason: str | None = None
    cause: Literal["interrupted", "failed"] | None = None
    facts: SegmentFacts = field(default_factory=SegmentFacts)


class Driver(Protocol):
    """Sends the requests of a segment to something real, and records what happens."""

    def run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        """Run until everything is sent and done, until a stop is requested, or until the other side is gone.

        Raises
        ------
        InputError, TwinError
            When there is nothing to measure: the settings cannot be used, or the other side does not start or answer.
        """


def run_segment(
    folder: MeasurementFolder, driver: Driver, stop: StopRequest, on_progress: Callable[[Progress], None]
) -> SegmentOutcome:
    """Run the part of the schedule that was not sent yet, and make the tables of everything recorded so far.

    Raises
    ------
    InputError, TwinError
        When the driver has nothing to measure; the folder then says so.
    """
    before = folder.manifest.server

    def note(facts: SegmentFacts) -> None:
        for warning in _note_facts(folder, facts, before):
            on_progress(Progress(warning=warning))

    task = _next_task(folder, on_progress, note)
    begun = Segment(
        number=task.number,
        start_s=task.start_s,
        started_at=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
    )
    earlier = folder.manifest.segments
    folder.update(status="running", reason=None, segments=(*earlier, begun))
    try:
        outcome = driver.run(task, stop)
    except BaseException as error:
        if isinstance(error, PlacerError) and _is_worthless(folder):
            # The same command with the cause removed must work. Only a log says more than the error does.
            folder.discard(has_log=not isinstance(error, InputError))
            raise
        reason = error.message if isinstance(error, PlacerError) else f"{type(error).__name__}: {error}"
        close(folder, SegmentOutcome(end_s=None, reason=reason, cause="failed"))
        raise
    on_progress(Progress(what="making the tables"))
    close(folder, outcome, before)
    return outcome


def close(folder: MeasurementFolder, outcome: SegmentOutcome, before: ServerFacts | None = None) -> Manifest:
    """Write down how the last segment ended, and make the tables.

    Parameters
    ----------
    folder, outcome
        The measurement, and how its last segment ended.
    before
        What the segments before met; ``None``: this was compared already.

    Raises
    ------
    InputError, TwinError
        When the tables cannot be made.
    """
    manifest = folder.manifest
    status: Status = "complete" if outcome.reason is None else "partial"
    *earlier, last = manifest.segments
    end_s = last_recorded_s(folder.shards, last.number, last.start_s) if outcome.end_s is None else outcome.end_s
    facts = outcome.facts
    is_known = facts.server != ServerFacts()
    # Where the end knows nothing of the server, what was noted when it was ready holds.
    said = _warnings_of(facts, before) if is_known else tuple(dict.fromkeys((*last.warnings, *facts.warnings)))
    ended = last.model_copy(update={"end_s": end_s, "status": status, "reason": outcome.reason, "warnings": said})
    # Until the tables are there, a measurement is not complete.
    folder.update(
        status="partial",
        reason=outcome.reason or "its tables are not made yet",
        segments=(*earlier, ended),
        **_fields_of(manifest, facts),
    )
    rows, unreadable = consolidate(folder.shards, folder.path)
    manifest = folder.manifest
    summary = summarise(folder.path, folder.schedule(), manifest.segments, manifest.workload.horizon_s)
    # What earlier tables showed may not hold any more.
    warnings = nothing_served(summary)
    warnings += [warning for segment in manifest.segments for warning in segment.warnings]
    warnings += summary_warnings(summary, folder.path)
    if unreadable:
        warnings.append(f"{unreadable} records were cut off when a process was killed")
    # An earlier interruption is no reason any more once the rest is done; the segments keep theirs.
    folder.update(
        status=status,
        reason=outcome.reason,
        tables=rows,
        summary=summary,
        warnings=tuple(dict.fromkeys(warnings)),
    )
    if status == "complete":
        folder.remove_shards()
    return folder.manifest


def _note_facts(folder: MeasurementFolder, facts: SegmentFacts, before: ServerFacts) -> tuple[str, ...]:
    """Write down what is known of the other side of the running segment; return what is to be warned of."""
    *earlier, last = folder.manifest.segments
    warnings = _warnings_of(facts, before)
    noted = last.model_copy(update={"warnings": warnings})
    folder.update(segments=(*earlier, noted), **_fields_of(folder.manifest, facts))
    return warnings


def _fields_of(manifest: Manifest, facts: SegmentFacts) -> dict[str, Any]:
    """Return the fields of a manifest with what is known now."""
    return {
        "server": manifest.server if facts.server == ServerFacts() else facts.server,
        "versions": manifest.versions | facts.versions,
        "machine": manifest.machine | facts.machine,
    }


def _warnings_of(facts: SegmentFacts, before: ServerFacts | None) -> tuple[str, ...]:
    """Return what a reader should know about a segment, with whether it met another server than those before."""
    has_changed = before is not None and _has_changed(before, facts.server)
    return tuple(dict.fromkeys((*facts.warnings, *([_ANOTHER_SERVER] if has_changed else ()))))


def _has_changed(before: ServerFacts, now: ServerFacts) -> bool:
    """Return whether a segment met other settings or another KV cache than the one before it."""
    if before.kv_tokens is not None and now.kv_tokens is not None and before.kv_tokens != now.kv_tokens:
        return True
    if before.engine is None or now.engine is None:
        return False
    one, other = before.engine.model_dump(), now.engine.model_dump()
    # Over HTTP, a setting may be what the server says once, and what is declared of it another time.
    names_said = [set(facts.details.get("said", ())) for facts in (before, now)]
    return any(one[name] != other[name] for name in one.keys() - (names_said[0] ^ names_said[1]))


def settle(folder: MeasurementFolder) -> Manifest:
    """Make the tables of a measurement that is not complete from its records; leaves a complete one alone.

    Raises
    ------
    InputError
        When the records are gone: the tables that are there would be replaced by empty ones, and requests sent again.
    """
    manifest = folder.manifest
    if manifest.status == "complete":
        return manifest
    has_records = folder.shards.is_dir() and (not manifest.tables or any(folder.shards.iterdir()))
    if not has_records:
        raise InputError(
            f"a measurement that is not complete must have its records. {folder.shards} is gone or empty.",
            file=str(folder.shards),
            field="shards",
            hint="put them back; the tables in the folder can be read without them, but not be made anew",
        )
    if not manifest.segments:
        return manifest
    last = manifest.segments[-1]
    reason = KILLED if last.status == "running" else last.reason
    return close(folder, SegmentOutcome(end_s=last.end_s, reason=reason, cause="failed"))


def complete_without_rest(folder: MeasurementFolder) -> Manifest:
    """Declare a measurement complete that was ended after its last request was sent: there is no rest to send."""
    assert len(unsent_rows(folder, folder.schedule())) == 0
    folder.update(status="complete", reason=None)
    folder.remove_shards()
    return folder.manifest


def unsent_rows(folder: MeasurementFolder, requests: RequestTable) -> NDArray[np.int64]:
    """Return the numbers of the requests that no segment has sent, int64 [N]."""
    is_sent = np.zeros(len(requests), dtype=np.bool_)
    is_sent[sorted(sent_requests(folder.shards))] = True
    return np.flatnonzero(~is_sent).astype(np.int64)


def last_recorded_s(shards: Path, segment: int, start_s: float) -> float:
    """Return the last time that a segment's records speak of; `start_s` without any."""
    times = {"requests": "finish_s", SENT: "sent_s", "steps": "start_s", "client": "time_s", "metrics": "time_s"}
    reader = ShardReader(shards)
    latest = start_s
    for table, column in times.items():
        for record in reader.records(table):
            if record["segment"] == segment and record.get(column) is not None:
                latest = max(latest, float(record[column]))
    return latest


def _is_worthless(folder: MeasurementFolder) -> bool:
    """Return whether this was the first try, and nothing was recorded."""
    return len(folder.manifest.segments) == 1 and not any(folder.shards.iterdir())


def _next_task(
    folder: MeasurementFolder, on_progress: Callable[[Progress], None], on_ready: Callable[[SegmentFacts], None]
) -> SegmentTask:
    facts = folder.manifest.workload
    schedule = folder.schedule()
    rows = unsent_rows(folder, schedule)
    number = len(folder.manifest.segments) + 1
    is_left = np.zeros(len(schedule), dtype=np.bool_)
    is_left[rows] = True
    left = schedule.select(is_left)
    start_s = 0.0
    if len(left) < len(schedule):
        start_s = float(left.arrival_ns[0]) / NANOSECONDS if len(left) else facts.horizon_s
    return SegmentTask(
        number=number,
        start_s=start_s,
        rows=rows,
        requests=left,
        workload=Workload(adapters=facts.adapters),
        horizon_s=facts.horizon_s,
        seed=facts.seed,
        shards=folder.shards,
        log=folder.engine_log,
        on_progress=on_progress,
        on_ready=on_ready,
    )
