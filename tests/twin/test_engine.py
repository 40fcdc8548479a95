"""Engine settings: vLLM's defaults, the two generations of rules, and combinations that vLLM refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from twin.engine import SUPPORTED_RANKS, VERSION_PRESETS, EngineConfig


def test_defaults_are_those_of_vllm() -> None:
    """An engine without arguments has one slot and vLLM 0.32's rules."""
    engine = EngineConfig()
    assert engine.vllm_version == "0.32"
    assert (engine.max_loras, engine.max_lora_rank, engine.cpu_capacity) == (1, 16, 1)
    assert engine.gpu_memory_utilization == 0.92
    assert engine.scheduler_reserve_full_isl
    assert engine.keep_last_token_free
    assert not engine.long_prefill_threshold_when_alone


def test_preset_of_the_april_2025_engine_has_its_rules() -> None:
    """0.8.5 admits a request by its first chunk, fills the context to the last token, and uses 90 % of the memory."""
    engine = EngineConfig(vllm_version="0.8.5")
    assert not engine.scheduler_reserve_full_isl
    assert not engine.keep_last_token_free
    assert engine.long_prefill_threshold_when_alone
    assert engine.gpu_memory_utilization == 0.9


@pytest.mark.parametrize("version", sorted(VERSION_PRESETS))
def test_preset_changes_only_its_own_fields(version: str) -> None:
    """Everything that a preset does not name is the same in both generations."""
    fields = set(EngineConfig.model_fields) - set(VERSION_PRESETS[version]) - {"vllm_version"}
    default, preset = EngineConfig(), EngineConfig.model_validate({"vllm_version": version})
    assert {name: getattr(default, name) for name in fields} == {name: getattr(preset, name) for name in fields}


def test_given_value_wins_over_the_preset() -> None:
    """A preset supplies defaults only."""
    engine = EngineConfig(vllm_version="0.8.5", gpu_memory_utilization=0.8, keep_last_token_free=True)
    assert engine.gpu_memory_utilization == 0.8
    assert engine.keep_last_token_free
    assert not engine.scheduler_reserve_full_isl


@pytest.mark.parametrize("version", sorted(VERSION_PRESETS))
def test_settings_survive_their_own_json(version: str) -> None:
    """What is written is what is read, preset or not."""
    engine = EngineConfig.model_validate({"vllm_version": version, "max_loras": 7, "gpu_memory_utilization": 0.5})
    assert EngineConfig.model_validate_json(engine.model_dump_json()) == engine


def test_slots_and_cache_follow_the_settings() -> None:
    """Without LoRA there are no slots; the CPU cache is as large as the slots unless it is given."""
    assert EngineConfig(enable_lora=False, max_loras=8).num_slots == 0
    assert EngineConfig(max_loras=8).num_slots == 8
    assert EngineConfig(max_loras=8).cpu_capacity == 8
    assert EngineConfig(max_loras=8, max_cpu_loras=64).cpu_capacity == 64


@pytest.mark.parametrize("rank", SUPPORTED_RANKS)
def test_ranks_of_vllm_are_accepted(rank: int) -> None:
    """The ranks are vLLM's own list."""
    assert EngineConfig.model_validate({"max_lora_rank": rank}).max_lora_rank == rank


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_lora_rank": 12}, "8, 16, 32, 64, 128, 256, 320 or 512"),
        ({"max_loras": 16, "max_cpu_loras": 8}, r"`max_cpu_loras` must be at least `max_loras` \(16\). Got 8"),
        ({"max_num_seqs": 4096}, r"`max_num_batched_tokens` must be at least `max_num_seqs` \(4096\)"),
        ({"vllm_version": "0.7.3"}, "'0.32' or '0.8.5'"),
        ({"max_loras": 0}, "greater than or equal to 1"),
        ({"gpu_memory_utilization": 1.1}, "less than or equal to 1"),
        ({"gpu_memory_utilization": float("nan")}, "finite|greater than 0"),
        ({"watermark": 1.0}, "less than 1"),
        ({"scheduling_policy": "priority"}, "`scheduling_policy` must be fcfs.* Got 'priority'"),
        ({"vllm_version": "0.8.5", "async_scheduling": True}, "`async_scheduling` needs `keep_last_token_free`"),
        ({"max_num_sequences": 8}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_vllm_refuses_are_refused(settings: dict[str, Any], message: str) -> None:
    """Values outside vLLM's ranges, contradictions and unknown names."""
    with pytest.raises(ValidationError, match=message):
        EngineConfig.model_validate(settings)


def test_settings_that_change_nothing_are_accepted() -> None:
    """The order of arrival is the twin's only one; asynchronous scheduling is off unless it is asked for."""
    assert EngineConfig.model_validate({"scheduling_policy": "fcfs"}) == EngineConfig()
    assert not EngineConfig().async_scheduling
    assert EngineConfig(async_scheduling=True).async_scheduling


def test_settings_that_are_no_mapping_are_refused() -> None:
    """A list in place of the engine's settings is reported as such, not as a crash of the preset."""
    with pytest.raises(ValidationError, match="valid dictionary"):
        EngineConfig.model_validate(["max_loras", 8])
