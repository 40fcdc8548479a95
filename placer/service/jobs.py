"""Jobs from acceptance to their end: the queue, who waits, who runs, and what is kept of them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from placer.service.documents import FINISHED, JobState, Operation
from placer.service.error_details import error_details, refused
from placer.service.job_feed import JobFeed
from placer.service.job_store import JobEnd, JobStore, NewJob, StoredJob
from placer.service.metrics import Metrics
from placer.service.settings import ServiceSettings
from placer.service.worker_process import Answer, Assignment

logger = logging.getLogger("placer.service")
T = TypeVar("T")

_STORE_RETRY_S = 2.0
_LONGEST_RETRY_S = 60


class Jobs:
    """All jobs of a service.

    Its methods run in the event loop; the database is asked in one thread of its own.

    Attributes
    ----------
    is_draining
        Nothing is accepted or begun any more.
    has_stopped
        Nothing runs any more.
    store_error
        Why the database cannot be used now; empty: it can.
    """

    def __init__(self, store: JobStore, settings: ServiceSettings, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._database = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._queue: deque[str] = deque()
        self._queue_changed = asyncio.Condition()
        self._feeds: dict[str, JobFeed] = {}
        self._interrupts: dict[str, Callable[[], None]] = {}
        self._cancelled: set[str] = set()
        self._reserved = 0
        self._mean_s = 5.0
        self.is_draining = False
        self.has_stopped = False
        self.store_error = ""

    async def resume(self) -> None:
        """Take up the jobs that a service before this one had accepted and not finished, the oldest first."""
        for job in await self._ask(self._store.unfinished):
            self._feeds[job.id] = JobFeed()
            if job.is_cancelling:
                await self._finish(job, JobEnd("cancelled"))
            elif job.state == "running" and job.num_starts >= self._settings.most_starts:
                await self._finish(job, JobEnd("failed", 6, _often_started(job).model_dump(mode="json")))
            else:
                if job.state == "running":
                    await self._ask(partial(self._store.put_back, job.id, is_counted=True))
                    self._metrics.resumed.inc()
                self._queue.append(job.id)
        self._count()

    async def submit(
        self, operation: Operation, request: bytes, *, digest: str, key: str | None, solver_s: float | None
    ) -> StoredJob:
        """Accept a job: it is on disk when this returns.

        Raises
        ------
        RequestRefusedError
            When the queue is full (429), the service ends or its database cannot be written (503), or the key was
            used for another request (422).
        """
        if key is not None and (known := await self._ask(partial(self._store.with_key, key))) is not None:
            return _same(known, digest)
        if self.is_draining:
            raise self._refused("draining", 503, "the service must not be about to end. It is.", retry_after_s=10)
        if len(self._queue) + self._reserved >= self._settings.queue:
            raise self._refused(
                "queue-full",
                429,
                f"at most {self._settings.queue} jobs may wait. So many do.",
                retry_after_s=self._retry_after_s(),
            )
        self._reserved += 1
        try:
            new = NewJob(secrets.token_hex(16), operation, request, digest, key, solver_s)
            # Once begun it is done, also when whoever asked has gone: what is on disk must be in the queue, too.
            return await asyncio.shield(self._accept(new))
        finally:
            self._reserved -= 1

    async def _accept(self, new: NewJob) -> StoredJob:
        job = await self._ask(partial(self._store.add, new))
        if job.id != new.id:
            return _same(job, new.digest)
        self._metrics.accepted.labels(new.operation).inc()
        self._feeds[job.id] = JobFeed()
        await self._enqueue(job.id)
        return job

    async def cancel(self, job_id: str) -> StoredJob:
        """End a job: at once when it waits, soon when it runs; one that has finished stays as it is."""
        job = await self.get(job_id)
        if job.state in FINISHED or job.is_cancelling:
            return job
        job = await self._ask(partial(self._store.mark_cancelling, job_id))
        if job_id in self._feeds:
            self._cancelled.add(job_id)
        if job_id in self._queue:
            self._queue.remove(job_id)
            self._count()
            return await self._finish(job, JobEnd("cancelled"))
        if (interrupt := self._interrupts.get(job_id)) is not None:
            interrupt()
        return job

    async def get(self, job_id: str) -> StoredJob:
        """Return a job (RequestRefusedError, 404, when there is none)."""
        job = await self._ask(partial(self._store.get, job_id))
        if job is None:
            raise refused(
                "no-such-job",
                404,
                f"a job must be one that is kept. Got {job_id[:80]!r}.",
                hint="finished jobs are forgotten when there are many newer ones",
            )
        return job

    async def latest(self, *, count: int, before: int | None, state: JobState | None) -> list[StoredJob]:
        """Return jobs, the latest first."""
        return await self._ask(partial(self._store.latest, count=count, before=before, state=state))

    async def result_of(self, job_id: str) -> bytes | None:
        """Return the document that answers a job, if there is one."""
        return await self._ask(partial(self._store.result_of, job_id))

    async def events_of(self, job_id: str) -> list[dict[str, Any]]:
        """Return the events of a job that has finished."""
        return await self._ask(partial(self._store.events_of, job_id))

    def feed_of(self, job_id: str) -> JobFeed | None:
        """Return what a job that has not finished does; ``None``: it has."""
        return self._feeds.get(job_id)

    def position_of(self, job_id: str) -> int | None:
        """Return how many jobs are before one that waits."""
        try:
            return self._queue.index(job_id)
        except ValueError:
            return None

    async def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until a job waits or the service ends, or the time is over; return whether a job is to be begun."""
        try:
            async with asyncio.timeout(timeout_s), self._queue_changed:
                await self._queue_changed.wait_for(lambda: self._queue or self.is_draining)
        except TimeoutError:
            return False
        return bool(self._queue) and not self.is_draining

    async def begin_next(self, interrupt: Callable[[], None]) -> Assignment | None:
        """Begin the job that waits longest; ``None``: there is none any more.

        Parameters
        ----------
        interrupt
            Called when it is to end.
        """
        if not self._queue or self.is_draining:
            return None
        job_id = self._queue.popleft()
        self._interrupts[job_id] = interrupt
        self._count()
        job = await self._insist(partial(self._store.start, job_id))
        try:
            request = await self._insist(partial(self._store.request_of, job_id))
        except zlib.error as error:
            await self._finish(job, JobEnd("failed", 6, _unreadable(error).model_dump(mode="json")))
            return None
        if job.is_cancelling or job_id in self._cancelled:
            await self._finish(job, JobEnd("cancelled"))
            return None
        self._metrics.waiting_s.observe(max(0.0, (job.started_s or job.submitted_s) - job.submitted_s))
        feed = self._feeds[job_id]
        feed.begin(job.started_s or now_s())
        feed.hear({"kind": "state", "state": "running"})
        return Assignment(job_id, job.operation, request, job.solver_s)

    def hear(self, job_id: str, record: dict[str, Any]) -> None:
        """Keep what happens in a job that runs."""
        self._feeds[job_id].hear(record)

    async def done(self, assignment: Assignment, answer: Answer) -> None:
        """Keep what came of a job; one that did not begin, or that the end of the service cut short, waits again."""
        job = await self._insist(partial(self._store.get, assignment.job_id))
        assert job is not None
        is_cut = answer.is_interrupted and not job.is_cancelling and self.is_draining
        if is_cut or not answer.has_begun:
            await self.put_back(assignment.job_id, is_counted=not is_cut)
        elif answer.is_interrupted and job.is_cancelling:
            await self._finish(job, JobEnd("cancelled", None, None, answer.result, self._events(job.id)))
        elif answer.result is not None:
            await self._finish(job, JobEnd("succeeded", answer.exit_code, None, answer.result, self._events(job.id)))
        elif job.is_cancelling:
            await self._finish(job, JobEnd("cancelled", events=self._events(job.id)))
        else:
            error = answer.error or error_details("interrupted", 500, "a job must not be interrupted.").model_dump()
            await self._finish(job, JobEnd("failed", answer.exit_code, error, None, self._events(job.id)))

    async def put_back(self, job_id: str, *, is_counted: bool) -> None:
        """Let a job that was begun wait again, before all others."""
        self._interrupts.pop(job_id, None)
        job = await self._insist(partial(self._store.put_back, job_id, is_counted=is_counted))
        if job.num_starts >= self._settings.most_starts:
            await self._finish(job, JobEnd("failed", 6, _often_started(job).model_dump(mode="json")))
            return
        self._metrics.resumed.inc()
        self._feeds[job_id].hear({"kind": "state", "state": "accepted"})
        await self._enqueue(job_id, is_first=True)

    async def drain(self) -> None:
        """Accept and begin nothing any more."""
        self.is_draining = True
        async with self._queue_changed:
            self._queue_changed.notify_all()

    def stop(self) -> None:
        """Let nobody wait for a job any more: the service ends."""
        self.has_stopped = True
        for feed in self._feeds.values():
            feed.notify()

    def interrupt_all(self) -> None:
        """Ask every job that runs to end."""
        for interrupt in list(self._interrupts.values()):
            interrupt()

    @property
    def num_running(self) -> int:
        """Jobs that run."""
        return len(self._interrupts)

    async def check(self) -> None:
        """Find out whether the database can be used."""
        try:
            await self._ask(self._store.check)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is reported
            self.store_error = self.store_error or str(error)

    async def close(self) -> None:
        """Close the database."""
        await asyncio.get_running_loop().run_in_executor(self._database, self._store.close)
        self._database.shutdown()

    def _events(self, job_id: str) -> tuple[dict[str, Any], ...]:
        return self._feeds[job_id].all()

    async def _enqueue(self, job_id: str, *, is_first: bool = False) -> None:
        async with self._queue_changed:
            self._queue.appendleft(job_id) if is_first else self._queue.append(job_id)
            self._queue_changed.notify()
        self._count()

    async def _finish(self, job: StoredJob, end: JobEnd) -> StoredJob:
        """Keep how a job ended. While the disk is full it is tried again: nobody is told what is not kept."""
        ended = await self._insist(partial(self._store.finish, job.id, end, keep=self._settings.keep_jobs))
        self._interrupts.pop(job.id, None)
        self._cancelled.discard(job.id)
        self._metrics.finished.labels(job.operation, end.state).inc()
        if ended.started_s is not None and ended.finished_s is not None:
            seconds = max(0.0, ended.finished_s - ended.started_s)
            self._metrics.running_s.labels(job.operation).observe(seconds)
            self._mean_s += 0.1 * (seconds - self._mean_s)
        self._count()
        feed = self._feeds.pop(job.id, None)
        if feed is not None:
            feed.end()
        return ended

    async def _ask(self, question: Callable[[], T]) -> T:
        """Ask the database (RequestRefusedError, 503, when it cannot be used)."""
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._database, question)
        except sqlite3.Error as error:
            self._note_store_error(error)
            raise self._refused(
                "storage", 503, f"the service's database must be usable. It says: {error}.", retry_after_s=5
            ) from error
        self.store_error = ""
        return answer

    async def _insist(self, question: Callable[[], T]) -> T:
        """Ask the database until it answers."""
        while True:
            try:
                answer = await asyncio.get_running_loop().run_in_executor(self._database, question)
            except sqlite3.Error as error:
                self._note_store_error(error)
                await asyncio.sleep(_STORE_RETRY_S)
                continue
            self.store_error = ""
            return answer

    def _note_store_error(self, error: sqlite3.Error) -> None:
        if self.store_error != str(error):
            logger.error("the database cannot be used: %s", error)
        self.store_error = str(error)
        self._metrics.store_errors.inc()

    def _refused(self, kind: str, status: int, detail: str, *, retry_after_s: int) -> Exception:
        self._metrics.refused.labels(kind).inc()
        return refused(kind, status, detail, retry_after_s=retry_after_s)

    def _retry_after_s(self) -> int:
        """Return when a place in the queue is expected to be free."""
        return max(1, min(_LONGEST_RETRY_S, round(self._mean_s / self._settings.workers)))

    def _count(self) -> None:
        self._metrics.queue.set(len(self._queue))
        self._metrics.running.set(len(self._interrupts))


def _same(known: StoredJob, digest: str) -> StoredJob:
    """Return a job whose key is used again, if it is for the same."""
    if known.digest != digest:
        raise refused(
            "idempotency-key",
            422,
            "an idempotency key must be used for one request. This one was used for another.",
            field="Idempotency-Key",
            hint="make a new key for each request, and repeat it only to ask the same again",
        )
    return known


def _often_started(job: StoredJob) -> Any:
    return error_details(
        "often-started",
        500,
        f"a job must let the service live. This one was begun {job.num_starts} times, and never ended.",
    )


def _unreadable(error: zlib.error) -> Any:
    return error_details(
        "storage", 500, f"a job's request must be readable in the database. This one is damaged: {error}."
    )


def now_s() -> float:
    """Return the seconds since the epoch."""
    return time.time()
