"""Measure vLLM's engine in a process of its own, where every step and every adapter load can be seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twin.engine import EngineConfig
from twin.errors import InputError, TwinError
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import InProcessSettings, ServerFacts
from twin.measurement.session import Progress, SegmentFacts, SegmentOutcome, SegmentTask
from twin.vllm_python import VllmPython, untested_warning
from twin.workload import NANOSECONDS

WORKER = "twin.measurement.worker"
# How long a worker may take to end the step that it is in.
GRACE_S = 60.0

# Hash order of adapters decides what is loaded first: it must be the same in every run.
FIXED_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# Those that are set already stay as they are. With several threads on a busy machine, steps are many times slower.
DEFAULT_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def engine_environment(seed: int) -> dict[str, str]:
    """Return the variables that the engine's process gets besides the present ones."""
    defaults = {name: os.environ.get(name, value) for name, value in DEFAULT_ENVIRONMENT.items()}
    return {**defaults, **FIXED_ENVIRONMENT, "PYTHONHASHSEED": str(seed % 2**32)}


class InProcessDriver:
    """Runs segments in vLLM's interpreter (a `twin.measurement.session.Driver`).

    Parameters
    ----------
    settings
        What to run, and how.
    python
        Where vLLM is.
    """

    def __init__(self, settings: InProcessSettings, python: VllmPython) -> None:
        self._settings = settings
        self._python = python

    def run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        """Start a worker, listen to it until it ends, and say how it ended; see `Driver.run`."""
        with (
            _job_file(self._job(task)) as job,
            task.log.open("ab") as log,
            subprocess.Popen(  # noqa: S603 - the user's own interpreter
                self._python.command(WORKER, str(job)),
                env=self._python.environment | self._settings.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C is for this process to pass on: the engine is to end its step first.
                start_new_session=True,
            ) as process,
        ):
            listener = _Listener(task, process, self._python.version)
            try:
                with stop.listener(lambda: listener.end(stop)):
                    listener.listen()
            finally:
                listener.make_sure_it_ended()
        return self._outcome(listener, stop)

    def _job(self, task: SegmentTask) -> dict[str, Any]:
        requests = task.requests
        folder = Path(self._settings.adapter_directory or ".").resolve()
        adapters = task.workload.adapters if self._settings.adapter_directory is not None else ()
        rows = zip(
            task.rows.tolist(),
            (requests.arrival_ns / NANOSECONDS).tolist(),
            requests.adapter.tolist(),
            requests.prompt_tokens.tolist(),
            requests.output_tokens.tolist(),
            strict=True,
        )
        return {
            "model": self._settings.model,
            "engine": self._settings.engine,
            "adapters": [
                {"name": adapter.name, "path": str(folder / adapter.name), "rank": adapter.rank} for adapter in adapters
            ],
            "clock": self._settings.clock,
            "seed": task.seed,
            "warmup_requests": self._settings.warmup_requests,
            "segment": task.number,
            "start_s": task.start_s,
            "limit_s": task.horizon_s + self._settings.drain_s,
            "shards": str(task.shards.resolve()),
            "spawned": time.monotonic(),
            "schedule": [list(row) for row in rows],
        }

    def _outcome(self, listener: _Listener, stop: StopRequest) -> SegmentOutcome:
        failure = listener.failure
        if not listener.is_serving and failure is not None and not stop.is_made:
            _refuse(failure, listener.task.log)
        facts = listener.facts
        if listener.end_s is not None and not stop.is_made and not listener.is_stopped:
            return SegmentOutcome(end_s=listener.end_s, facts=facts)
        if stop.is_made:
            return SegmentOutcome(end_s=listener.end_s, reason=stop.reason, cause="interrupted", facts=facts)
        reason = failure["message"] if failure is not None else listener.how_it_ended()
        if not listener.is_serving:
            raise TwinError(
                f"vLLM's engine must start. {reason}.", field="engine", hint=f"see {listener.task.log} for what it said"
            )
        return SegmentOutcome(
            end_s=listener.end_s, reason=f"vLLM's engine failed: {reason}", cause="failed", facts=facts
        )


