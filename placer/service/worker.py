"""A worker process: one job at a time, in a folder of its own, under limits that the kernel keeps.

Messages come on standard input and go to what was standard output; what libraries print goes to standard error. The
process ends with its input: when the service is gone, so are its workers, whatever they do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from placer.events import PlanEvent
from placer.service.documents import ErrorDetails
from placer.service.error_details import details_of, error_details, exit_code_of_error
from placer.service.event_records import Thinning, event_record
from placer.service.frames import Frame, read_frame
from placer.service.operations import Work, perform
from twin.errors import PlacerError

logger = logging.getLogger("placer.service.worker")

# A job that makes the caches warm: its answer is thrown away.
_WARM_UP: dict[str, Any] = {
    "problem": {
        "model": "llama-3.1-8b",
        "gpu_types": [
            {"name": "h100-64gb", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": "llama-3.1-8b-h100-64gb"}
        ],
        "adapters": [
            {
                "name": f"warm-{index}",
                "rank": 8,
                "rate_rps": 0.1,
                "prompt_tokens": {"mean": 100},
                "output_tokens": {"mean": 50},
            }
            for index in range(2)
        ],
    },
    "options": {"max_evaluations": 50, "horizon_s": 60, "warmup_s": 10},
}


@dataclass(frozen=True)
class Limits:
    """Of every job of a worker: bytes of data of the process, seconds of processor time."""

    memory_bytes: int
    cpu_s: float


class Worker:
    """What the process does.

    Parameters
    ----------
    requests, answers
        Streams of frames.
    threads
        Of the simulations of a job.
    limits
        Of each job.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO, *, threads: int, limits: Limits) -> None:
        self._requests = requests
        self._answers = answers
        self._threads = threads
        self._limits = limits
        self._jobs: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._current: str | None = None
        self._to_interrupt: str | None = None
        self._is_interruptible = False
        self._main = threading.main_thread().ident

    def run(self) -> None:
        """Do jobs until the input ends, which ends the process."""
        signal.signal(signal.SIGINT, self._interrupted)
        for loop in (self._read, self._write):
            threading.Thread(target=loop, daemon=True).start()
        resource.setrlimit(resource.RLIMIT_DATA, (self._limits.memory_bytes,) * 2)
        self._warm_up()
        self._outgoing.put(Frame("ready", {"pid": os.getpid()}))
        while True:
            self._do(self._jobs.get())

    def _warm_up(self) -> None:
        try:
            with _own_folder() as folder:
                work = Work(_WARM_UP, folder, self._threads, None, lambda _: None, lambda _: None)
                perform("solve", work)
        except PlacerError:
            # Without it the first job is slow.
            logger.exception("the warm-up failed")

    def _do(self, frame: Frame) -> None:
        """Do one job and send what comes of it."""
        job: str = frame.fields["job"]
        self._allow_cpu(self._limits.cpu_s)
        self._outgoing.put(Frame("started", {"job": job}))
        try:
            self._current = job
            self._is_interruptible = True
            # An interrupt may have come before its job.
            is_ended = self._to_interrupt == job
            answer = Frame("interrupted", {"job": job}) if is_ended else self._answer(frame)
            self._is_interruptible = False
        except KeyboardInterrupt:
            answer = Frame("interrupted", {"job": job})
        finally:
            self._is_interruptible = False
            self._current = None
        self._outgoing.put(answer)

    def _answer(self, frame: Frame) -> Frame:
        job = frame.fields["job"]
        thinning = Thinning(lambda record: self._outgoing.put(Frame("event", {"job": job, "record": record})))

        def observe(event: PlanEvent) -> None:
            thinning(event_record(event))

        try:
            with _own_folder() as folder:
                request = json.loads(frame.body)
                solver_s = frame.fields["solver_s"]
                outcome = perform(
                    frame.fields["operation"], Work(request, folder, self._threads, solver_s, observe, thinning)
                )
        except PlacerError as error:
            return _failure(job, details_of(error))
        except OverflowError as error:
            details = error_details("bad-input", 422, f"a problem's numbers must be of this world. {error}.")
            return _failure(job, details)
        except MemoryError:
            return _failure(job, self._memory_details(), is_spent=True)
        except Exception as error:  # noqa: BLE001 - a bug fails its job, not the worker
            if isinstance(error, ValueError) and "array is too big" in str(error):
                # What NumPy says where not even the size of an array fits an int64.
                return _failure(job, self._memory_details(), is_spent=True)
            traceback.print_exc()
            details = error_details("bug", 500, f"this is a bug of placer: {type(error).__name__}: {error}")
            return _failure(job, details, is_spent=True)
        thinning.flush()
        fields = {"job": job, "exit_code": outcome.exit_code, "is_interrupted": outcome.is_interrupted}
        return Frame("result", fields, outcome.text.encode("utf-8", "backslashreplace"))

    def _memory_details(self) -> ErrorDetails:
        return error_details(
            "memory-limit",
            422,
            f"a job must do with {self._limits.memory_bytes >> 20:,} MiB of memory. This one takes more.",
            hint="look for a rate in another unit than requests per second, or simulate a shorter horizon",
        )

    def _allow_cpu(self, seconds: float) -> None:
        """Let the kernel end the process when this job has used its processor time."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))

    def _interrupted(self, *_: object) -> None:
        if self._is_interruptible:
            # Once: what ends a plan must not be interrupted in turn.
            self._is_interruptible = False
            raise KeyboardInterrupt

    def _read(self) -> None:
        """Take frames; the end of them is the end of this process and of what it started."""
        while (frame := read_frame(self._requests)) is not None:
            if frame.kind == "job":
                self._jobs.put(frame)
            elif frame.kind == "interrupt":
                self._to_interrupt = frame.fields["job"]
                if self._to_interrupt == self._current and self._main is not None:
                    signal.pthread_kill(self._main, signal.SIGINT)
        os.killpg(0, signal.SIGKILL)

    def _write(self) -> None:
        while True:
            frame = self._outgoing.get()
            try:
                self._answers.write(frame.encoded())
                self._answers.flush()
            except BaseException:
                # Whatever it is, such as no memory for a copy: one that cannot answer must not look as if it worked.
                os.killpg(0, signal.SIGKILL)
                raise


def _failure(job: str, details: ErrorDetails, *, is_spent: bool = False) -> Frame:
    """Return the message that a job failed; a spent worker is replaced."""
    fields = {
        "job": job,
        "error": details.model_dump(mode="json"),
        "exit_code": exit_code_of_error(details),
        "is_spent": is_spent,
    }
    return Frame("error", fields)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Make an empty folder the current one, and remove it afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="placer-job-", ignore_cleanup_errors=True) as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def main() -> None:
    """Work for the service that started this process: ``THREADS MEMORY_BYTES CPU_S`` are its arguments."""
    threads, memory_bytes, cpu_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What native libraries print must not come between frames, and nobody may read what is for us.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    Worker(requests, answers, threads=threads, limits=Limits(memory_bytes, cpu_s)).run()


if __name__ == "__main__":
    main()
