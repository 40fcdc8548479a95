"""Data sets on disk: resumed, refused, and proven complete."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from predictors.dataset import ROWS_PER_SHARD, Progress, load_dataset, sample_dataset
from predictors.dataset_folder import MANIFEST_NAME, Manifest, check_folder, shard_name
from predictors.features import FEATURE_SCHEMA
from predictors.labelling import LABEL_NAMES, STARTS
from twin.errors import InputError
from twin.profile import PerformanceProfile, load_profile

HORIZON_S, WARMUP_S = 20.0, 5.0
SEED = 7


class StoppedError(Exception):
    """Somebody pressed Ctrl-C."""


def sample(
    profile: PerformanceProfile, folder: Path, *, shards: int, stop_at: int | None = None, **changes: object
) -> list[Progress]:
    """Sample shards of very short simulations; raise when `stop_at` of them are there. Return the progress heard."""
    seen: list[Progress] = []

    def observe(progress: Progress) -> None:
        seen.append(progress)
        if progress.finished_shards == stop_at:
            raise StoppedError

    settings = {"seed": SEED, "seeds": 1, "horizon_s": HORIZON_S, "warmup_s": WARMUP_S, "workers": 1, **changes}
    sample_dataset(profile, rows=shards * ROWS_PER_SHARD, output=folder, observer=observe, **settings)  # type: ignore[arg-type]
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of three shards, sampled with an interruption after the first."""
    path = tmp_path_factory.mktemp("data") / "set"
    profile = load_profile("llama-3.1-8b-h100-64gb")
    with pytest.raises(StoppedError):
        sample(profile, path, shards=3, stop_at=1)
    assert [entry.name for entry in sorted(path.glob("shard-*"))] == [shard_name(0)]
    assert check_folder(path).problems == ("shard 1 has not been sampled yet", "shard 2 has not been sampled yet")
    progress = sample(profile, path, shards=3)
    assert [entry.finished_shards for entry in progress] == [1, 2, 3]
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of that data set to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "set"))


def test_an_interruption_changes_nothing(whole: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """What was sampled in two calls equals what one call gives, file by file, with any number of workers."""
    sample(profile, tmp_path, shards=3, workers=2)
    for shard in range(3):
        assert (tmp_path / shard_name(shard)).read_bytes() == (whole / shard_name(shard)).read_bytes()
    assert (tmp_path / MANIFEST_NAME).read_bytes() == (whole / MANIFEST_NAME).read_bytes()


def test_a_finished_data_set_is_left_alone(whole: Path, profile: PerformanceProfile) -> None:
    """Running the same command again, or one that asks for less, is free."""
    before = {entry.name: entry.stat().st_mtime_ns for entry in whole.glob("shard-*")}
    assert [progress.finished_shards for progress in sample(profile, whole, shards=1)] == [3]
    assert {entry.name: entry.stat().st_mtime_ns for entry in whole.glob("shard-*")} == before


def test_a_data_set_can_grow(folder: Path, profile: PerformanceProfile) -> None:
    """More rows of the same settings are more shards; those that are there stay."""
    sample(profile, folder, shards=4)
    assert check_folder(folder).num_shards == 4
    assert check_folder(folder).problems == ()


def test_the_rows_are_labelled_features(whole: Path) -> None:
    """Both verdicts occur, every column is there, and no half-written file is left."""
    table, manifest = load_dataset(whole)
    everything, _ = load_dataset(whole, with_unstartable=True)
    assert len(table) == 3 * ROWS_PER_SHARD
    assert manifest.num_rows == len(everything)
    assert sum(entry.unstartable_rows for entry in manifest.shards) == (everything["memory_verdict"] != STARTS).sum()
    assert table[list(FEATURE_SCHEMA.names)].notna().all().all()
    assert set(LABEL_NAMES) <= set(table.columns)
    assert 0.1 < (table["starved_share"] >= 0.5).mean() < 0.9
    assert (table["replica_starved_share"] <= table["starved_share"]).all()
    assert sorted(path.name for path in whole.iterdir()) == [MANIFEST_NAME, *map(shard_name, range(3))]


def test_the_manifest_says_what_the_data_is(whole: Path, profile: PerformanceProfile) -> None:
    """Settings, versions and per shard rows and hash; no clock, so that the same data has the same manifest."""
    content = json.loads((whole / MANIFEST_NAME).read_text())
    assert content["settings"]["seed"] == SEED
    assert content["settings"]["profile"]["name"] == profile.name
    assert content["settings"]["feature_schema_version"] == FEATURE_SCHEMA.version
    assert {"python", "numpy", "numba"} <= set(content["versions"][0])
    assert [entry["shard"] for entry in content["shards"]] == [0, 1, 2]
    assert all(len(entry["sha256"]) == 64 for entry in content["shards"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 8),
        ("seeds", 2),
        ("horizon_s", 99.0),
        ("warmup_s", 1.0),
        ("families", ("zipf",)),
        ("loads", (6, 6)),
    ],
)
def test_another_data_set_is_not_continued(name: str, value: object, whole: Path, profile: PerformanceProfile) -> None:
    """Rows of two settings in one folder would poison the fit; the message names the setting and both values."""
    with pytest.raises(InputError, match=f"has `{name}`") as caught:
        sample(profile, whole, shards=1, **{name: value})  # type: ignore[arg-type]
    assert caught.value.field == name


