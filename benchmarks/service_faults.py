"""Break the service in every way that machines and clients have, and see that nothing that was acknowledged is lost.

``python -m benchmarks.service_faults [--only NAME] [--smoke]``

Each fault is a scenario of its own with a fresh service: jobs are submitted, the fault happens, and every job that was
acknowledged must end in success. The table says how long the service, or its worker, was not ready. A scenario passes
when all of its jobs are there and the log has no traceback that nobody caught. The kill of a Dask worker is a test,
`tests/predictors/test_cluster.py`. The exit status is 1 when a scenario fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.placer.service_process import RunningService, wait_for
from tests.placer.small_fleets import small_data

NUM_JOBS = 6
ENDS_S = 240.0
TMPFS_MIB = 3
NUM_SLOW = 100
FINISHED = {"succeeded", "failed", "cancelled"}


class SkippedError(Exception):
    """A scenario cannot be made on this machine."""


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario: what was seen, and how long the service was not ready (None: it always was)."""

    seen: str
    away_s: float | None = None


Scenario = Callable[[Path], Outcome]


def body(seed: int = 0, *, num_adapters: int = 4) -> dict[str, Any]:
    """Return a request for a plan that takes a second or so."""
    options = {"solver": "bfd", "seed": seed, "horizon_s": 600, "warmup_s": 60}
    return {"problem": small_data(num_adapters=num_adapters, total_rps=2.0 * num_adapters), "options": options}


@contextmanager
def service_in(folder: Path, *options: str, workers: int = 1) -> Iterator[RunningService]:
    """Have a service that is ready, and nothing of it afterwards."""
    service = RunningService(folder, "--workers", str(workers), *options)
    try:
        service.wait_until_ready()
        yield service
    finally:
        if service.process.poll() is None:
            service.kill()


def submit(service: RunningService, number: int = NUM_JOBS) -> list[str]:
    """Return the jobs that the service acknowledged."""
    with service.client() as client:
        answers = [client.post("/v1/solve", params={"deadline_s": 0}, json=body(seed)) for seed in range(number)]
    assert [answer.status_code for answer in answers] == [202] * number
    return [answer.json()["id"] for answer in answers]


def states(service: RunningService, jobs: list[str]) -> list[str]:
    """Return the states of jobs."""
    with service.client() as client:
        return [client.get(f"/v1/jobs/{job}").json().get("state", "missing") for job in jobs]


def require_success(service: RunningService, jobs: list[str]) -> str:
    """Wait for jobs, and say how they ended; AssertionError unless all succeeded and their plans can be read."""
    wait_for(lambda: set(states(service, jobs)) <= FINISHED, seconds=ENDS_S)
    ended = states(service, jobs)
    assert ended == ["succeeded"] * len(jobs), ended
    with service.client() as client:
        statuses = [client.get(f"/v1/jobs/{job}/result").status_code for job in jobs]
    assert statuses == [200] * len(jobs), statuses
    return f"{len(jobs)} of {len(jobs)} jobs succeeded"


def require_quiet(service: RunningService) -> None:
    """AssertionError where the log has an exception that nobody caught."""
    log = service.log.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") :][:2000]


def ready_again(folder: Path) -> tuple[RunningService, float]:
    """Start the service on the same folder, and return it with the seconds until it was ready."""
    started_s = time.monotonic()
    service = RunningService(folder, "--workers", "1")
    service.wait_until_ready()
    return service, time.monotonic() - started_s


def running(service: RunningService, jobs: list[str]) -> bool:
    """Return whether one of the jobs runs."""
    return "running" in states(service, jobs)


def kill_worker(folder: Path) -> Outcome:
    """Kill the worker process in the middle of a job."""
    with service_in(folder) as service:
        jobs = submit(service)
        wait_for(lambda: running(service, jobs))
        (pid,) = _workers(service)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        wait_for(lambda: any(other != pid for other in _workers(service)))
        with service.client() as client:
            wait_for(lambda: client.get("/readyz").status_code == 200, seconds=120.0)
        away_s = time.monotonic() - killed_s
        wait_for(lambda: set(states(service, jobs)) <= FINISHED, seconds=ENDS_S)
        with service.client() as client:
            failed = [job for job in jobs if client.get(f"/v1/jobs/{job}").json()["state"] == "failed"]
            reasons = [client.get(f"/v1/jobs/{job}").json()["error"]["type"] for job in failed]
        # A job that ends its worker would end the next one, too: it is told, and not begun again.
        assert reasons in ([], ["urn:placer:error:worker-died"]), reasons
        seen = require_success(service, [job for job in jobs if job not in failed])
        require_quiet(service)
    return Outcome(f"{seen}, {len(failed)} failed with `worker-died`", away_s)


