"""Performance profiles: the shipped ones, files, refusals, and load times between the measured ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import InputError, ProfileError
from twin.hardware import SHIPPED_MODELS
from twin.profile import (
    LoadTime,
    PerformanceProfile,
    load_profile,
    parse_profile,
    save_profile,
    shipped_profiles,
)

PROFILES = ("llama-3.1-8b-h100-64gb", "qwen2.5-7b-h100-64gb")


def llama_json() -> dict[str, Any]:
    """Return the shipped Llama profile as plain data."""
    return load_profile(PROFILES[0]).model_dump(mode="json")


def with_load_times(*times: tuple[int, float, float]) -> PerformanceProfile:
    """Return the Llama profile with other load times: (rank, CPU to GPU, disk to CPU)."""
    entries = tuple(LoadTime(rank=rank, cpu_to_gpu_ms=gpu, disk_to_cpu_ms=disk) for rank, gpu, disk in times)
    return load_profile(PROFILES[0]).model_copy(update={"load_times": entries})


def test_two_profiles_are_shipped() -> None:
    """Their names are what a GPU type may refer to."""
    assert shipped_profiles() == PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_shipped_profile_describes_a_shipped_model_on_the_measured_gpu(name: str) -> None:
    """Name, model, GPU and engine version are what the measurements were taken on."""
    profile = load_profile(name)
    assert profile.name == name == f"{profile.model}-{profile.gpu}"
    assert profile.model in SHIPPED_MODELS
    assert (profile.gpu_memory_gib, profile.vllm_version) == (63.43, "0.8.5")
    pairs = [(entry.rank, entry.max_lora_rank) for entry in profile.load_times]
    assert pairs == [(8, 8), (8, 16), (8, 32), (16, 16), (16, 32), (32, 32)]
    assert len(profile.memory.measured) == 42
    assert profile.provenance["step_time"]["in_sample_percent"]["all"]["mape"] < 2.5


@pytest.mark.parametrize("name", PROFILES)
def test_shipped_profile_is_written_as_it_would_be_saved(tmp_path: Path, name: str) -> None:
    """Saving a loaded profile gives the same profile; keys are sorted."""
    profile, path = load_profile(name), tmp_path / "copy.json"
    save_profile(profile, path)
    assert load_profile(str(path)) == profile
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == sorted(content)
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy.json"]


def test_profile_is_read_relative_to_the_base_directory(tmp_path: Path) -> None:
    """A problem file may name a profile beside it."""
    profile = load_profile(PROFILES[1]).model_copy(update={"name": "mine"})
    save_profile(profile, tmp_path / "mine.json")
    assert load_profile("mine.json", base_directory=tmp_path) == profile


def test_saving_into_a_missing_folder_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """The message names the path; no temporary file stays behind."""
    path = tmp_path / "absent" / "profile.json"
    with pytest.raises(InputError, match="must be writable") as caught:
        save_profile(load_profile(PROFILES[0]), path)
    assert caught.value.file == str(path)
    assert not list(tmp_path.iterdir())


def test_saving_over_a_folder_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """No temporary file stays behind."""
    (tmp_path / "profile.json").mkdir()
    with pytest.raises(InputError, match="must be writable"):
        save_profile(load_profile(PROFILES[0]), tmp_path / "profile.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]


def test_unknown_name_is_refused_with_the_shipped_names() -> None:
    """The message lists what could have been meant."""
    with pytest.raises(ProfileError, match=r"llama-3\.1-8b-h100-64gb, qwen2\.5-7b-h100-64gb.*Got 'h200'") as caught:
        load_profile("h200")
    assert (caught.value.field, caught.value.value) == ("profile", "h200")


def test_a_misspelled_profile_is_guessed() -> None:
    """Of the shipped ones the nearest, if any is near."""
    with pytest.raises(ProfileError) as caught:
        load_profile("llama-3.1-8b-h100-64g")
    assert "did you mean 'llama-3.1-8b-h100-64gb'?" in str(caught.value.hint)
    with pytest.raises(ProfileError) as caught:
        load_profile("zzz")
    assert "did you mean" not in str(caught.value.hint)


def test_other_model_is_refused() -> None:
    """A profile says nothing about a model it was not measured with."""
    profile = load_profile(PROFILES[0])
    with pytest.raises(ProfileError, match=r"'qwen2\.5-7b'.*measured with 'llama-3\.1-8b'"):
        profile.require_match(model="qwen2.5-7b", gpu_memory_gib=63.43)


@pytest.mark.parametrize("memory_gib", [80.0, 62.7, 64.2])
def test_other_gpu_memory_is_refused(memory_gib: float) -> None:
    """Beyond 1 % it is another GPU."""
    with pytest.raises(ProfileError, match=rf"{memory_gib:g} GiB.*63\.43 GiB"):
        load_profile(PROFILES[0]).require_match(model="llama-3.1-8b", gpu_memory_gib=memory_gib)


@pytest.mark.parametrize("memory_gib", [63.43, 63.0, 64.0])
def test_same_model_and_nearly_the_same_memory_are_accepted(memory_gib: float) -> None:
    """Drivers reserve slightly different amounts of the same card."""
    load_profile(PROFILES[0]).require_match(model="llama-3.1-8b", gpu_memory_gib=memory_gib)


@pytest.mark.parametrize("text", ["{", "", '{"name": "x",}'])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    """A truncated file is named as such."""
    with pytest.raises(ProfileError, match="valid JSON") as caught:
        parse_profile(text, file="broken.json")
    assert caught.value.file == "broken.json"


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A binary file in place of a profile."""
    path = tmp_path / "profile.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="readable file"):
        load_profile(str(path))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "blue"}, "colour"),
        ({"schema_version": 2}, "schema_version"),
        ({"gpu_memory_gib": -1}, "gpu_memory_gib"),
        ({"load_times": []}, "load_times"),
        ({"startup": {"base_s": 1, "per_slot_s": 1, "per_rank_s": 1}}, "startup.per_rank_s"),
        ({"memory": {"overhead_gib": float("nan")}}, "memory.overhead_gib"),
        ({"memory": {"overhead_gib": float("inf")}}, "memory.overhead_gib"),
    ],
)
def test_content_outside_the_schema_is_refused(change: dict[str, Any], field: str) -> None:
    """Unknown keys and values out of range; the attribute names the field."""
    with pytest.raises(ProfileError, match="must follow its schema") as caught:
        parse_profile(json.dumps(llama_json() | change), file="mine.json")
    assert (caught.value.field, caught.value.file) == (field, "mine.json")


