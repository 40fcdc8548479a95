"""The replica that the tests of surrogates plan for."""

import pytest

from twin.engine import EngineConfig
from twin.hardware import GpuType, ModelArchitecture, load_model
from twin.profile import PerformanceProfile, load_profile


@pytest.fixture(scope="session")
def profile() -> PerformanceProfile:
    """Return the shipped Llama profile."""
    return load_profile("llama-3.1-8b-h100-64gb")


@pytest.fixture(scope="session")
def model(profile: PerformanceProfile) -> ModelArchitecture:
    """Return the profile's model."""
    return load_model(profile.model)


@pytest.fixture(scope="session")
def gpu(profile: PerformanceProfile) -> GpuType:
    """Return the profile's GPU."""
    return GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, profile=profile.name)


@pytest.fixture(scope="session")
def engine() -> EngineConfig:
    """Return the settings that the sets of the tests run under."""
    return EngineConfig(max_loras=8, max_lora_rank=8, max_num_seqs=64, gpu_memory_utilization=0.9)
