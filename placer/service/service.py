"""The service as one object: its database, its jobs and its workers, from start to end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path

from placer.service.job_store import JobStore
from placer.service.jobs import Jobs, now_s
from placer.service.metrics import Metrics
from placer.service.pool import Pool
from placer.service.salvage import sound_database
from placer.service.settings import ServiceSettings
from twin.errors import InputError

logger = logging.getLogger("placer.service")


class Service:
    """What answers requests.

    Parameters
    ----------
    settings
        How it runs.

    Attributes
    ----------
    jobs, pool
        There while it runs.
    num_streams
        Event streams and synchronous requests that are open.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.jobs: Jobs
        self.pool: Pool
        self.num_streams = 0
        self._lock: int | None = None
        self._stopping: asyncio.Task[None] | None = None

    def lock(self) -> None:
        """Make the folder of the database that of this service alone, until it is closed.

        Raises
        ------
        InputError
            When the folder cannot be written, or another service uses it.
        """
        if self._lock is None:
            self._lock = locked(self.settings.data_dir)

    async def start(self) -> None:
        """Open the database, take up what was not finished, and start the workers (InputError: see `lock`)."""
        self.lock()
        folder = self.settings.data_dir
        await asyncio.to_thread(sound_database, folder)
        store = JobStore(folder, now_s)
        self.jobs = Jobs(store, self.settings, self.metrics)
        self.pool = Pool(self.jobs, self.settings, self.metrics)
        await self.jobs.resume()
        self.pool.start()

    async def stop(self) -> None:
        """End in order; see `Pool.stop`. Whoever waits is told where things are. To be called as often as one likes."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    def hurry(self) -> None:
        """Give running jobs no more time, once `stop` was called: they are put back at once."""
        self.pool.hurry()

    async def close(self) -> None:
        """Close the database, after `stop`."""
        await self.jobs.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def reasons_not_ready(self) -> tuple[str, ...]:
        """Return why the service should not be given requests now; empty: it should."""
        await self.jobs.check()
        reasons = []
        if self.jobs.is_draining:
            reasons.append("the service is about to end")
        if self.jobs.store_error:
            reasons.append(f"the database cannot be used: {self.jobs.store_error}")
        if not self.pool.num_ready:
            reasons.append("no worker process is ready")
        return tuple(reasons)

    async def _stop(self) -> None:
        logger.info("the service ends: running jobs have %g s to finish", self.settings.grace_s)
        await self.pool.stop()
        self.jobs.stop()


def locked(folder: Path) -> int:
    """Return the descriptor of a file that only one service at a time can lock; the lock ends with the process.

    Raises
    ------
    InputError
        When the folder cannot be written, or another service has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(
            f"`--data-dir` must be a folder that can be written. {folder}: {error.strerror}.",
            file=str(folder),
            field="data_dir",
            value=str(folder),
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InputError(
            f"`--data-dir` must be used by one service at a time. Another one has {folder}.",
            file=str(folder),
            field="data_dir",
            value=str(folder),
            hint="give each service a folder of its own",
        ) from error
    return descriptor
