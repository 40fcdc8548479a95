"""Instances of users: what a file may hold, and what is said about one that does not hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from placer.instances.user_files import InstanceFile, read_instances
from twin.errors import InputError

GOOD: dict[str, Any] = {
    "rank": [8, 16, 8],
    "rate_rps": [0.5, 0.25, 0],
    "prompt_tokens": [200, 100.5, 300],
    "output_tokens": [100, 1, 50],
}


def write(folder: Path, content: Any, name: str = "mine.json") -> Path:
    """Write an instance; return the folder."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_arrays_become_adapters_in_their_order(tmp_path: Path) -> None:
    """Lengths are constant; nothing but the arrays is needed."""
    (instance,) = read_instances(write(tmp_path, GOOD)).instances
    adapters = instance.problem.adapters
    assert (instance.name, instance.family) == ("mine", "user")
    assert [adapter.rank for adapter in adapters] == GOOD["rank"]
    assert [adapter.rate_rps for adapter in adapters] == GOOD["rate_rps"]
    assert [adapter.prompt_tokens.effective_mean for adapter in adapters] == GOOD["prompt_tokens"]
    assert [adapter.output_tokens.effective_mean for adapter in adapters] == GOOD["output_tokens"]
    assert (instance.lower_bound, instance.planted_gpus) == (None, None)


def test_settings_of_a_problem_file_are_taken(tmp_path: Path) -> None:
    """GPU types, engine, limits and objective are written as there; a bound is rounded up."""
    more = {
        "name": "named set",
        "adapter_names": ["x", "y", "z"],
        "lower_bound": 2.2,
        "planted_gpus": 3,
        "gpu_types": [{"name": "big", "memory_gib": 63.43, "cost_per_hour": 2.0, "profile": "llama-3.1-8b-h100-64gb"}],
        "engine": {"max_num_seqs": 64, "max_loras": 16},
        "limits": {"itl_p95_ms": 80},
        "objective": "least_cost",
    }
    (instance,) = read_instances(write(tmp_path, GOOD | more)).instances
    problem = instance.problem
    assert (instance.name, instance.lower_bound, instance.planted_gpus) == ("named_set", 3, 3)
    assert [adapter.name for adapter in problem.adapters] == ["x", "y", "z"]
    assert (problem.engine.max_num_seqs, problem.fixed_max_loras, problem.objective) == (64, 16, "least_cost")
    assert (problem.gpu_types[0].name, problem.limits.itl_p95_ms) == ("big", 80)


def test_unknown_keys_are_ignored_with_a_warning(tmp_path: Path) -> None:
    """Notes of the author's do no harm; a misspelt key is seen."""
    found = read_instances(write(tmp_path, GOOD | {"note": "x", "lower_bounds": 3}))
    assert found.warnings == (f"{tmp_path / 'mine.json'}: ignored `lower_bounds`, `note`",)


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Other files of the folder are not looked at; one file may be named itself."""
    for name in ("b.json", "a.json", "readme.txt"):
        write(tmp_path, GOOD, name)
    assert [instance.name for instance in read_instances(tmp_path).instances] == ["a", "b"]
    assert [instance.name for instance in read_instances(tmp_path / "b.json").instances] == ["b"]


@pytest.mark.parametrize(
    ("change", "field", "fragments"),
    [
        pytest.param({"rank": [8, 12, 8]}, "rank.1", ["`rank[1]`", "Got 12"], id="rank"),
        pytest.param({"rank": []}, "rank", ["`rank`"], id="no adapters"),
        pytest.param({"rate_rps": [0.1, -1, 0]}, None, ["`rate_rps[1]`", "at least 0", "Got -1"], id="rate"),
        pytest.param({"rate_rps": [0.1, "many", 0]}, "rate_rps.1", ["`rate_rps[1]`", "Got 'many'"], id="text"),
        pytest.param({"prompt_tokens": [1, 2]}, None, ["one value per adapter", "`prompt_tokens` has 2"], id="lengths"),
        pytest.param({"output_tokens": [1, 0, 1]}, None, ["`output_tokens[1]`", "at least 1"], id="tokens"),
        pytest.param({"lower_bound": -1}, "lower_bound", ["`lower_bound`", "Got -1"], id="bound"),
        pytest.param({"engine": {"max_num_seq": 3}}, "engine.max_num_seq", ["max_num_seq"], id="engine"),
        pytest.param({"model": "none"}, "model", ["none"], id="model"),
        pytest.param({"prompt_tokens": [1, 200_000, 3]}, "adapters.1.prompt_tokens", ["200000"], id="context"),
        pytest.param({"adapter_names": ["a", "a", "b"]}, "adapters.1.name", ["unique"], id="names"),
    ],
)
def test_what_does_not_hold_names_file_field_and_value(
    tmp_path: Path, change: dict[str, Any], field: str | None, fragments: list[str]
) -> None:
    """The author sees where to look."""
    with pytest.raises(InputError) as caught:
        read_instances(write(tmp_path, GOOD | change))
    assert caught.value.file == str(tmp_path / "mine.json")
    assert caught.value.field == field
    assert "mine.json" in caught.value.message
    for fragment in fragments:
        assert fragment in caught.value.message


@pytest.mark.parametrize("missing", ["rank", "rate_rps", "prompt_tokens", "output_tokens"])
def test_every_array_is_needed(tmp_path: Path, missing: str) -> None:
    """The first one that is missing is named."""
    with pytest.raises(InputError, match=f"`{missing}`"):
        read_instances(write(tmp_path, {key: value for key, value in GOOD.items() if key != missing}))


@pytest.mark.parametrize(
    ("content", "fragment"), [("{", "JSON"), ("[1]", "JSON object"), ("", "JSON")], ids=["cut off", "list", "empty"]
)
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, content: str, fragment: str) -> None:
    """Whatever it is, it is named."""
    with pytest.raises(InputError, match=fragment) as caught:
        read_instances(write(tmp_path, content))
    assert caught.value.file == str(tmp_path / "mine.json")


def test_a_folder_without_instances_is_refused(tmp_path: Path) -> None:
    """Also one that does not exist."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"at least one \.json file"):
            read_instances(folder)


def test_every_key_is_documented() -> None:
    """docs/compare.md has a row for each."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    section = text.split("\n## Instances of your own\n", 1)[1].split("\n## ", 1)[0]
    for name in InstanceFile.model_fields:
        assert f"`{name}`" in section, name
