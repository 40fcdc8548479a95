"""Documents that are small and mean harm, or are damaged: each ends soon, with an error that names the file."""

import gzip
import json
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_readers import damaged, outcome_of
from benchmarks.fuzz_target import SEEDS, Target
from benchmarks.fuzz_targets import TARGETS
from placer.comparison_report import read_previous
from placer.files import load_problem, read_document
from placer.whatif.scenario import read_scenarios
from predictors.dataset_folder import check_folder
from twin.bounded_read import MIB, read_bounded
from twin.calibration.serving_settings import parse_settings
from twin.errors import MOST_CHARACTERS, InputError, ProfileError
from twin.hardware import load_model
from twin.popularity import parse_popularity
from twin.profile import load_profile
from twin.tables import read_csv_table, read_parquet_table

DEEP = "[" * 100_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "m0: &m0 {k: v}\n" + "".join(
    f"m{level + 1}: &m{level + 1} {{<<: [{', '.join([f'*m{level}'] * 9)}]}}\n" for level in range(8)
)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        pytest.param(BOMB, "values", id="aliases"),
        pytest.param(MERGES, "values", id="merge keys"),
        pytest.param("model: &m [*m]\n", "nested too deep", id="a list in itself"),
        pytest.param("model: " + "[" * 500 + "]" * 500, "nested too deep", id="depth"),
        pytest.param("model: 2001-99-99\n", "'2001-99-99' is no timestamp", id="date"),
        pytest.param("x: 1\nmodel: !!int x\n", ":2: 'x' is no int", id="number"),
        pytest.param("model: !!bool maybe\n", "'maybe' is no bool", id="truth"),
        pytest.param("model: !!float ''\n", "is no float", id="empty number"),
        pytest.param("model: " + "9" * 5000, "is no int", id="digits"),
        pytest.param("model: !!python/object/apply:os.system ['exit 1']\n", "could not determine", id="a call"),
    ],
)
def test_yaml_that_means_more_than_it_says_is_refused(tmp_path: Path, text: str, fragment: str) -> None:
    """Aliases, merge keys, depth, and what PyYAML converts without a check."""
    path = tmp_path / "problem.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (load_problem, read_scenarios):
        with pytest.raises(InputError) as caught:
            read(path)
        assert fragment in caught.value.message
        assert caught.value.file == str(path)


@pytest.mark.parametrize("text", [DEEP, "9" * 5000, "[" * 70 + "]" * 70])
def test_json_that_python_cannot_follow_is_refused(tmp_path: Path, text: str) -> None:
    """Depth and digits have limits of the interpreter, which are no errors of JSON to it."""
    path = tmp_path / "problem.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        load_problem(path)
    path.write_text(f'{{"a": {text}}}', encoding="utf-8")
    with pytest.raises(InputError):
        read_previous(path)
    with pytest.raises(InputError):
        load_model(str(path))
    with pytest.raises(ProfileError):
        load_profile(str(path))


def test_documents_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    """A device that never ends, too: no more is asked for than the limit."""
    with pytest.raises(OSError, match="larger than the 1 MiB"):
        read_bounded("/dev/zero", most_bytes=MIB)
    with pytest.raises(OSError, match="such a name"):
        read_bounded("a\0b")
    path = tmp_path / "whole"
    path.write_bytes(b"x" * MIB)
    assert len(read_bounded(path, most_bytes=MIB)) == MIB


def test_packed_tables_count_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of a table's size can be in the file."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"time,prompt\n" + b"1,1\n" * 100_000))
    assert path.stat().st_size < 10_000
    assert len(read_csv_table(path).frame) == 100_000
    monkeypatch.setattr("twin.tables.MOST_TABLE_BYTES", 100_000)
    with pytest.raises(InputError, match="larger than"):
        read_csv_table(path)


def test_repeated_cells_of_parquet_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million equal cells take some hundred bytes."""
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": [1.0] * 100_000}).to_parquet(path)
    monkeypatch.setattr("twin.tables.MOST_TABLE_BYTES", 100_000)
    with pytest.raises(InputError, match="100,000 cells"):
        read_parquet_table(path)


def test_bytes_in_a_table_are_refused(tmp_path: Path) -> None:
    """No column of ours has any."""
    path = tmp_path / "t.parquet"
    pd.DataFrame({"group": [b"\xff"]}).to_parquet(path)
    with pytest.raises(InputError, match="the column 'group' has bytes"):
        read_parquet_table(path)


@pytest.mark.parametrize("text", ["x" * 5000, "a\x00b", "nothing"])
def test_no_name_of_a_popularity_is_a_crash(text: str) -> None:
    """Names that no file can have are no files; the message stays short."""
    with pytest.raises(InputError) as caught:
        parse_popularity(text)
    assert len(caught.value.message) <= MOST_CHARACTERS + 10


@pytest.mark.parametrize("count", [10**400, 2**31, 0])
def test_numbers_of_adapters_have_a_limit(count: int) -> None:
    """A number is one share for each adapter."""
    with pytest.raises(InputError, match="up to 1,000,000"):
        parse_settings({"adapters": count}, file="settings.yaml")


@pytest.mark.parametrize("name", ["max_num_batched_tokens", "max_num_seqs", "max_model_len", "block_size", "max_loras"])
def test_settings_have_the_range_of_vllm(tmp_path: Path, name: str) -> None:
    """What no float64 holds ended in an overflow of the memory's arithmetic."""
    path = tmp_path / "problem.json"
    data, _ = read_document(SEEDS / "problem.yaml")
    path.write_text(json.dumps(data | {"engine": {name: 10**400}}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_problem(path)
    assert caught.value.field is not None
    assert name in caught.value.field


@pytest.mark.parametrize("change", [{"adapter": "\ud800"}, {"request": [1]}, {"output_tokens": 10**30}])
def test_records_of_other_types_are_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    """Half a character, a list as a number, and a number beyond 64 bits."""
    (target,) = (target for target in TARGETS if target.name == "measurement, shard of requests")
    target.prepare(tmp_path)
    path = tmp_path / target.file
    first, *others = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *others]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="records must be"):
        target.read(tmp_path)


def test_architectures_that_are_no_list_are_refused(tmp_path: Path) -> None:
    """Whatever else stands there."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": {"a": 1}}), encoding="utf-8")
    with pytest.raises(InputError, match="architectures"):
        load_model(str(path))


def test_a_shard_of_other_scenarios_is_damaged(tmp_path: Path) -> None:
    """Lists, texts and gaps are no numbers of scenarios."""
    (target,) = (target for target in TARGETS if target.name == "data set, shard")
    target.prepare(tmp_path)
    for values in (["a"] * 8, [[1]] * 8, [None] * 8, [1.5] * 8):
        pd.DataFrame({"scenario": values}).to_parquet(tmp_path / target.file)
        assert "whole numbers" in " ".join(check_folder(tmp_path).problems)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_read_or_refused(target: Target, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`python -m benchmarks.fuzz_readers` reads many more of them."""

    @settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(random=st.randoms(use_true_random=False))
    def check(random: Random) -> None:
        folder = tmp_path_factory.mktemp("damaged")
        damaged(target, random, folder)
        outcome = outcome_of(target, folder)
        assert outcome.kind in {"read", "refused"}, outcome.detail

    whole = tmp_path_factory.mktemp("whole")
    target.prepare(whole)
    target.read(whole)
    check()
