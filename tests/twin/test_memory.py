"""GPU memory: vLLM's formula to the byte, its three refusals, and every capacity that was measured."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.engine import EngineConfig
from twin.hardware import SHIPPED_MODELS, GpuType
from twin.memory import GIB, MIB, MemoryVerdict, StartFailure, check_memory, slot_bytes
from twin.profile import MemoryCalibration, PerformanceProfile, load_profile

H100 = GpuType(name="h100-64gb", memory_gib=63.43)
TABLE_NAMES = {"llama-3.1-8b": "llama-3.1-8b-instruct", "qwen2.5-7b": "qwen-2.5-7b-instruct"}
MODELS = sorted(TABLE_NAMES)

# What the tables call an outcome, and ours.
OUTCOMES = {
    "ok": None,
    "oom_kv_lt_maxlen": StartFailure.CONTEXT_DOES_NOT_FIT,
    "oom_no_kv": StartFailure.NO_CACHE_BLOCKS,
    "oom_cuda": StartFailure.SLOTS_DO_NOT_FIT,
}


def shipped_profile(model: str) -> PerformanceProfile:
    """Return the shipped profile of a model."""
    return load_profile(f"{model}-h100-64gb")


def without_table(profile: PerformanceProfile) -> PerformanceProfile:
    """Return a profile that must use the formula."""
    return profile.model_copy(update={"memory": profile.memory.model_copy(update={"measured": ()})})


def measured_engine(max_loras: int, max_lora_rank: int) -> EngineConfig:
    """Return the settings under which the memory table was measured."""
    settings = {"max_loras": max_loras, "max_lora_rank": max_lora_rank, "max_num_seqs": 2048}
    return EngineConfig.model_validate({"vllm_version": "0.8.5"} | settings)


def verdict(model: str, engine: EngineConfig, *, profile: PerformanceProfile | None = None) -> MemoryVerdict:
    """Return the verdict on the GPU of the measurements, with the shipped profile unless another is given."""
    return check_memory(SHIPPED_MODELS[model], H100, engine, profile or shipped_profile(model))


@pytest.mark.parametrize(
    ("model", "mebibytes"),
    [
        ("llama-3.1-8b", {8: 44.0, 16: 88.0, 32: 176.0, 64: 352.0}),
        ("qwen2.5-7b", {8: 38.5, 16: 77.0, 32: 154.0, 64: 308.0}),
    ],
)
def test_slot_bytes_are_those_of_vllm(model: str, mebibytes: dict[int, float]) -> None:
    """The sizes of the reference, which gives them in whole and half MiB; the embeddings add 0.1 % to Llama's."""
    for rank, expected in mebibytes.items():
        assert slot_bytes(SHIPPED_MODELS[model], rank) / MIB == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "kv_bytes", "weights_gib"), [("llama-3.1-8b", 131072, 14.96), ("qwen2.5-7b", 57344, 14.19)]
)
def test_weights_and_kv_bytes_are_those_of_the_reference(model: str, kv_bytes: int, weights_gib: float) -> None:
    """KV bytes per token are exact; weights are given with two decimals."""
    architecture = SHIPPED_MODELS[model]
    assert architecture.kv_bytes_per_token == kv_bytes
    assert architecture.num_parameters * architecture.dtype_bytes / GIB == pytest.approx(weights_gib, abs=0.005)


@pytest.mark.parametrize("model", MODELS)
def test_verdict_is_right_for_every_measured_replica(data_dir: Path, model: str) -> None:
    """With the measured table: whether it starts, why not, and the KV tokens, for every row."""
    rows = pd.read_csv(data_dir / "calibration" / "calib_mem_max.csv").query("model == @TABLE_NAMES[@model]")
    assert len(rows) == 42
    for row in rows.to_dict(orient="records"):
        result = verdict(model, measured_engine(row["slots"], row["max_lora_rank"]))
        assert result.failure == OUTCOMES[row["status"]], (row["slots"], row["max_lora_rank"])
        assert result.is_measured
        assert result.kv_tokens == (0 if pd.isna(row["kv_tokens"]) else int(row["kv_tokens"]))


