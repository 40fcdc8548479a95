"""A prior for a machine without a datasheet, such as a CPU: next to nothing is known, and the measurements decide."""

from __future__ import annotations

from twin.calibration.prior import LOAD_BAND, LOAD_RANKS, PRIOR_KIND
from twin.hardware import ModelArchitecture
from twin.profile import LoadTime, MemoryCalibration, PerformanceProfile, StepTimeCoefficients
from twin.step_time import COEFFICIENT_NAMES

# A tiny model on one core, to the power of ten: what every engine has. All other terms are 0 unless measurements say
# otherwise.
GUESS = StepTimeCoefficients(base_ms=8.0, token_ms=0.1, request_ms=0.1, context_token_ms=0.001)
GUESS_BAND = 10.0
GUESSED_CPU_TO_GPU_MS, GUESSED_DISK_TO_CPU_MS = 1.0, 3.0
GUESS_VLLM_VERSION = "0.32"


def guess_profile(model: ModelArchitecture, gpu: str, *, gpu_memory_gib: float) -> PerformanceProfile:
    """Return a prior of wide bands for a model on any machine, labelled as a guess.

    Parameters
    ----------
    model
        What was measured.
    gpu
        Any name for the machine.
    gpu_memory_gib
        What an engine may use there, in GiB, > 0.
    """
    return PerformanceProfile(
        name=f"{model.name}-{gpu}-guess",
        model=model.name,
        gpu=gpu,
        gpu_memory_gib=gpu_memory_gib,
        vllm_version=GUESS_VLLM_VERSION,
        step_time=GUESS,
        load_times=tuple(
            LoadTime(rank=rank, cpu_to_gpu_ms=GUESSED_CPU_TO_GPU_MS, disk_to_cpu_ms=GUESSED_DISK_TO_CPU_MS)
            for rank in LOAD_RANKS
        ),
        memory=MemoryCalibration(overhead_gib=0.0),
        provenance={
            "kind": PRIOR_KIND,
            "tool": "placer calibrate",
            "method": "a guess: nothing is known about the machine",
            "bands": dict.fromkeys(COEFFICIENT_NAMES, GUESS_BAND),
            "band_note": "each coefficient is expected between its value / band and its value x band",
            "load_times": {"band": LOAD_BAND},
        },
    )
