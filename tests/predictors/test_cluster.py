"""A data set on a real Dask scheduler with worker processes, one of which dies in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from predictors.dataset import ROWS_PER_SHARD, Progress, load_dataset, sample_dataset
from predictors.dataset_folder import check_folder, shard_name
from twin.errors import ClusterError
from twin.profile import PerformanceProfile

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
# Dask closes connections to what has died in its own time.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[2]
NUM_SHARDS = 6


@contextmanager
def _started(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a part of Dask as a user does, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def scheduler_process(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Return a scheduler without workers: its address and its process."""
    file = tmp_path / "scheduler.json"
    arguments = ("--port", "0", "--no-dashboard", "--host", "127.0.0.1", "--scheduler-file", str(file))
    with _started("scheduler", *arguments, folder=tmp_path) as process:
        while not (file.exists() and file.stat().st_size):
            assert process.poll() is None
            time.sleep(0.05)
        yield str(json.loads(file.read_text())["address"]), process


@pytest.fixture
def scheduler(scheduler_process: tuple[str, subprocess.Popen[bytes]]) -> str:
    """Return the address of a scheduler without workers."""
    return scheduler_process[0]


def _worker(address: str, name: str, folder: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    arguments = ("--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard")
    return _started("worker", address, *arguments, folder=folder)


def _num_at_work(client: Any, name: str) -> int:
    """Return how many shards the worker of that name has been given and not returned."""
    (address,) = [key for key, worker in client.scheduler_info()["workers"].items() if worker["name"] == name]
    return len(client.processing()[address])


def test_a_killed_worker_costs_no_rows_and_doubles_none(
    scheduler: str, profile: PerformanceProfile, tmp_path: Path
) -> None:
    """SIGKILL while it labels: the scheduler gives its shard to the other one, and the data is what one core makes."""
    settings = {"rows": NUM_SHARDS * ROWS_PER_SHARD, "seeds": 1, "horizon_s": 40.0, "warmup_s": 5.0}
    folder = tmp_path / "cluster"
    with (
        _worker(scheduler, "first", tmp_path) as first,
        _worker(scheduler, "second", tmp_path),
        distributed.Client(scheduler, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        at_work: list[int] = []

        def kill_one(progress: Progress) -> None:
            if progress.finished_shards == 2:
                at_work.append(_num_at_work(client, "first"))
                os.kill(first.pid, signal.SIGKILL)

        sample_dataset(profile, output=folder, cluster=scheduler, observer=kill_one, **settings)  # type: ignore[arg-type]
        assert first.wait() == -signal.SIGKILL
        assert at_work[0] > 0
    found = check_folder(folder)
    assert found.problems == ()
    assert found.num_scenarios == NUM_SHARDS * 8
    local = tmp_path / "local"
    sample_dataset(profile, output=local, workers=1, **settings)  # type: ignore[arg-type]
    assert load_dataset(folder)[0].equals(load_dataset(local)[0])
    assert (folder / shard_name(3)).read_bytes() == (local / shard_name(3)).read_bytes()


def test_a_cluster_of_one_core_does_the_work(scheduler: str, profile: PerformanceProfile, tmp_path: Path) -> None:
    """Joblib by itself would label in this process, and leave the one worker idle."""
    with _worker(scheduler, "only", tmp_path), distributed.Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(1)
        at_work: list[int] = []
        sample_dataset(
            profile,
            rows=3 * ROWS_PER_SHARD,
            output=tmp_path / "set",
            cluster=scheduler,
            seeds=1,
            horizon_s=20.0,
            warmup_s=5.0,
            observer=lambda _: at_work.append(_num_at_work(client, "only")),
        )
    assert at_work == [0, 2, 1, 0]


def test_a_scheduler_that_dies_is_named(
    scheduler_process: tuple[str, subprocess.Popen[bytes]], profile: PerformanceProfile, tmp_path: Path
) -> None:
    """No waiting for ever: what is finished is kept, and the same command can go on."""
    address, process = scheduler_process
    folder = tmp_path / "set"

    def kill_it(progress: Progress) -> None:
        if progress.finished_shards == 1:
            process.kill()

    settings = {"rows": 4 * ROWS_PER_SHARD, "seeds": 1, "horizon_s": 20.0, "warmup_s": 5.0}
    with _worker(address, "only", tmp_path), pytest.raises(ClusterError, match="gave up") as caught:
        sample_dataset(profile, output=folder, cluster=address, observer=kill_it, **settings)  # type: ignore[arg-type]
    assert address in caught.value.message
    problems = check_folder(folder).problems
    assert problems
    assert all(problem.endswith("has not been sampled yet") for problem in problems)


def test_a_scheduler_without_workers_is_no_cluster(
    scheduler: str, profile: PerformanceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to start one."""
    monkeypatch.setattr("predictors.cluster.CONNECT_TIMEOUT_S", 1.0)
    with pytest.raises(ClusterError, match="at least one worker") as caught:
        sample_dataset(profile, rows=1, output=tmp_path / "set", cluster=scheduler)
    assert caught.value.hint == f"start one with `dask worker {scheduler}`"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_an_unreachable_cluster_is_named(
    address: str, profile: PerformanceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers, or no such protocol: the address is in the message."""
    monkeypatch.setattr("predictors.cluster.CONNECT_TIMEOUT_S", 1.0)
    with pytest.raises(ClusterError) as caught:
        sample_dataset(profile, rows=1, output=tmp_path / "set", cluster=address)
    assert address in caught.value.message
    assert caught.value.hint is not None


def test_without_the_extra_the_message_names_it(
    profile: PerformanceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling on one machine does without Dask; a cluster asks for what it lacks."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError) as caught:
        sample_dataset(profile, rows=1, output=tmp_path / "set", cluster="tcp://127.0.0.1:8786")
    assert caught.value.hint == "pip install 'lora-placer[cluster]'"
