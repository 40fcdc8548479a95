"""What the service keeps when processes are killed, the disk is full, and signals come."""

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from placer.service.job_store import JobStore
from tests.placer.service_process import RunningService, running_service, wait_for
from tests.placer.small_fleets import small_data

NUM_JOBS = 4


def _quick(seed: int) -> dict[str, Any]:
    options = {"max_evaluations": 200, "horizon_s": 120, "warmup_s": 20, "seed": seed}
    return {"problem": small_data(num_adapters=4, total_rps=11.0), "options": options}


def _slow() -> dict[str, Any]:
    return {"problem": small_data(num_adapters=40, total_rps=30.0), "options": {"surrogate": "exact"}}


def _submit(client: httpx.Client, request: dict[str, Any], **headers: str) -> str:
    answer = client.post("/v1/solve", params={"deadline_s": 0}, json=request, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def _state(client: httpx.Client, location: str) -> str:
    state: str = client.get(location).json()["state"]
    return state


def _wait_for_state(client: httpx.Client, location: str, state: str) -> None:
    wait_for(lambda: _state(client, location) == state, seconds=120.0)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_worker_and_a_full_disk(tmp_path: Path) -> None:
    """A worker that is killed fails the job that it runs, and no other; what cannot be written is not acknowledged."""
    with running_service(tmp_path / "data", "--workers", "1") as service, service.client() as client:
        service.wait_until_ready()
        os.kill(service.worker_pids()[0], signal.SIGKILL)
        slow = _submit(client, _slow())
        quick = _submit(client, _quick(0))
        wait_for(lambda: client.get(slow).json()["phase"] is not None)
        os.kill(service.worker_pids()[0], signal.SIGKILL)
        _wait_for_state(client, slow, "failed")
        assert client.get(slow).json()["error"]["type"] == "urn:placer:error:worker-died"
        assert client.get(f"{slow}/result").status_code == 500
        _wait_for_state(client, quick, "succeeded")

        slow = _submit(client, _slow())
        _wait_for_state(client, slow, "running")
        unlimited = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (1024, unlimited[1]))
        refused = client.post("/v1/solve", json=_quick(1))
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:placer:error:storage")
        assert client.get("/readyz").status_code == 503
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, unlimited)
        quick = _submit(client, _quick(1))
        client.post(f"{slow}/cancel")
        _wait_for_state(client, quick, "succeeded")
        assert client.get("/readyz").status_code == 200


def test_services_that_are_killed_or_ended_keep_what_they_accepted(tmp_path: Path) -> None:
    """Each job is done once, by whichever service comes next; no worker outlives its service."""
    options = ("--workers", "1", "--grace", "1")
    with running_service(tmp_path / "data", *options) as service, service.client() as client:
        done = _submit(client, _quick(0))
        _wait_for_state(client, done, "succeeded")
        result = client.get(f"{done}/result").content
        slow = _submit(client, _slow())
        accepted = [_submit(client, _quick(seed), **{"Idempotency-Key": f"k{seed}"}) for seed in range(NUM_JOBS)]
        _wait_for_state(client, slow, "running")
        workers = service.worker_pids()
        assert workers
        service.kill()
        wait_for(lambda: not any(_is_alive(pid) for pid in workers))
    with running_service(tmp_path / "data", *options) as service, service.client() as client:
        _wait_for_state(client, slow, "running")
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/v1/solve", json=_quick(9))
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:placer:error:draining")
        assert service.process.wait(timeout=30) == 0
    with running_service(tmp_path / "data", *options) as service, service.client() as client:
        assert client.get(slow).json()["num_starts"] in {1, 2}
        client.post(f"{slow}/cancel")
        assert client.get(f"{done}/result").content == result
        for seed, location in enumerate(accepted):
            _wait_for_state(client, location, "succeeded")
            assert _submit_again(client, seed) == location
        _wait_for_state(client, slow, "cancelled")
        assert len(client.get("/v1/jobs", params={"count": 100}).json()["jobs"]) == 2 + NUM_JOBS


def test_a_second_signal_gives_running_jobs_no_more_time(tmp_path: Path) -> None:
    """They are put back as at the end of the grace, and the service ends in order."""
    with running_service(tmp_path / "data", "--workers", "1", "--grace", "600") as service, service.client() as client:
        slow = _submit(client, _slow())
        _wait_for_state(client, slow, "running")
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        assert _state(client, slow) == "running"
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=8) == 0
    store = JobStore(tmp_path / "data", time.time)
    (job,) = store.unfinished()
    store.close()
    assert (job.state, job.num_starts) == ("accepted", 0)


def _submit_again(client: httpx.Client, seed: int) -> str:
    answer = client.post("/v1/solve", json=_quick(seed), headers={"Idempotency-Key": f"k{seed}"})
    assert answer.status_code == 200
    return answer.headers["location"]


def test_a_job_that_takes_too_much_fails_alone(tmp_path: Path) -> None:
    """What is too large or takes too long is told as such, and the next job is done by another worker."""
    options = ("--workers", "1", "--job-memory-mib", "1024", "--job-cpu", "3")
    with running_service(tmp_path / "data", *options) as service, service.client() as client:
        greedy = _quick(0)
        for adapter in greedy["problem"]["adapters"]:
            adapter["rate_rps"] = 2e5
        greedy["options"] = {"max_evaluations": 1, "surrogate": "exact"}
        answers = [client.post("/v1/solve", params={"deadline_s": 600}, json=request) for request in (greedy, _slow())]
        assert [answer.status_code for answer in answers] == [422, 422]
        assert answers[1].json()["type"] == "urn:placer:error:cpu-limit"
        assert client.post("/v1/solve", json=_quick(1)).status_code == 200


def test_tokens_and_addresses(tmp_path: Path) -> None:
    """Who has no token gets nothing but health; and nobody listens to a network by accident."""
    token = "a-token-for-tests-only"  # noqa: S105 - made up
    with running_service(tmp_path / "data", PLACER_TOKENS=token) as service, service.client() as client:
        assert client.get("/v1/jobs").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {token}x"}).status_code == 401
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        second = RunningService.command(tmp_path / "data")
        assert second.returncode == 2
        assert "one service at a time" in second.stderr
    open_to_all = RunningService.command(tmp_path / "other", "--host", "0.0.0.0")  # noqa: S104 - refused
    assert open_to_all.returncode == 2
    assert "token" in open_to_all.stderr
