"""Jobs on disk: an SQLite database in WAL mode, so that nothing that was acknowledged is lost with the process."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from placer.service.documents import JobState, Operation

FILE_NAME = "jobs.sqlite3"
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    operation TEXT NOT NULL,
    state TEXT NOT NULL,
    submitted_s REAL NOT NULL,
    started_s REAL,
    finished_s REAL,
    num_starts INTEGER NOT NULL DEFAULT 0,
    is_cancelling INTEGER NOT NULL DEFAULT 0,
    idempotency_key TEXT UNIQUE,
    digest TEXT NOT NULL,
    solver_s REAL,
    exit_code INTEGER,
    error TEXT,
    has_result INTEGER NOT NULL DEFAULT 0,
    request BLOB NOT NULL,
    result BLOB,
    events BLOB
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, sequence);
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (finished_s);
"""
# Without the documents, which are read when they are asked for.
_COLUMNS = (
    "sequence, id, operation, state, submitted_s, started_s, finished_s, num_starts, is_cancelling, idempotency_key, "
    "digest, solver_s, exit_code, error, has_result"
)


@dataclass(frozen=True)
class StoredJob:
    """A row of the database without its documents; times in seconds since the epoch."""

    sequence: int
    id: str
    operation: Operation
    state: JobState
    submitted_s: float
    started_s: float | None
    finished_s: float | None
    num_starts: int
    is_cancelling: bool
    idempotency_key: str | None
    digest: str
    solver_s: float | None
    exit_code: int | None
    error: dict[str, Any] | None
    has_result: bool

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Self:
        """Return the job of a row of `_COLUMNS`."""
        values = list(row)
        values[8], values[14] = bool(values[8]), bool(values[14])
        values[13] = None if values[13] is None else json.loads(values[13])
        return cls(*values)


@dataclass(frozen=True)
class NewJob:
    """What is kept of a request when it is accepted.

    Attributes
    ----------
    digest
        Of operation and request: whether a key is used again for the same.
    solver_s
        Most seconds for the solver; ``None``: as the request says.
    """

    id: str
    operation: Operation
    request: bytes
    digest: str
    idempotency_key: str | None = None
    solver_s: float | None = None


@dataclass(frozen=True)
class JobEnd:
    """How a job ended."""

    state: JobState
    exit_code: int | None = None
    error: dict[str, Any] | None = None
    result: bytes | None = None
    events: tuple[dict[str, Any], ...] = ()


