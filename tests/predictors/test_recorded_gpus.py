"""Records of GPUs: what is read is what was written, nothing stands there twice, and nobody's names do."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given

from predictors.recorded_gpus import RecordedGpu, prepare_folder, read_recorded, workload_key, write_recorded
from tests.predictors.populations import adapter_sets
from tests.predictors.recorded import adapters_of, record_of, record_some, small_replica, verdict
from twin.errors import InputError
from twin.profile import PerformanceProfile, load_profile
from twin.workload import Adapter, Workload


def test_what_is_written_is_read(tmp_path: Path, profile: PerformanceProfile) -> None:
    """Adapters, settings, profile and verdict come back, by their key."""
    gpu = record_of(profile, 3)
    assert write_recorded(tmp_path, gpu)
    assert read_recorded(tmp_path) == {gpu.key: gpu}
    assert read_recorded(tmp_path)[gpu.key].engine == small_replica(profile, 3).engine


@given(adapters=adapter_sets())
def test_any_adapters_survive(adapters: tuple[Adapter, ...]) -> None:
    """Constant, lognormal and empirical lengths, bursty and regular gaps, silent adapters beside others."""
    assume(any(adapter.rate_rps > 0.0 for adapter in adapters))
    replica = small_replica(load_profile("llama-3.1-8b-h100-64gb"), 2)
    gpu = RecordedGpu.of(adapters, replica, workload="x", verdict=verdict(is_accepted=True))
    text = json.dumps(gpu.model_dump(mode="json", exclude_none=True))
    again = RecordedGpu.model_validate_json(text)
    assert (again, again.key) == (gpu, gpu.key)


def test_a_gpu_is_recorded_once(tmp_path: Path, profile: PerformanceProfile) -> None:
    """Order and names of the adapters, the verdict and the rest of the workload do not make it another one."""
    first = record_of(profile, 3)
    assert write_recorded(tmp_path, first)
    renamed = [adapter.model_copy(update={"name": f"x{adapter.name}"}) for adapter in reversed(adapters_of(3))]
    again = RecordedGpu.of(renamed, small_replica(profile, 3), workload="another", verdict=verdict(is_accepted=True))
    assert again.key == first.key
    assert not write_recorded(tmp_path, again)
    assert read_recorded(tmp_path) == {first.key: first}


def test_what_the_twin_would_simulate_otherwise_is_another_gpu(profile: PerformanceProfile) -> None:
    """Another rate, another setting, another profile."""
    gpu = record_of(profile, 3)
    faster = record_of(profile, 3, total_rps=5.5)
    engine = gpu.engine.model_copy(update={"max_num_seqs": 17})
    others = [faster, gpu.model_copy(update={"engine": engine}), gpu.model_copy(update={"profile": {"name": "other"}})]
    keys = {RecordedGpu.model_validate(other.model_dump()).key for other in [gpu, *others]}
    assert len(keys) == 4


def test_the_key_of_a_workload_does_not_depend_on_names_or_order() -> None:
    """The same problem, planned again from a file in another order, is the same workload."""
    adapters = adapters_of(5)
    renamed = tuple(adapter.model_copy(update={"name": f"x{adapter.name}"}) for adapter in reversed(adapters))
    assert workload_key(Workload(adapters)) == workload_key(Workload(renamed))
    assert workload_key(Workload(adapters)) != workload_key(Workload(adapters[:4]))


def test_names_of_adapters_are_not_kept(tmp_path: Path, profile: PerformanceProfile) -> None:
    """Names say who a customer is, and nothing about the load."""
    write_recorded(tmp_path, record_of(profile, 3))
    (path,) = tmp_path.iterdir()
    assert "chat" not in path.read_text(encoding="utf-8")


def test_a_damaged_record_is_named(tmp_path: Path, profile: PerformanceProfile) -> None:
    """Cut off, or of another version: the file, and what to do."""
    folder = record_some(tmp_path / "some", profile)
    path = min(folder.iterdir())
    content = path.read_text(encoding="utf-8")
    path.write_text(content[:100], encoding="utf-8")
    with pytest.raises(InputError, match=path.name) as caught:
        read_recorded(folder)
    assert caught.value.file == str(path)
    path.write_text(content.replace('"schema_version": 1', '"schema_version": 7'), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_recorded(folder)
    assert caught.value.field == "schema_version"
    silent = json.loads(content)
    silent["adapters"] = [adapter | {"rate_rps": 0.0} for adapter in silent["adapters"]]
    path.write_text(json.dumps(silent), encoding="utf-8")
    with pytest.raises(InputError, match="`rate_rps` above 0"):
        read_recorded(folder)


def test_other_files_in_the_folder_are_passed_over(tmp_path: Path, profile: PerformanceProfile) -> None:
    """Labels, notes, and what an interrupted writer left."""
    write_recorded(tmp_path, record_of(profile, 2))
    for name in ("notes.txt", ".gpu-0123.json.x.tmp", "labels-0-0.parquet"):
        (tmp_path / name).write_text("no record", encoding="utf-8")
    assert len(read_recorded(tmp_path)) == 1


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """To read from, and to write to."""
    with pytest.raises(InputError, match="must be in a folder"):
        read_recorded(tmp_path / "missing")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        prepare_folder(tmp_path / "file" / "inside", option="--record-rejections")
    assert caught.value.field == "record-rejections"