class _Listener:
    """Hears what a worker says, and ends it when that is asked for."""

    def __init__(self, task: SegmentTask, process: subprocess.Popen[bytes], version: str) -> None:
        self.task = task
        self.facts = _segment_facts({}, version)
        self.is_serving = False
        self.failure: dict[str, Any] | None = None
        self.end_s: float | None = None
        # By SIGTERM, whoever sent it.
        self.is_stopped = False
        self._process = process
        self._version = version

    def listen(self) -> None:
        """Return when the worker has said all that it will ever say."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):
                self._hear(json.loads(line))

    def end(self, stop: StopRequest) -> None:
        """Let the worker finish its step; at once if it has not begun, or if it is asked for again."""
        if self.is_serving and stop.count <= 1:
            _signal(self._process, signal.SIGTERM)
        else:
            _signal(self._process, signal.SIGKILL)

    def make_sure_it_ended(self) -> None:
        """Wait for the worker, but not for ever."""
        try:
            self._process.wait(timeout=GRACE_S if self.end_s is not None else 0.5)
        except subprocess.TimeoutExpired:
            _signal(self._process, signal.SIGKILL)
            self._process.wait()

    def how_it_ended(self) -> str:
        """Return what became of the process, in words."""
        code = self._process.returncode
        if self.is_stopped:
            return "its process was told to end by SIGTERM"
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its process was killed by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")

    def _hear(self, message: dict[str, Any]) -> None:
        event = message["event"]
        if event == "phase":
            self.task.on_progress(Progress(what=message["what"]))
        elif event == "ready":
            self.facts = _segment_facts(message, self._version)
            self.task.on_ready(self.facts)
        elif event == "serving":
            self.is_serving = True
        elif event == "progress":
            self.task.on_progress(
                Progress(
                    time_s=message["time_s"],
                    horizon_s=self.task.horizon_s,
                    num_sent=message["sent"],
                    num_finished=message["finished"],
                    num_failed=message["failed"],
                )
            )
        elif event == "failed":
            self.failure = message
        elif event == "end":
            self.end_s, self.is_stopped = float(message["end_s"]), bool(message["is_stopped"])


def _segment_facts(ready: dict[str, Any], version: str) -> SegmentFacts:
    """Return what is known of an engine of a version of vLLM by what its worker said when it was ready, if it was."""
    warning = untested_warning(version)
    return SegmentFacts(
        server=_server_facts(ready.get("server", {})),
        versions=ready.get("versions", {"vllm": version}),
        machine=ready.get("machine", {}),
        warnings=() if warning is None else (warning,),
    )


def _server_facts(said: dict[str, Any]) -> ServerFacts:
    """Return what the engine said about itself; settings that the twin has no place for stand in the details."""
    settings, details = said.get("engine", {}), said.get("details", {})
    known = {name: value for name, value in settings.items() if name in EngineConfig.model_fields}
    try:
        engine = EngineConfig.model_validate(known) if known else None
    except ValidationError:
        known, engine = {}, None
    others = {name: value for name, value in settings.items() if name not in known}
    return ServerFacts(engine=engine, kv_tokens=said.get("kv_tokens"), details=details | others)


@contextmanager
def _job_file(job: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="placer-measure-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        yield path


def _refuse(failure: dict[str, Any], log: Path) -> None:
    """Raise what a worker said before it served anything."""
    message = str(failure["message"]).strip().rstrip(".")
    if failure["kind"] == "input":
        raise InputError(
            f"vLLM must accept the settings. It does not: {message}.",
            field="engine",
            hint="correct `engine` in the problem file, or --engine-argument",
        )
    if failure["kind"] == "memory":
        raise TwinError(
            f"the engine must fit the memory. It does not: {message}.",
            field="engine",
            hint="give fewer or smaller slots, a shorter max_model_len, or more memory",
        )
    raise TwinError(f"vLLM's engine must start. {message}.", field="engine", hint=f"see {log} for what it said")


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a worker and whatever it has started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