class JobStore:
    """The database; to be used by one thread at a time, which need not be always the same.

    Every method returns when its change is on disk. All raise sqlite3.Error when the disk is full or the file damaged,
    and have changed nothing then.

    Parameters
    ----------
    folder
        Where the file is, or will be.
    clock
        Seconds since the epoch.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.path = folder / FILE_NAME
        self._clock = clock
        self._connection = connect(self.path)

    def close(self) -> None:
        """Write what is in the log into the file, and close it."""
        self._connection.close()

    def add(self, job: NewJob) -> StoredJob:
        """Keep a job that is accepted; of one whose key is known already, the one that is there."""
        with self._connection as transaction:
            if job.idempotency_key is not None and (known := self.with_key(job.idempotency_key)) is not None:
                return known
            transaction.execute(
                "INSERT INTO jobs (id, operation, state, submitted_s, idempotency_key, digest, solver_s, request) "
                "VALUES (?, ?, 'accepted', ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.operation,
                    self._clock(),
                    job.idempotency_key,
                    job.digest,
                    job.solver_s,
                    zlib.compress(job.request, 1),
                ),
            )
        return self._known(job.id)

    def start(self, job_id: str) -> StoredJob:
        """Note that a job is begun, once more."""
        with self._connection as transaction:
            transaction.execute(
                "UPDATE jobs SET state = 'running', started_s = ?, num_starts = num_starts + 1 WHERE id = ?",
                (self._clock(), job_id),
            )
        return self._known(job_id)

    def put_back(self, job_id: str, *, is_counted: bool) -> StoredJob:
        """Note that a job was not finished and waits again; its start is counted, or was none."""
        with self._connection as transaction:
            transaction.execute(
                "UPDATE jobs SET state = 'accepted', started_s = NULL, num_starts = num_starts - ? WHERE id = ?",
                (0 if is_counted else 1, job_id),
            )
        return self._known(job_id)

    def mark_cancelling(self, job_id: str) -> StoredJob:
        """Note that a job is to end."""
        with self._connection as transaction:
            transaction.execute("UPDATE jobs SET is_cancelling = 1 WHERE id = ?", (job_id,))
        return self._known(job_id)

    def finish(self, job_id: str, end: JobEnd, *, keep: int) -> StoredJob:
        """Note how a job ended, and forget the oldest finished ones beyond `keep`."""
        result = None if end.result is None else zlib.compress(end.result, 1)
        error = None if end.error is None else json.dumps(end.error)
        events = zlib.compress(json.dumps(end.events).encode("ascii"), 1)
        with self._connection as transaction:
            transaction.execute(
                "UPDATE jobs SET state = ?, finished_s = ?, exit_code = ?, error = ?, result = ?, has_result = ?, "
                "events = ? WHERE id = ?",
                (end.state, self._clock(), end.exit_code, error, result, result is not None, events, job_id),
            )
            transaction.execute(
                # Never this one, whose caller waits: the clock may have been set back.
                "DELETE FROM jobs WHERE sequence IN (SELECT sequence FROM jobs WHERE finished_s IS NOT NULL "
                "AND id != ? ORDER BY finished_s DESC LIMIT -1 OFFSET ?)",
                (job_id, keep - 1),
            )
        return self._known(job_id)

    def get(self, job_id: str) -> StoredJob | None:
        """Return a job, if it is there."""
        return self._one(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", job_id)  # noqa: S608 - constants

    def with_key(self, key: str) -> StoredJob | None:
        """Return the job that was accepted with an idempotency key."""
        return self._one(f"SELECT {_COLUMNS} FROM jobs WHERE idempotency_key = ?", key)  # noqa: S608 - constants

    def latest(self, *, count: int, before: int | None, state: JobState | None) -> list[StoredJob]:
        """Return up to `count` jobs, the latest first, of those below the number `before`."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE (? IS NULL OR sequence < ?) AND (? IS NULL OR state = ?) "  # noqa: S608
            "ORDER BY sequence DESC LIMIT ?",
            (before, before, state, state, count),
        )
        return [StoredJob.of_row(row) for row in rows]

    def unfinished(self) -> list[StoredJob]:
        """Return all jobs that wait or run, the oldest first."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE finished_s IS NULL ORDER BY sequence"  # noqa: S608 - constants
        )
        return [StoredJob.of_row(row) for row in rows]

    def request_of(self, job_id: str) -> bytes:
        """Return the request of a job."""
        row = self._connection.execute("SELECT request FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return zlib.decompress(row[0])

    def result_of(self, job_id: str) -> bytes | None:
        """Return the document that answers a job, if there is one."""
        row = self._connection.execute("SELECT result FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None or row[0] is None else zlib.decompress(row[0])

    def events_of(self, job_id: str) -> list[dict[str, Any]]:
        """Return what happened in a job that has finished."""
        row = self._connection.execute("SELECT events FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return [] if row is None or row[0] is None else list(json.loads(zlib.decompress(row[0])))

    def check(self) -> None:
        """Raise sqlite3.Error unless the database can be read and written."""
        with self._connection as transaction:
            transaction.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            transaction.execute("SELECT count(*) FROM jobs WHERE state = 'accepted'").fetchone()

    def _known(self, job_id: str) -> StoredJob:
        job = self.get(job_id)
        assert job is not None
        return job

    def _one(self, query: str, value: str) -> StoredJob | None:
        row = self._connection.execute(query, (value,)).fetchone()
        return None if row is None else StoredJob.of_row(row)


def connect(path: Path) -> sqlite3.Connection:
    """Open the database, or make it.

    Every commit waits for the disk: what is acknowledged is not lost with the power, either.
    """
    connection = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
