"""The worker processes: as many as were asked for, each replaced when it ends."""

from __future__ import annotations

import asyncio
import logging

from placer.service.jobs import Jobs
from placer.service.metrics import Metrics
from placer.service.settings import ServiceSettings
from placer.service.worker_process import SERVICE_ENDS, WorkerProcess

logger = logging.getLogger("placer.service")

# Between starts of a process that does not become ready.
_LONGEST_PAUSE_S = 30.0
_IDLE_CHECK_S = 1.0


class Pool:
    """The workers of a service.

    Attributes
    ----------
    num_ready
        Processes that work, or wait for work.
    """

    def __init__(self, jobs: Jobs, settings: ServiceSettings, metrics: Metrics) -> None:
        self._jobs = jobs
        self._settings = settings
        self._metrics = metrics
        self._slots: list[asyncio.Task[None]] = []
        self._workers: set[WorkerProcess] = set()
        self.num_ready = 0

    def start(self) -> None:
        """Start all processes."""
        self._slots = [asyncio.create_task(self._keep_one()) for _ in range(self._settings.workers)]

    async def stop(self) -> None:
        """Let running jobs come to their end for a while, then cut them short; they wait again, and nothing is left."""
        await self._jobs.drain()
        _, late = await asyncio.wait(self._slots, timeout=self._settings.grace_s) if self._slots else (None, None)
        if late:
            self._jobs.interrupt_all()
            _, late = await asyncio.wait(late, timeout=2.0)
            for worker in self._workers:
                worker.kill(SERVICE_ENDS)
            if late:
                _, late = await asyncio.wait(late, timeout=5.0)
            for slot in late or ():
                slot.cancel()
            await asyncio.gather(*self._slots, return_exceptions=True)
        for worker in list(self._workers):
            worker.kill(SERVICE_ENDS)
            await worker.wait()

    def hurry(self) -> None:
        """Cut short what runs now, while `stop` waits for it."""
        for worker in self._workers:
            worker.kill(SERVICE_ENDS)

    async def _keep_one(self) -> None:
        """Have one worker work, and another one after it."""
        pause_s = 0.5
        while not self._jobs.is_draining:
            try:
                worker = await WorkerProcess.start(self._settings)
            except (OSError, RuntimeError, TimeoutError):
                logger.exception("a worker process did not start")
                self._metrics.worker_ends.labels("did not start").inc()
                await asyncio.sleep(pause_s)
                pause_s = min(2.0 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = 0.5
            self._workers.add(worker)
            self._set_ready(1)
            try:
                while worker.is_usable and not self._jobs.is_draining:
                    await self._do_next(worker)
            except Exception:
                logger.exception("what keeps a worker process failed")
            finally:
                self._set_ready(-1)
                worker.kill("ended")
                self._workers.discard(worker)
                self._metrics.worker_ends.labels(worker.end_reason).inc()
            await worker.wait()

    async def _do_next(self, worker: WorkerProcess) -> None:
        """Have the worker do the next job, when there is one and while there is the worker."""
        if not await self._jobs.wait_for_work(_IDLE_CHECK_S) or not worker.is_usable:
            return
        if (assignment := await self._jobs.begin_next(worker.interrupt)) is None:
            return
        answer = await worker.do(assignment, lambda record: self._jobs.hear(assignment.job_id, record))
        await self._jobs.done(assignment, answer)

    def _set_ready(self, change: int) -> None:
        self.num_ready += change
        self._metrics.workers.set(self.num_ready)
