"""Many clients at once for minutes: what was accepted is finished, once; how long it takes; how much memory it needs.

``python -m benchmarks.service_load [--clients 50] [--minutes 10] [--workers 2] [--smoke] [--json]``

Each client submits a job with a key of its own, submits it again with the same key now and then, follows it until it
has ended, and goes on with the next one. Every tenth client asks for the plan of 400 adapters
(`examples/azure-llama-400.yaml`), the others for that of four. A full queue answers 429: the client waits as long as it
is told, and asks again with the same key. In the end all clients finish what was accepted, and the service's own list
of jobs is compared with what the clients know. The exit status is 1 when a job is lost, duplicated or was begun twice,
or an answer is 500 or above.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from placer.files import read_document
from tests.placer.service_process import RunningService, running_service
from tests.placer.small_fleets import small_data

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "azure-llama-400.yaml"
LARGE_EVERY = 10
AGAIN_EVERY = 4
POLL_S = 0.5
SAMPLE_S = 5.0
MIB = 2**20


@dataclass
class Load:
    """What the clients saw.

    Attributes
    ----------
    keys
        Of every submission that was accepted, the identifiers of jobs that it was answered with.
    latencies_s
        From the first submission to the end of the job, of each size.
    answers
        By status.
    memory
        (seconds, MiB of the server, MiB of its workers) over time.
    """

    keys: dict[str, set[str]] = field(default_factory=dict)
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    latencies_s: dict[str, list[float]] = field(default_factory=lambda: {"400 adapters": [], "4 adapters": []})
    answers: Counter[int] = field(default_factory=Counter)
    memory: list[tuple[float, float, float]] = field(default_factory=list)


def bodies() -> dict[str, dict[str, Any]]:
    """Return the requests by the name of their size."""
    data, _ = read_document(EXAMPLE)
    return {
        "400 adapters": {"problem": data, "options": {"solver": "bfd", "improve": False}},
        "4 adapters": {
            "problem": small_data(num_adapters=4, total_rps=8.0),
            "options": {"solver": "bfd", "horizon_s": 60, "warmup_s": 10},
        },
    }


async def client(number: int, load: Load, http: httpx.AsyncClient, contents: dict[str, bytes], until_s: float) -> None:
    """Be one client until the time is over, and then until its last job has ended."""
    size = "400 adapters" if number % LARGE_EVERY == 0 else "4 adapters"
    serial = 0
    while time.monotonic() < until_s:
        key, started_s = f"client-{number}-{serial}", time.monotonic()
        serial += 1
        job_id = await _submit(load, http, contents[size], key, until_s)
        if job_id is None:
            return
        if serial % AGAIN_EVERY == 0:
            await _submit(load, http, contents[size], key, until_s)
        job = await _finished(load, http, job_id)
        load.finished[job_id] = job
        load.latencies_s[size].append(time.monotonic() - started_s)


async def _submit(load: Load, http: httpx.AsyncClient, content: bytes, key: str, until_s: float) -> str | None:
    """Return the job of a request; None where the queue was full until the end."""
    while True:
        headers = {"Idempotency-Key": key, "content-type": "application/json"}
        answer = await http.post("/v1/solve", params={"deadline_s": 0}, content=content, headers=headers)
        load.answers[answer.status_code] += 1
        if answer.status_code in {200, 202}:
            # A job that has ended already is answered with its document; the place of the job is in the header.
            job_id = answer.headers["location"].rpartition("/")[2]
            load.keys.setdefault(key, set()).add(job_id)
            return job_id
        if answer.status_code != 429:
            raise RuntimeError(f"{answer.status_code}: {answer.text[:500]}")
        if time.monotonic() > until_s:
            return None
        await asyncio.sleep(float(answer.headers["retry-after"]))


async def _finished(load: Load, http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    while True:
        answer = await http.get(f"/v1/jobs/{job_id}")
        load.answers[answer.status_code] += 1
        job: dict[str, Any] = answer.raise_for_status().json()
        if job["state"] in {"succeeded", "failed", "cancelled"}:
            return job
        await asyncio.sleep(POLL_S)


async def watch_memory(load: Load, pid: int) -> None:
    """Note the resident memory of the server and its workers every `SAMPLE_S`."""
    started_s = time.monotonic()
    while True:
        workers = sum(_resident_mib(child) for child in _descendants(pid))
        load.memory.append((time.monotonic() - started_s, _resident_mib(pid), workers))
        await asyncio.sleep(SAMPLE_S)


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that these did."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text(encoding="ascii").split()):
                found += [child, *_descendants(child)]
    return found


def _resident_mib(pid: int) -> float:
    """Return the resident memory of a process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB
    return 0.0


