"""The process that runs vLLM without a model: ``python -m twin.headless.worker``, in vLLM's interpreter.

It reads frames from standard input and answers on standard output until its input ends (`twin.vllm_process` is the
other side); what vLLM prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from typing import IO, Any

from twin.errors import TwinError
from twin.headless.frames import Frame, pack, read_frame, unpack_inputs, write_frame

REPORT_INTERVAL_S = 0.5


def main() -> None:
    """Answer until the other side is gone."""
    # Ctrl-C is for the other side to deal with; it ends this process by closing the pipe or by killing it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # vLLM and its libraries print, some of them below Python.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, answers)
        answers.close()


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    try:
        from twin.headless import replica  # noqa: F401, PLC0415 - imports vLLM, which takes seconds and may fail
    except Exception as error:  # noqa: BLE001 - whatever an import raises, the other side has to know
        _tell(answers, "incompatible", error)
        return
    write_frame(answers, "ready")
    while (question := read_frame(questions)) is not None:
        _answer(question, answers)


def _answer(question: Frame, answers: IO[bytes]) -> None:
    from twin.headless.replica import HeadlessReplica  # noqa: PLC0415 - see above

    inputs = unpack_inputs(question.arrays)
    started_s = time.process_time()
    try:
        _check_hashes(inputs)
        trace = HeadlessReplica(
            inputs, log_steps=question.header["log_steps"], keep_step_table=question.header["keep_step_table"]
        ).run(_Progress(answers))
    except TwinError as error:
        write_frame(answers, "refused", message=error.message, field=error.field, hint=error.hint)
    except (AttributeError, ImportError, NotImplementedError, TypeError) as error:
        _tell(answers, "incompatible", error)
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises, the other side has to know
        _tell(answers, "failed", error)
    else:
        write_frame(answers, "trace", pack(trace), cpu_s=time.process_time() - started_s)


class _Progress:
    """Tells the other side now and then how far the simulated time is."""

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self._next_s = time.monotonic() + REPORT_INTERVAL_S

    def __call__(self, now_ns: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + REPORT_INTERVAL_S
            write_frame(self._answers, "progress", now_ns=now_ns)


def _check_hashes(inputs: Any) -> None:
    """Raise when names hash otherwise than the twin says: then this process has another PYTHONHASHSEED or hash."""
    for name, value in zip(inputs.adapter_names, inputs.adapter_hash.tolist(), strict=True):
        if hash(name) % (1 << 64) != value:
            raise RuntimeError(
                f"names must hash there as the twin predicts, on CPython 3.11 or later and a 64-bit machine. {name!r} "
                f"hashes to {hash(name) % (1 << 64)} instead of {value}, with "
                f"PYTHONHASHSEED={os.environ.get('PYTHONHASHSEED')}"
            )


def _tell(answers: IO[bytes], kind: str, error: Exception) -> None:
    traceback.print_exception(error, file=sys.stderr)
    write_frame(answers, kind, message=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