def test_another_profile_is_not_continued(whole: Path) -> None:
    """Labels of two GPUs are two data sets."""
    with pytest.raises(InputError) as caught:
        sample(load_profile("qwen2.5-7b-h100-64gb"), whole, shards=1)
    assert caught.value.field == "profile"


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_manifest_is_named(text: str, profile: PerformanceProfile, tmp_path: Path) -> None:
    """A manifest that cannot be read is no reason to overwrite shards."""
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(InputError, match=MANIFEST_NAME):
        sample(profile, tmp_path, shards=1)


def test_a_folder_that_cannot_be_made_is_named(profile: PerformanceProfile, tmp_path: Path) -> None:
    """The message says which folder, not only that something failed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder that can be written"):
        sample(profile, tmp_path / "file" / "set", shards=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 0),
        ("seed", -1),
        ("seeds", 0),
        ("warmup_s", 700.0),
        ("horizon_s", 9.0),
        ("families", ("none",)),
        ("loads", (14, 5)),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: object, profile: PerformanceProfile, tmp_path: Path) -> None:
    """Before anything is written."""
    settings = {"rows": 1, name: value}
    with pytest.raises(InputError):
        sample_dataset(profile, output=tmp_path / "set", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    """Training and checking name the command that makes a data set."""
    for read in (load_dataset, check_folder):
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        assert caught.value.hint == "make one with `placer dataset`"


def test_a_complete_data_set_is_proven(whole: Path) -> None:
    """Every shard, every row, every scenario once."""
    found = check_folder(whole)
    assert (found.num_shards, found.num_scenarios, found.problems) == (3, 24, ())
    assert found.num_rows == sum(len(pd.read_parquet(path)) for path in whole.glob("shard-*.parquet"))


def test_a_removed_shard_is_missed_and_sampled_again(folder: Path, whole: Path, profile: PerformanceProfile) -> None:
    """Somebody tidied up: the check says which, and the same command brings it back as it was."""
    (folder / shard_name(1)).unlink()
    assert check_folder(folder).problems == ("shard-00001.parquet cannot be read: No such file or directory",)
    with pytest.raises(InputError, match="must be a readable Parquet file"):
        load_dataset(folder)
    assert [progress.finished_shards for progress in sample(profile, folder, shards=3)] == [2, 3]
    assert (folder / shard_name(1)).read_bytes() == (whole / shard_name(1)).read_bytes()


def test_a_truncated_shard_is_found(folder: Path) -> None:
    """A copy that was cut off is no Parquet file."""
    path = folder / shard_name(2)
    path.write_bytes(path.read_bytes()[:-100])
    (problem,) = check_folder(folder).problems
    assert problem.startswith("shard-00002.parquet is damaged")
    with pytest.raises(InputError, match="must be a readable Parquet file"):
        load_dataset(folder)


def test_a_changed_shard_is_found(folder: Path) -> None:
    """Readable, with the right scenarios and rows, but not the labels that were written."""
    path = folder / shard_name(0)
    table = pd.read_parquet(path)
    table["starved_share"] = 0.0
    table.to_parquet(path, index=False)
    assert check_folder(folder).problems == (
        "shard-00000.parquet is not the file that was written: its SHA-256 differs",
    )


def test_lost_rows_are_found(folder: Path) -> None:
    """A shard without its last row has all scenarios and is not whole."""
    path = folder / shard_name(0)
    pd.read_parquet(path).iloc[:-1].to_parquet(path, index=False)
    (problem,) = check_folder(folder).problems
    assert "must have" in problem
    assert "rows" in problem


def test_a_duplicated_shard_is_found(folder: Path) -> None:
    """Under a shard's name its scenarios are wrong and repeated; under a new name it is not in the manifest."""
    shutil.copy(folder / shard_name(0), folder / shard_name(7))
    assert check_folder(folder).problems == ("shard-00007.parquet is not in the manifest",)
    shutil.copy(folder / shard_name(0), folder / shard_name(1))
    problems = check_folder(folder).problems
    assert "shard-00001.parquet must hold the scenarios 8 to 15, and does not" in problems
    assert [problem for problem in problems if problem.startswith("scenario")] == [
        f"scenario {number} is in 2 shards" for number in range(8)
    ]


def test_a_shard_that_was_written_but_not_listed_is_made_again(folder: Path, profile: PerformanceProfile) -> None:
    """Whoever is stopped between the two writes loses nothing and counts nothing twice."""
    manifest = Manifest.read(folder)
    assert manifest is not None
    manifest.model_copy(update={"shards": manifest.shards[:2]}).write(folder)
    assert "shard-00002.parquet is not in the manifest" in check_folder(folder).problems
    sample(profile, folder, shards=3)
    assert check_folder(folder).problems == ()


def test_fewer_loads_are_more_scenarios(profile: PerformanceProfile, tmp_path: Path) -> None:
    """A shard has the same scenarios, each at so many loads of its two replicas."""
    sample_dataset(profile, output=tmp_path / "set", rows=1, seeds=1, loads=(7, 6), horizon_s=20.0, warmup_s=5.0)
    table, manifest = load_dataset(tmp_path / "set")
    assert manifest.settings.loads == (7, 6)
    assert table.groupby(["scenario", "search"]).size().unstack().to_numpy().tolist() == [[7, 6]] * 8


def test_a_data_set_from_before_loads_could_be_chosen_is_continued(whole: Path, tmp_path: Path) -> None:
    """Its manifest does not name them: they were what is usual now."""
    manifest = json.loads((whole / MANIFEST_NAME).read_text())
    assert manifest["settings"].pop("loads") == [14, 8]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    read = Manifest.read(tmp_path)
    assert read is not None
    assert read.settings.loads == (14, 8)