@pytest.mark.parametrize(
    ("model", "mean_percent", "worst_tokens"), [("llama-3.1-8b", 0.5, 3000), ("qwen2.5-7b", 1.0, 11000)]
)
def test_formula_alone_has_the_right_verdict_for_every_measured_replica(
    data_dir: Path, model: str, mean_percent: float, worst_tokens: int
) -> None:
    """Without the table: the same verdicts, and KV tokens within the error that the profile states."""
    rows = pd.read_csv(data_dir / "calibration" / "calib_mem_max.csv").query("model == @TABLE_NAMES[@model]")
    profile = without_table(shipped_profile(model))
    relative, worst = [], 0
    for row in rows.to_dict(orient="records"):
        result = verdict(model, measured_engine(row["slots"], row["max_lora_rank"]), profile=profile)
        assert result.failure == OUTCOMES[row["status"]], (row["slots"], row["max_lora_rank"])
        assert not result.is_measured
        if row["status"] == "ok":
            relative.append(abs(result.kv_tokens / row["kv_tokens"] - 1) * 100)
            worst = max(worst, abs(result.kv_tokens - int(row["kv_tokens"])))
    assert sum(relative) / len(relative) < mean_percent
    assert worst < worst_tokens


@pytest.mark.parametrize("model", MODELS)
def test_formula_predicts_replicas_that_were_not_fitted(data_dir: Path, model: str) -> None:
    """KV tokens with few sequences and with one or 300 slots: within 1.5 % of what those replicas reported."""
    runs = pd.read_csv(data_dir / "calibration" / "calib_runs.csv").query("model == @TABLE_NAMES[@model]")
    runs = runs[runs["kv_tokens"].notna() & runs["slots"].notna() & runs["max_num_seqs"].notna()]
    cases = runs.drop_duplicates(["slots", "max_lora_rank", "max_num_seqs"])
    assert set(cases["slots"]) == {1, 300}
    for run in cases.to_dict(orient="records"):
        settings = {
            "max_loras": int(run["slots"]),
            "max_lora_rank": int(run["max_lora_rank"]),
            "max_num_seqs": int(run["max_num_seqs"]),
        }
        result = verdict(model, EngineConfig.model_validate({"vllm_version": "0.8.5"} | settings))
        assert result.kv_tokens == pytest.approx(run["kv_tokens"], rel=0.015)


@pytest.mark.parametrize(
    ("slots", "rank", "failure", "words"),
    [
        (288, 32, StartFailure.SLOTS_DO_NOT_FIT, "CUDA out of memory"),
        (224, 32, StartFailure.NO_CACHE_BLOCKS, "No available memory for the cache blocks"),
        (256, 16, StartFailure.CONTEXT_DOES_NOT_FIT, "To serve at least one request with the model's max seq len"),
    ],
)
def test_refusal_has_vllms_words_and_says_what_to_do(slots: int, rank: int, failure: StartFailure, words: str) -> None:
    """Each of the three ways not to start."""
    result = verdict("llama-3.1-8b", measured_engine(slots, rank))
    assert result.failure is failure
    assert not result.starts
    assert (result.kv_tokens, result.num_blocks) == (0, 0)
    assert words in result.message
    assert "Use fewer or smaller slots" in result.message


def test_replica_refused_for_its_context_starts_with_a_shorter_one() -> None:
    """256 slots of rank 16 leave 14.01 GiB: too little for 131,072 tokens, enough for 4096."""
    engine = measured_engine(256, 16).model_copy(update={"max_model_len": 4096})
    result = verdict("llama-3.1-8b", engine)
    assert result.starts
    assert result.kv_tokens == int(14.01 * GIB) // (131072 * 16) * 16


def test_replica_measured_not_to_start_does_not_start_whatever_the_formula_says() -> None:
    """A measured refusal holds although an optimistic formula finds room."""
    profile = shipped_profile("llama-3.1-8b")
    optimistic = profile.memory.model_copy(update={"overhead_gib": 0.0, "sampler_bytes_per_logit": 0.0})
    engine = measured_engine(224, 32).model_copy(update={"max_model_len": 1024})
    trusting = profile.model_copy(update={"memory": optimistic})
    assert verdict("llama-3.1-8b", engine, profile=without_table(trusting)).starts
    assert verdict("llama-3.1-8b", engine, profile=trusting).failure is StartFailure.NO_CACHE_BLOCKS


