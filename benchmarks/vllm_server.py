"""Start vLLM's OpenAI-compatible server with the model and the adapters of a demo, and end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from twin.errors import TwinError
from twin.measurement.in_process import DEFAULT_ENVIRONMENT
from twin.vllm_python import VllmPython

# A CPU engine and the server around it take most of a minute, several where others compute, too.
START_S = 300.0
GRACE_S = 30.0


class VllmServer:
    """A server on a free port of this machine; a context manager that waits until it answers.

    Parameters
    ----------
    python
        Where vLLM is.
    model
        Folder of the model; its name in requests is ``base``.
    adapters
        Folders of the adapters, by name.
    engine
        Arguments by vLLM's names.
    log
        File for what it writes.
    port
        ``None``: a free one.

    Raises
    ------
    TwinError
        When it does not start.
    """

    def __init__(
        self,
        python: VllmPython,
        model: Path,
        adapters: Mapping[str, Path],
        engine: Mapping[str, Any],
        *,
        log: Path,
        port: int | None = None,
    ) -> None:
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(python.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--served-model-name", "base", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--enforce-eager", "--no-enable-prefix-caching", "--disable-uvicorn-access-log"),
            *_options(engine),
            "--enable-lora",
            *_lora_modules(adapters),
        ]
        defaults = {name: os.environ.get(name, value) for name, value in DEFAULT_ENVIRONMENT.items()}
        self._environment = python.environment | defaults | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the server, and wait for it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server and what it started."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a machine that fails would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def get(self, path: str) -> str:
        """Return the page at a path of the server (OSError)."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:  # noqa: S310 - our own http URL
            text: str = answer.read().decode()
        return text

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise TwinError(
                    f"vLLM's server must start. It ended with exit code {self._process.returncode}: {self._log}"
                )
            try:
                self.get("/health")
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
                continue
            return
        raise TwinError(f"vLLM's server must answer within {START_S:g} s. It does not: {self._log}")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def _options(engine: Mapping[str, Any]) -> Sequence[str]:
    return [part for name, value in engine.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def _lora_modules(adapters: Mapping[str, Path]) -> Sequence[str]:
    modules = [json.dumps({"name": name, "path": str(path)}) for name, path in adapters.items()]
    return ["--lora-modules", *modules] if modules else []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
