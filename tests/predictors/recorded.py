"""Records of GPUs for tests: a few chat adapters on a small replica, near the load at which it begins to starve."""

from pathlib import Path

from predictors.recorded_gpus import RecordedGpu, TwinVerdict, workload_key, write_recorded
from tests.predictors.populations import chat_adapters
from twin.engine import EngineConfig
from twin.hardware import GpuType, load_model
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.workload import Adapter, Workload

# About what sixteen sequences of the chat lengths are served at.
BORDER_RPS = 5.0


def small_replica(profile: PerformanceProfile, num_adapters: int) -> Replica:
    """Return a replica of sixteen sequences with a slot for each adapter."""
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, profile=profile.name)
    engine = EngineConfig(
        vllm_version="0.8.5", max_loras=num_adapters, max_cpu_loras=num_adapters, max_lora_rank=8, max_num_seqs=16
    )
    return Replica(load_model(profile.model), gpu, engine, profile)


def adapters_of(num_adapters: int, *, total_rps: float = BORDER_RPS) -> tuple[Adapter, ...]:
    """Return chat adapters with rising rates."""
    total = num_adapters * (num_adapters + 1) / 2.0
    equal = chat_adapters(num_adapters, rate_rps=1.0)
    return tuple(
        adapter.model_copy(update={"rate_rps": total_rps * (index + 1) / total}) for index, adapter in enumerate(equal)
    )


def verdict(*, is_accepted: bool) -> TwinVerdict:
    """Return a verdict of half an hour."""
    return TwinVerdict(
        engine="fast",
        horizon_s=1800.0,
        warmup_s=300.0,
        seed=0,
        throughput_ratio=0.99 if is_accepted else 0.8,
        num_starved_adapters=0 if is_accepted else 2,
        verdict="accepted" if is_accepted else "rejected",
    )


def record_of(
    profile: PerformanceProfile, num_adapters: int, *, is_accepted: bool = False, total_rps: float = BORDER_RPS
) -> RecordedGpu:
    """Return the record of a GPU; those of one load are of one workload."""
    return RecordedGpu.of(
        adapters_of(num_adapters, total_rps=total_rps),
        small_replica(profile, num_adapters),
        workload=workload_key(Workload(adapters_of(9, total_rps=total_rps))),
        verdict=verdict(is_accepted=is_accepted),
    )


def record_some(folder: Path, profile: PerformanceProfile) -> Path:
    """Record four GPUs of three workloads, one of them accepted; return the folder."""
    folder.mkdir(exist_ok=True)
    for num_adapters, total_rps in ((2, BORDER_RPS), (3, BORDER_RPS), (4, 1.2 * BORDER_RPS)):
        write_recorded(folder, record_of(profile, num_adapters, total_rps=total_rps))
    write_recorded(folder, record_of(profile, 1, total_rps=0.5 * BORDER_RPS, is_accepted=True))
    return folder
