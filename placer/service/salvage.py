"""A database that was damaged: put it aside, and take from it every job that can still be read."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from placer.service.job_store import FILE_NAME, connect

logger = logging.getLogger("placer.service")

_SUFFIXES = ("", "-wal", "-shm")


def sound_database(folder: Path) -> int | None:
    """Make sure that the database of a folder is sound.

    A damaged one stays under another name, and a new one has the jobs that can be read in it: of a file that was cut
    off, those whose pages lie before the cut.

    Returns
    -------
    Jobs that were taken over; ``None``: the database is sound, or there is none.
    """
    path = folder / FILE_NAME
    if not path.exists() or _is_sound(path):
        return None
    aside = folder / f"{FILE_NAME}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    for suffix in _SUFFIXES:
        part = folder / f"{FILE_NAME}{suffix}"
        if part.exists():
            part.rename(folder / f"{aside.name}{suffix}")
    num_saved = _copy(aside, path)
    logger.error("the database was damaged: it is kept as %s, and %d of its jobs were taken over", aside, num_saved)
    return num_saved


def _is_sound(path: Path) -> bool:
    try:
        connection = connect(path)
    except sqlite3.DatabaseError as error:
        if _is_about_the_disk(error):
            raise
        return False
    try:
        return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.DatabaseError as error:
        if _is_about_the_disk(error):
            raise
        return False
    finally:
        connection.close()


def _is_about_the_disk(error: sqlite3.DatabaseError) -> bool:
    """Return whether an error says nothing about the content: the disk is full, or another process has the file."""
    return isinstance(error, sqlite3.OperationalError) and any(
        words in str(error) for words in ("full", "locked", "readonly", "unable to open")
    )


def _copy(damaged: Path, path: Path) -> int:
    """Copy rows one by one into a new database; return how many could be read."""
    target = connect(path)
    num_saved = 0
    try:
        source = sqlite3.connect(damaged)
        # Otherwise SQLite reads nothing of a file that is shorter than it says.
        source.execute("PRAGMA writable_schema = ON")
    except sqlite3.DatabaseError:
        target.close()
        return 0
    try:
        names = [row[1] for row in target.execute("PRAGMA table_info(jobs)")]
        for sequence in _sequences(source):
            try:
                columns = ", ".join(names)
                query = f"SELECT {columns} FROM jobs WHERE sequence = ?"  # noqa: S608 - names of our own schema
                row = source.execute(query, (sequence,)).fetchone()
                if row is None:
                    continue
                marks = ", ".join("?" * len(names))
                with target as transaction:
                    transaction.execute(f"INSERT INTO jobs ({columns}) VALUES ({marks})", row)  # noqa: S608 - see above
                num_saved += 1
            except sqlite3.DatabaseError:
                continue
    finally:
        source.close()
        target.close()
    return num_saved


def _sequences(source: sqlite3.Connection) -> list[int]:
    """Return the numbers of jobs that may be readable: what an index says, or all up to the last that is known."""
    try:
        return [row[0] for row in source.execute("SELECT sequence FROM jobs NOT INDEXED ORDER BY sequence")]
    except sqlite3.DatabaseError:
        pass
    try:
        last = source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    except sqlite3.DatabaseError:
        return []
    return [] if last is None else list(range(1, int(last[0]) + 1))
