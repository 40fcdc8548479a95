"""A worker process as the service sees it: start it, give it a job, hear of it, interrupt it, kill it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from placer.service.documents import Operation
from placer.service.error_details import error_details
from placer.service.frames import Frame, receive_frame
from placer.service.settings import ServiceSettings

# To be ready: libraries are loaded, and perhaps the twin's engine is compiled.
_START_S = 300.0
# Between an interrupt and the end of the process.
KILL_AFTER_S = 10.0
_POLL_S = 0.25
# Reasons to kill a process that say nothing about its job.
DEAF = "deaf to an interrupt"
SERVICE_ENDS = "the service ends"


@dataclass(frozen=True)
class Assignment:
    """A job for a worker."""

    job_id: str
    operation: Operation
    request: bytes
    solver_s: float | None


@dataclass(frozen=True)
class Answer:
    """What came of a job.

    Attributes
    ----------
    result, error
        The document; what went wrong. Neither: it was interrupted, or did not begin.
    has_begun
        Whether the worker took the job at all.
    """

    result: bytes | None = None
    error: dict[str, Any] | None = None
    exit_code: int | None = None
    is_interrupted: bool = False
    has_begun: bool = True


class WorkerProcess:
    """A process that does one job at a time.

    Attributes
    ----------
    num_jobs
        That it was given so far.
    is_usable
        Whether it can be given another one.
    end_reason
        Why it is not.
    """

    def __init__(self, process: asyncio.subprocess.Process, settings: ServiceSettings) -> None:
        self._process = process
        self._settings = settings
        self._kill_at_s: float | None = None
        self._interrupt_at_s = 0.0
        self._is_out_of_time = False
        self._job: str | None = None
        self.num_jobs = 0
        self.end_reason = ""

    @classmethod
    async def start(cls, settings: ServiceSettings) -> WorkerProcess:
        """Start a process, and wait until it is ready.

        Raises
        ------
        RuntimeError
            When it is not.
        """
        limits = settings.limits
        arguments = [str(settings.threads), str(limits.memory_bytes), str(limits.cpu_s)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "placer.service.worker",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(settings.threads)},
        )
        worker = cls(process, settings)
        try:
            async with asyncio.timeout(_START_S):
                frame = await worker._receive()
        except BaseException:
            worker.kill("not ready")
            raise
        if frame is None:
            worker.kill("not ready")
            raise RuntimeError(f"a worker process ended with {await process.wait()} before it was ready")
        return worker

    @property
    def is_usable(self) -> bool:
        """Whether the process is there, and may do more."""
        return not self.end_reason and self._process.returncode is None

    async def do(self, assignment: Assignment, hear: Callable[[dict[str, Any]], None]) -> Answer:
        """Return what came of a job; `hear` is told what happens in it."""
        self._job, self._kill_at_s = assignment.job_id, None
        self._interrupt_at_s = time.monotonic() + self._settings.limits.wall_s
        self._is_out_of_time = has_begun = False
        self.num_jobs += 1
        fields = {"job": assignment.job_id, "operation": assignment.operation, "solver_s": assignment.solver_s}
        await self._send(Frame("job", fields, assignment.request))
        reading = asyncio.ensure_future(self._receive())
        try:
            while True:
                await asyncio.wait({reading}, timeout=_POLL_S)
                self._watch_time()
                if not reading.done():
                    continue
                frame = reading.result()
                if frame is None:
                    return await self._answer_of_the_dead(has_begun=has_begun)
                reading = asyncio.ensure_future(self._receive())
                if frame.fields.get("job") != assignment.job_id:
                    continue
                has_begun = True
                if frame.kind == "event":
                    hear(frame.fields["record"])
                elif frame.kind != "started":
                    return self._answer_of(frame)
        finally:
            self._job = None
            reading.cancel()

    def _watch_time(self) -> None:
        """Interrupt a job that takes too long, and kill the process when that does not help."""
        now_s = time.monotonic()
        if now_s > self._interrupt_at_s and not self._is_out_of_time:
            self._is_out_of_time = True
            self.interrupt()
        if self._kill_at_s is not None and now_s > self._kill_at_s:
            self.kill(DEAF)

    def interrupt(self) -> None:
        """Ask the worker to end its job with what it has; kill it when it does not."""
        if self._job is not None and self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + KILL_AFTER_S
            assert self._process.stdin is not None
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(Frame("interrupt", {"job": self._job}).encoded())

    def kill(self, reason: str) -> None:
        """End the process, and those that it started."""
        self.end_reason = self.end_reason or reason
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> None:
        """Wait for the end of the process."""
        await self._process.wait()

    def _answer_of(self, frame: Frame) -> Answer:
        if frame.fields.get("is_spent") or self.num_jobs >= self._settings.jobs_per_worker:
            self.kill("spent")
        if self._is_out_of_time and frame.kind == "interrupted":
            return Answer(error=self._wall_limit(), exit_code=6)
        if frame.kind == "interrupted":
            return Answer(is_interrupted=True)
        if frame.kind == "error":
            return Answer(error=frame.fields["error"], exit_code=frame.fields["exit_code"])
        return Answer(
            result=frame.body,
            exit_code=frame.fields["exit_code"],
            is_interrupted=frame.fields["is_interrupted"],
        )

    async def _answer_of_the_dead(self, *, has_begun: bool) -> Answer:
        code = await self._process.wait()
        reason = self.end_reason or f"signal {-code}" if code < 0 else self.end_reason or f"exit {code}"
        self.kill(reason)
        if not has_begun:
            return Answer(has_begun=False)
        if self._is_out_of_time:
            return Answer(error=self._wall_limit(), exit_code=6)
        if reason in {DEAF, SERVICE_ENDS}:
            return Answer(is_interrupted=True)
        if code == -signal.SIGXCPU:
            self.end_reason = "CPU limit"
            return Answer(error=self._limit("cpu-limit", self._settings.limits.cpu_s, "of processor time"), exit_code=6)
        details = error_details(
            "worker-died",
            500,
            f"a job must leave its worker process alive. This one's ended with {reason}.",
            hint="submit it again; if that ends the same way, it may take more memory than there is",
        )
        return Answer(error=details.model_dump(mode="json"), exit_code=6)

    def _wall_limit(self) -> dict[str, Any]:
        return self._limit("time-limit", self._settings.limits.wall_s, "")

    def _limit(self, kind: str, seconds: float, of_what: str) -> dict[str, Any]:
        return error_details(
            kind,
            422,
            f"a job must end within {seconds:g} s{f' {of_what}' if of_what else ''} on this server. This one did not.",
            hint="give a smaller budget_s, a shorter horizon_s or fewer scenarios",
        ).model_dump(mode="json")

    async def _receive(self) -> Frame | None:
        assert self._process.stdout is not None
        return await receive_frame(self._process.stdout)

    async def _send(self, frame: Frame) -> None:
        assert self._process.stdin is not None
        # That the process is gone is heard from its output.
        with contextlib.suppress(OSError):
            self._process.stdin.write(frame.encoded())
            await self._process.stdin.drain()
