"""The program as a process of its own, started as a shell does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def started(arguments: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `placer` in `folder`, in a process group of its own; whatever is left of it at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "placer", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def interrupt_at(process: subprocess.Popen[str], start: str) -> tuple[str, str]:
    """Send Ctrl-C to every process when a line of standard error starts with `start`; return what is printed then."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start):
            os.killpg(process.pid, signal.SIGINT)
            break
    return process.communicate(timeout=120)