def _workers(service: RunningService) -> list[int]:
    """Return the worker processes: not those that Python keeps beside them."""
    return [
        pid
        for pid in service.worker_pids()
        if "tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    ]


def kill_server(folder: Path) -> Outcome:
    """Kill the server process while jobs wait and run."""
    with service_in(folder) as service:
        jobs = submit(service)
        wait_for(lambda: running(service, jobs))
        service.kill()
    again, away_s = ready_again(folder)
    try:
        seen = require_success(again, jobs)
        require_quiet(again)
    finally:
        again.kill()
    return Outcome(seen, away_s)


def terminate_under_load(folder: Path) -> Outcome:
    """Send SIGTERM while jobs wait and run."""
    with service_in(folder, "--grace", "2") as service:
        jobs = submit(service)
        wait_for(lambda: running(service, jobs))
        started_s = time.monotonic()
        status = service.terminate()
        ended_s = time.monotonic() - started_s
        assert status == 0, status
        require_quiet(service)
    again, away_s = ready_again(folder)
    try:
        seen = require_success(again, jobs)
    finally:
        again.kill()
    return Outcome(f"exit status 0 after {ended_s:.1f} s; {seen}", away_s)


def disk_full(folder: Path) -> Outcome:
    """Fill the file system of the database, and make room again later."""
    folder.mkdir()
    mount = shutil.which("mount")
    options = [f"size={TMPFS_MIB}m", "mode=700"]
    command = [mount or "mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        raise SkippedError("a tmpfs cannot be mounted here")
    try:
        return _disk_full(folder)
    finally:
        subprocess.run([shutil.which("umount") or "umount", "-l", str(folder)], capture_output=True, check=False)


def _disk_full(folder: Path) -> Outcome:
    with service_in(folder) as service:
        jobs = submit(service)
        _fill(folder / "ballast")
        with service.client() as client:
            refused = [
                client.post("/v1/solve", params={"deadline_s": 0}, json=body(99 + n, num_adapters=300))
                for n in range(3)
            ]
            statuses = [answer.status_code for answer in refused]
            assert set(statuses) <= {202, 503}, statuses
            assert 503 in statuses, statuses
            assert client.get("/healthz").status_code == 200
            jobs += [answer.json()["id"] for answer in refused if answer.status_code == 202]
            (folder / "ballast").unlink()
            freed_s = time.monotonic()
            wait_for(lambda: client.get("/readyz").status_code == 200, seconds=60.0)
        away_s = time.monotonic() - freed_s
        seen = require_success(service, jobs)
        require_quiet(service)
    return Outcome(f"while full {statuses.count(503)} of 3 requests were answered 503; {seen}", away_s)


def _fill(file: Path) -> None:
    """Write until there is no room at all."""
    with file.open("wb", buffering=0) as ballast:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    ballast.write(b"\0" * size)
            except OSError:
                continue


def truncated_database(folder: Path) -> Outcome:
    """Cut off half of the database before the service starts again."""
    return _damaged_database(folder, lambda file: os.truncate(file, file.stat().st_size // 2))


def garbled_database(folder: Path) -> Outcome:
    """Put other bytes in the place of the database before the service starts again."""
    return _damaged_database(folder, lambda file: file.write_bytes(os.urandom(8192)))


def _damaged_database(folder: Path, damage: Callable[[Path], object]) -> Outcome:
    with service_in(folder) as service:
        jobs = submit(service)
        require_success(service, jobs)
        service.terminate()
    (file,) = folder.glob("*.sqlite3")
    damage(file)
    again, away_s = ready_again(folder)
    try:
        kept = [state for state in states(again, jobs) if state == "succeeded"]
        new = require_success(again, submit(again, 1))
        aside = sorted(path.name for path in folder.iterdir() if not path.name.startswith("jobs.sqlite3"))
        copies = sorted(path.name for path in folder.iterdir() if path.name.startswith("jobs.sqlite3."))
        require_quiet(again)
    finally:
        again.kill()
    assert aside or copies, "the damaged file is not kept"
    return Outcome(f"{len(kept)} of {len(jobs)} old jobs salvaged, the damaged file kept; a new one: {new}", away_s)


def slow_body(folder: Path) -> Outcome:
    """Send one byte of a body now and then, from many clients."""
    with service_in(folder) as service:
        connections = [_connection(service) for _ in range(NUM_SLOW)]
        for connection in connections:
            connection.sendall(b"POST /v1/solve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: 100000\r\n\r\n{")
        seen = require_success(service, submit(service, 2))
        started_s = time.monotonic()
        answers = _dripped(connections)
        waited_s = time.monotonic() - started_s
        require_quiet(service)
    assert answers == [b"HTTP/1.1 408"] * NUM_SLOW, answers[:3]
    return Outcome(f"{NUM_SLOW} connections were answered 408, the last after {waited_s:.0f} s; others: {seen}")


def _dripped(connections: list[socket.socket]) -> list[bytes]:
    """Send a byte a second on each connection until it is answered; return the beginnings of the answers."""
    answers: dict[int, bytes] = {}
    until_s = time.monotonic() + 90.0
    while len(answers) < len(connections) and time.monotonic() < until_s:
        for number, connection in enumerate(connections):
            if number in answers:
                continue
            connection.settimeout(0.001)
            try:
                connection.sendall(b" ")
                answers[number] = connection.recv(12)
            except TimeoutError:
                continue
            except OSError as error:
                answers[number] = repr(error).encode()
        time.sleep(1.0)
    for connection in connections:
        connection.close()
    return [answers.get(number, b"nothing") for number in range(len(connections))]


def slow_reader(folder: Path) -> Outcome:
    """Ask for the events of a job, and take none of them."""
    with service_in(folder) as service:
        jobs = submit(service)
        connections = [_connection(service) for _ in range(NUM_SLOW)]
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.sendall(f"GET /v1/jobs/{jobs[-1]}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode("ascii"))
        with service.client() as client:
            started_s = time.monotonic()
            assert client.get("/healthz").status_code == 200
            health_s = time.monotonic() - started_s
        seen = require_success(service, jobs)
        for connection in connections:
            connection.close()
        require_quiet(service)
    return Outcome(f"{NUM_SLOW} readers, health in {health_s:.2f} s; {seen}")


def vanishing_client(folder: Path) -> Outcome:
    """Go away in the middle of a request, and while it is answered."""
    with service_in(folder) as service:
        content = httpx.Request("POST", service.url, json=body()).content
        for number in range(20):
            connection = _connection(service)
            head = f"POST /v1/solve HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k{number}\r\n".encode("ascii")
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode("ascii")
            connection.sendall(head + (content if number % 2 else content[: len(content) // 2]))
            # Without the handshake of an ordinary end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if number % 2:
                time.sleep(0.1)
            connection.close()
        with service.client() as client:
            jobs = [job["id"] for job in client.get("/v1/jobs", params={"count": 100}).json()["jobs"]]
            assert len(jobs) <= 10, len(jobs)
        seen = require_success(service, [*jobs, *submit(service, 1)])
        require_quiet(service)
    return Outcome(f"20 clients went away, {len(jobs)} whole requests were accepted; {seen}")


def _connection(service: RunningService) -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=10.0)


SCENARIOS: dict[str, Scenario] = {
    "kill -9 of the worker": kill_worker,
    "kill -9 of the server": kill_server,
    "SIGTERM under load": terminate_under_load,
    "disk full": disk_full,
    "truncated database": truncated_database,
    "garbled database": garbled_database,
    "slow bodies": slow_body,
    "slow readers of events": slow_reader,
    "vanishing clients": vanishing_client,
}
SMOKE = ("kill -9 of the server", "vanishing clients")


def main() -> int:
    """Make the faults happen, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(SCENARIOS), action="append")
    parser.add_argument("--smoke", action="store_true", help=" and ".join(SMOKE))
    arguments = parser.parse_args()
    names = arguments.only or (SMOKE if arguments.smoke else SCENARIOS)
    failures: list[str] = []
    print("| fault | result | away (s) | what was seen |\n|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="placer-faults-") as folder:
            try:
                outcome = SCENARIOS[name](Path(folder) / "data")
            except SkippedError as error:
                print(f"| {name} | skipped | | {error} |", flush=True)
                continue
            except (AssertionError, httpx.HTTPError, OSError) as error:
                failures.append(f"{name}: {type(error).__name__}: {str(error)[:3000]}")
                print(f"| {name} | failed | | {type(error).__name__} |", flush=True)
                continue
        away = "" if outcome.away_s is None else f"{outcome.away_s:.1f}"
        print(f"| {name} | passed | {away} | {outcome.seen} |", flush=True)
    for failure in failures:
        print(failure)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