def test_negative_coefficients_are_refused() -> None:
    """No term saves time."""
    content = llama_json()
    content["step_time"]["token_ms"] = -0.01
    with pytest.raises(ProfileError) as caught:
        parse_profile(json.dumps(content), file="mine.json")
    assert caught.value.field == "step_time.token_ms"


@pytest.mark.parametrize("ranks", [(16, 8), (8, 8)])
def test_load_times_out_of_order_are_refused(ranks: tuple[int, int]) -> None:
    """Interpolation needs strictly increasing ranks."""
    entries = [{"rank": rank, "cpu_to_gpu_ms": 1.0, "disk_to_cpu_ms": 1.0} for rank in ranks]
    with pytest.raises(ProfileError, match="strictly increasing"):
        parse_profile(json.dumps(llama_json() | {"load_times": entries}), file="mine.json")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(16, 8, 1.0)], "at least the rank"),
        ([(8, None, 1.0), (8, 16, 1.0)], "without `max_lora_rank`"),
        ([(8, 16, 1.0), (8, 8, 1.0)], "strictly increasing"),
        ([(8, 8, 1.0), (8, 16, 2.0)], "one `disk_to_cpu_ms` per rank"),
    ],
)
def test_load_times_by_slot_that_contradict_each_other_are_refused(
    entries: list[tuple[int, int | None, float]], message: str
) -> None:
    """A slot below the rank, two ways to say one thing, a wrong order, a read that depends on the slot."""
    times = [
        {"rank": rank, "max_lora_rank": slot, "cpu_to_gpu_ms": 1.0, "disk_to_cpu_ms": disk}
        for rank, slot, disk in entries
    ]
    with pytest.raises(ProfileError, match=message):
        parse_profile(json.dumps(llama_json() | {"load_times": times}), file="mine.json")


@pytest.mark.parametrize(
    ("rank", "max_lora_rank", "expected"),
    [
        (8, 8, 6.0),  # measured
        (8, 32, 8.0),  # measured
        (8, 16, 7.0),  # half way between the logarithms of the ratios 1 and 4
        (8, 64, 8.0),  # a larger ratio than any measured: held
        (32, 32, 6.5),  # measured
        (16, 16, 6.0 + 0.5 / 3),  # between ranks at ratio 1
        (16, 64, 8.0),  # ratio 4 was measured at rank 8 only
        (64, 8, 6.5 + 2 / 3),  # no slot is smaller than its adapter; beyond the ranks: linear
    ],
)
def test_copies_depend_on_the_ratio_of_slot_and_adapter(rank: int, max_lora_rank: int, expected: float) -> None:
    """Ranks 8 (in slots of 8 and 32) and 32 (in slots of 32) were measured."""
    times = ((8, 8, 6.0, 50.0), (8, 32, 8.0, 50.0), (32, 32, 6.5, 120.0))
    entries = tuple(
        LoadTime(rank=own, max_lora_rank=slot, cpu_to_gpu_ms=copy, disk_to_cpu_ms=disk)
        for own, slot, copy, disk in times
    )
    profile = load_profile(PROFILES[0]).model_copy(update={"load_times": entries})
    assert profile.load_time_ms(rank, max_lora_rank)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (8, (5.0, 60.0)),  # measured
        (12, (6.25, 70.0)),  # between two measurements
        (32, (7.0, 120.0)),  # measured
        (64, (7.0, 200.0)),  # beyond: the slope of the last two, the first of which would fall and is held
        (1, (5.0, 60.0)),  # below: held
    ],
)
def test_load_time_is_interpolated(rank: int, expected: tuple[float, float]) -> None:
    """CPU to GPU falls from rank 16 to 32 here, disk to CPU rises."""
    profile = with_load_times((8, 5.0, 60.0), (16, 7.5, 80.0), (32, 7.0, 120.0))
    assert profile.load_time_ms(rank, 64) == pytest.approx(expected)


@pytest.mark.parametrize("rank", [1, 16, 256])
def test_single_load_time_holds_for_every_rank(rank: int) -> None:
    """With one measurement there is no slope."""
    assert with_load_times((16, 7.0, 80.0)).load_time_ms(rank, 512) == (7.0, 80.0)


@given(
    times=st.dictionaries(st.integers(1, 512), st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1, max_size=6),
    rank=st.integers(1, 512),
)
def test_load_time_is_never_below_the_smallest_measured_one(times: dict[int, tuple[float, float]], rank: int) -> None:
    """Neither between nor beyond the measured ranks does extrapolation promise a faster load than any measured."""
    profile = with_load_times(*((key, *times[key]) for key in sorted(times)))
    gpu_ms, disk_ms = profile.load_time_ms(rank, 512)
    assert gpu_ms >= min(value[0] for value in times.values()) * (1 - 1e-12)
    assert disk_ms >= min(value[1] for value in times.values()) * (1 - 1e-12)
