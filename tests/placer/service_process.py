"""A service as a process of its own, for the tests of what only processes show."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
# A first start may compile the twin's engine.
READY_S = 240.0
_ADDRESS = re.compile(r"listens on (http://\S+)")


class RunningService:
    """`placer serve` in a process.

    Attributes
    ----------
    process, url
        The process, and where it listens.
    """

    def __init__(self, data_dir: Path, *options: str, **environment: str) -> None:
        self.log = data_dir.parent / f"serve-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "placer", "serve", "--port", "0", "--data-dir", str(data_dir), *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                start_new_session=True,
            )
        self.url = self._address()

    @staticmethod
    def command(data_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `placer serve` where it is to refuse."""
        command = [sys.executable, "-m", "placer", "serve", "--port", "0", "--data-dir", str(data_dir), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)

    def client(self, **options: Any) -> httpx.Client:
        """Return a client of it."""
        return httpx.Client(base_url=self.url, timeout=60.0, **options)

    def wait_until_ready(self) -> None:
        """Wait for the workers."""
        with self.client() as client:
            wait_for(lambda: client.get("/readyz").status_code == 200, seconds=READY_S)

    def worker_pids(self) -> list[int]:
        """Return the processes of the workers."""
        children = Path(f"/proc/{self.process.pid}/task")
        pids: list[int] = []
        for task in children.iterdir():
            pids += [int(pid) for pid in (task / "children").read_text(encoding="ascii").split()]
        return sorted(pids)

    def kill(self) -> None:
        """End the process as if the machine had lost it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)

    def terminate(self) -> int:
        """End the process in order, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def _address(self) -> str:
        found = ""

        def listens() -> bool:
            nonlocal found
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
            match = _ADDRESS.search(self.log.read_text(encoding="utf-8"))
            found = "" if match is None else match[1]
            return bool(found)

        wait_for(listens, seconds=60.0)
        return found


def wait_for(condition: Any, *, seconds: float = 60.0) -> None:
    """Return as soon as a condition holds; fail when it does not in time."""
    until_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until_s, "it took too long"
        time.sleep(0.05)


@contextmanager
def running_service(data_dir: Path, *options: str, **environment: str) -> Iterator[RunningService]:
    """Have a service that listens, whose workers may not be ready, and nothing of it afterwards."""
    service = RunningService(data_dir, *options, **environment)
    try:
        with service.client() as client:
            wait_for(lambda: client.get("/healthz").status_code == 200)
        yield service
    finally:
        if service.process.poll() is None:
            service.kill()
