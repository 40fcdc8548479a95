"""The database of jobs: rules of its own, and what is left of it after damage."""

import itertools
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from placer.service.job_store import FILE_NAME, JobEnd, JobStore, NewJob
from placer.service.salvage import sound_database


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """Return a database whose clock counts."""
    clock = itertools.count(1)
    made = JobStore(tmp_path, lambda: float(next(clock)))
    yield made
    made.close()


def _new(number: int, *, key: str | None = None, size: int = 10) -> NewJob:
    # Nothing that could be compressed: sizes on disk are these.
    request = random.Random(number).randbytes(size)  # noqa: S311 - no secret
    return NewJob(f"{number:032x}", "solve", request, f"digest-{number}", key)


def test_a_key_has_one_job(store: JobStore) -> None:
    """Whoever comes second gets the first one's."""
    first = store.add(_new(1, key="k"))
    assert store.add(_new(2, key="k")) == first
    assert store.get(_new(2).id) is None


def test_finished_jobs_beyond_the_limit_are_forgotten_the_oldest_first(store: JobStore) -> None:
    """Those that wait or run are never."""
    for number in range(6):
        store.add(_new(number))
    for number in (3, 1, 2, 0):
        store.finish(_new(number).id, JobEnd("succeeded", 0, result=b"{}"), keep=2)
    assert [int(job.id, 16) for job in store.latest(count=10, before=None, state=None)] == [5, 4, 2, 0]
    assert [int(job.id, 16) for job in store.unfinished()] == [4, 5]


def test_documents_come_back_as_they_were(store: JobStore) -> None:
    """Requests, results, events and errors."""
    job = _new(1, size=5000)
    store.add(job)
    store.start(job.id)
    events = ({"id": 1, "kind": "phase", "phase": "solve"},)
    store.finish(job.id, JobEnd("failed", 2, {"status": 422}, b"result", events), keep=10)
    assert store.request_of(job.id) == job.request
    assert store.result_of(job.id) == b"result"
    assert store.events_of(job.id) == list(events)
    ended = store.get(job.id)
    assert ended is not None
    assert (ended.state, ended.error, ended.num_starts, ended.has_result) == ("failed", {"status": 422}, 1, True)


def test_a_sound_database_is_left_alone(tmp_path: Path, store: JobStore) -> None:
    """Nothing is moved, and a folder without one is fine."""
    store.add(_new(1))
    assert sound_database(tmp_path) is None
    assert sound_database(tmp_path / "empty") is None
    assert [path.name for path in tmp_path.iterdir() if "damaged" in path.name] == []


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_of_a_truncated_database_what_can_be_read_goes_on(tmp_path: Path, share: float) -> None:
    """The damaged file stays, and the new one has whole jobs only."""
    store = JobStore(tmp_path, lambda: 1.0)
    jobs = [_new(number, size=3000) for number in range(60)]
    for job in jobs:
        store.add(job)
    store.close()
    path = tmp_path / FILE_NAME
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share) // 4096 * 4096)
    num_saved = sound_database(tmp_path)
    assert num_saved is not None
    assert 0 < num_saved < len(jobs)
    assert [entry for entry in tmp_path.iterdir() if "damaged" in entry.name]
    again = JobStore(tmp_path, lambda: 2.0)
    saved = again.unfinished()
    assert len(saved) == num_saved
    requests = {job.id: job.request for job in jobs}
    assert all(again.request_of(job.id) == requests[job.id] for job in saved)
    again.add(_new(100))
    again.close()


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look like one" * 100])
def test_a_file_that_is_no_database_is_put_aside(tmp_path: Path, content: bytes) -> None:
    """An empty file is an empty database."""
    (tmp_path / FILE_NAME).write_bytes(content)
    assert sound_database(tmp_path) == (0 if content else None)
    store = JobStore(tmp_path, lambda: 1.0)
    assert store.unfinished() == []
    store.close()


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """What was there can be read, and there is no half of a job."""
    store = JobStore(tmp_path, lambda: 1.0)
    store.add(_new(1))
    store._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.add(_new(2, size=100_000))
    kept = store.latest(count=300, before=None, state=None)
    assert all(len(store.request_of(job.id)) >= 10 for job in kept)
    store.check()
    store.close()
