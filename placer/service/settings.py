"""How the service runs, and every limit that it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class JobLimits:
    """What one request may ask for, and what its job may take.

    Attributes
    ----------
    body_bytes
        Of a request.
    adapters
        Of a problem, also of one that is derived from a trace or enlarged by a scenario.
    trace_bytes, trace_requests
        Of the files that come with a problem, together; lines of them, each replicated as the problem says.
    scenarios
        Of a what-if study, and sets of rates of a problem.
    budget_s, horizon_s
        Most seconds that a solver may be given, and simulated seconds.
    deadline_s
        Longest wait for a synchronous answer.
    cpu_s, wall_s
        Processor time and time of a job: it is stopped at either.
    memory_bytes
        Data of a worker process.
    """

    body_bytes: int = 16 * MIB
    adapters: int = 10_000
    trace_bytes: int = 8 * MIB
    trace_requests: int = 200_000
    scenarios: int = 200
    budget_s: float = 300.0
    horizon_s: float = 7_200.0
    deadline_s: float = 600.0
    cpu_s: float = 900.0
    wall_s: float = 900.0
    memory_bytes: int = 4096 * MIB


@dataclass(frozen=True)
class ServiceSettings:
    """How the service runs.

    Attributes
    ----------
    data_dir
        Folder of the database.
    workers
        Worker processes: jobs at a time.
    threads
        Of the simulations of one job.
    queue
        Jobs that may wait for a worker.
    keep_jobs
        Finished jobs that are kept, the latest.
    tokens
        Any of which a request must bear; empty: none is asked for.
    grace_s
        What running jobs get to finish when the service ends.
    body_s, send_s
        Within which the body of a request must have come, and a part of an answer must be taken.
    streams
        Event streams and synchronous requests that may be open at a time.
    jobs_per_worker
        After which a worker process is replaced.
    most_starts
        How often a job is begun, when the service or its worker before it goes away in the middle.
    """

    data_dir: Path
    workers: int = 1
    threads: int = 1
    queue: int = 100
    keep_jobs: int = 10_000
    tokens: tuple[str, ...] = ()
    grace_s: float = 20.0
    body_s: float = 30.0
    send_s: float = 30.0
    streams: int = 500
    jobs_per_worker: int = 500
    most_starts: int = 3
    limits: JobLimits = field(default_factory=JobLimits)
