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
from twin.measurement.summary import summarise, summary_warnings
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
    num_sent, num_finished, num_failed
        Requests of this segment.
    """

    what: str | None = None
    time_s: float = 0.0
    horizon_s: float = 0.0
    num_sent: int = 0
    num_finished: int = 0
    num_failed: int = 0


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


@dataclass(frozen=True)
class SegmentOutcome:
    """How a segment ended.

    Attributes
    ----------
    end_s
        On the measurement's clock; ``None``: unknown, to be read from the records.
    reason, cause
        Why it is partial, and whose doing that was; ``None`` when it is complete.
    server, versions, machine, warnings
        For the manifest.
    """

    end_s: float | None
    reason: str | None = None
    cause: Literal["interrupted", "failed"] | None = None
    server: ServerFacts = field(default_factory=ServerFacts)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


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
    task = _next_task(folder, on_progress)
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
        if isinstance(error, PlacerError) and _is_worthless(folder, error):
            # The same command with the cause removed must find an empty folder.
            folder.discard()
            raise
        reason = error.message if isinstance(error, PlacerError) else f"{type(error).__name__}: {error}"
        close(folder, SegmentOutcome(end_s=None, reason=reason, cause="failed"))
        raise
    on_progress(Progress(what="making the tables"))
    close(folder, outcome)
    return outcome


def close(folder: MeasurementFolder, outcome: SegmentOutcome) -> Manifest:
    """Write down how the last segment ended, and make the tables (InputError, TwinError if they cannot be made)."""
    manifest = folder.manifest
    status: Status = "complete" if outcome.reason is None else "partial"
    *earlier, last = manifest.segments
    end_s = last_recorded_s(folder.shards, last.number, last.start_s) if outcome.end_s is None else outcome.end_s
    known = outcome.server != ServerFacts()
    changed = known and bool(earlier) and _has_changed(manifest.server, outcome.server)
    said = tuple(dict.fromkeys((*last.warnings, *outcome.warnings, *([_ANOTHER_SERVER] if changed else ()))))
    ended = last.model_copy(update={"end_s": end_s, "status": status, "reason": outcome.reason, "warnings": said})
    # Until the tables are there, a measurement is not complete.
    folder.update(
        status="partial",
        reason=outcome.reason or "its tables are not made yet",
        segments=(*earlier, ended),
        server=outcome.server if known else manifest.server,
        versions=manifest.versions | outcome.versions,
        machine=manifest.machine | outcome.machine,
    )
    rows, unreadable = consolidate(folder.shards, folder.path)
    manifest = folder.manifest
    summary = summarise(folder.path, folder.schedule(), manifest.segments, manifest.workload.horizon_s)
    # What earlier tables showed may not hold any more.
    warnings = [warning for segment in manifest.segments for warning in segment.warnings]
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


def _has_changed(before: ServerFacts, now: ServerFacts) -> bool:
    """Return whether a segment met other settings or another KV cache than the one before it."""
    pairs = ((before.engine, now.engine), (before.kv_tokens, now.kv_tokens))
    return any(one is not None and other is not None and one != other for one, other in pairs)


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


def _is_worthless(folder: MeasurementFolder, error: PlacerError) -> bool:
    """Return whether this was the first try, nothing was recorded, and no log says more than the error does."""
    has_log = folder.engine_log.exists() and not isinstance(error, InputError)
    return len(folder.manifest.segments) == 1 and not (has_log or any(folder.shards.iterdir()))


def _next_task(folder: MeasurementFolder, on_progress: Callable[[Progress], None]) -> SegmentTask:
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
    )