async def run(service: RunningService, *, clients: int, seconds: float) -> Load:
    """Return what came of the load."""
    load = Load()
    contents = {name: json.dumps(body).encode("utf-8") for name, body in bodies().items()}
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=service.url, timeout=120.0, limits=limits) as http:
        watching = asyncio.create_task(watch_memory(load, service.process.pid))
        until_s = time.monotonic() + seconds
        await asyncio.gather(*(client(number, load, http, contents, until_s) for number in range(clients)))
        watching.cancel()
    return load


def listed_jobs(service: RunningService) -> dict[str, dict[str, Any]]:
    """Return the service's own list of its jobs, by identifier."""
    jobs: dict[str, dict[str, Any]] = {}
    with service.client() as http:
        before: str | None = None
        while True:
            query: dict[str, str | int] = {"count": 100} if before is None else {"count": 100, "before": before}
            page = http.get("/v1/jobs", params=query).raise_for_status().json()
            jobs |= {job["id"]: job for job in page["jobs"]}
            before = page["next_before"]
            if before is None:
                return jobs


def figures(load: Load, jobs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of a load, and what must be 0."""
    accepted = {job_id for ids in load.keys.values() for job_id in ids}
    finished = {job_id for job_id, job in jobs.items() if job["state"] == "succeeded"}
    memory = np.array(load.memory)
    late = memory[len(memory) // 2 :]
    return {
        "submissions": sum(count for status, count in load.answers.items() if status in {202, 429}),
        "accepted": len(accepted),
        "finished": len(finished & accepted),
        "lost": len(accepted - finished),
        "duplicated": sum(len(ids) > 1 for ids in load.keys.values()) + len(jobs.keys() - accepted),
        "begun twice": sum(job["num_starts"] != 1 for job in jobs.values()),
        "answers 429": load.answers[429],
        "answers 500 or above": sum(count for status, count in load.answers.items() if status >= 500),
        **{
            f"{name}, {label} (s)": round(float(np.quantile(seconds, share)), 2)
            for name, seconds in load.latencies_s.items()
            if seconds
            for label, share in (("p50", 0.5), ("p95", 0.95))
        },
        **{f"{name}, jobs": len(seconds) for name, seconds in load.latencies_s.items()},
        "server, first (MiB)": round(float(memory[0, 1])),
        "server, most (MiB)": round(float(memory[:, 1].max())),
        "server, most in the second half (MiB)": round(float(late[:, 1].max())),
        "workers, most (MiB)": round(float(memory[:, 2].max())),
        "workers, most in the second half (MiB)": round(float(late[:, 2].max())),
        "load average of the machine": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    """Load a service, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--queue", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="12 clients for 8 seconds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    clients, seconds = (12, 8.0) if arguments.smoke else (arguments.clients, 60.0 * arguments.minutes)
    queue = 4 if arguments.smoke else arguments.queue
    options = ("--workers", str(arguments.workers), "--queue", str(queue))
    with (
        tempfile.TemporaryDirectory(prefix="placer-load-") as folder,
        running_service(Path(folder) / "data", *options) as service,
    ):
        load = asyncio.run(run(service, clients=clients, seconds=seconds))
        found = figures(load, listed_jobs(service))
        status = service.terminate()
    found["exit status"] = status
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in found.items())]))
    must_be_0 = ("lost", "duplicated", "begun twice", "answers 500 or above", "exit status")
    return int(any(found[name] for name in must_be_0))


if __name__ == "__main__":
    sys.exit(main())