@pytest.mark.parametrize(
    "change",
    [
        {"gpu_memory_utilization": 0.85},
        {"max_num_seqs": 256},
        {"max_loras": 33},
        {"max_lora_rank": 64},
        {"enable_lora": False},
    ],
)
def test_table_is_used_only_for_what_was_measured(change: dict[str, object]) -> None:
    """Another utilization, number of sequences, slots or rank has another capacity."""
    engine = measured_engine(32, 16)
    assert verdict("llama-3.1-8b", engine).is_measured
    assert not verdict("llama-3.1-8b", engine.model_copy(update=change)).is_measured


def test_table_is_not_used_on_another_gpu() -> None:
    """A GPU with a little more memory has a larger KV cache, by the formula."""
    profile, engine = shipped_profile("llama-3.1-8b"), measured_engine(32, 16)
    larger = GpuType(name="h100-64gb", memory_gib=63.9)
    assert not check_memory(SHIPPED_MODELS["llama-3.1-8b"], larger, engine, profile).is_measured


def test_unused_lora_takes_no_memory() -> None:
    """Without LoRA there are no slots, however many are configured."""
    engine = measured_engine(384, 32).model_copy(update={"enable_lora": False})
    result = verdict("llama-3.1-8b", engine)
    assert result.starts
    assert result.slots_bytes == 0


engines = st.builds(
    EngineConfig,
    max_loras=st.integers(1, 400),
    max_lora_rank=st.sampled_from([8, 16, 32, 64]),
    max_num_seqs=st.integers(1, 2048),
    max_num_batched_tokens=st.just(4096),
    block_size=st.sampled_from([8, 16, 32, 128]),
)


@given(model=st.sampled_from(MODELS), engine=engines, more=st.integers(0, 500))
def test_more_slots_rank_or_sequences_never_leave_more_kv(model: str, engine: EngineConfig, more: int) -> None:
    """The formula's KV cache shrinks with everything that takes memory, and it fits into what is allowed."""
    profile = without_table(shipped_profile(model))
    result = verdict(model, engine, profile=profile)
    for change in (
        {"max_loras": engine.max_loras + more},
        {"max_lora_rank": 2 * engine.max_lora_rank},
        {"max_num_seqs": engine.max_num_seqs + more},
        {"max_num_batched_tokens": 4096 + more},
    ):
        assert verdict(model, engine.model_copy(update=change), profile=profile).kv_tokens <= result.kv_tokens
    assert result.kv_tokens == result.num_blocks * engine.block_size
    if result.starts:
        used = result.weights_bytes + result.slots_bytes + result.kv_bytes
        assert used <= 63.43 * GIB * engine.gpu_memory_utilization
        assert result.kv_tokens >= SHIPPED_MODELS[model].max_model_len


def test_peak_of_a_step_is_that_of_the_layers_or_of_the_sampler() -> None:
    """The larger of the two is taken off, as vLLM profiles both: 1 GiB per 2048 tokens, and 14 bytes per logit."""
    profile = shipped_profile("llama-3.1-8b")
    memory = MemoryCalibration(overhead_gib=0.0, activation_gib=1.0, sampler_bytes_per_logit=14.0)
    profile = profile.model_copy(update={"memory": memory})

    def kv_bytes(max_num_seqs: int, max_num_batched_tokens: int) -> float:
        engine = EngineConfig(
            enable_lora=False, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        )
        return verdict("llama-3.1-8b", engine, profile=profile).kv_bytes

    block = 131072 * 16
    assert kv_bytes(256, 2048) - kv_bytes(256, 4096) == pytest.approx(GIB, abs=block)
    assert kv_bytes(256, 2048) - kv_bytes(2048, 2048) == pytest.approx(14 * 128256 * 2048 - GIB, abs=block)
