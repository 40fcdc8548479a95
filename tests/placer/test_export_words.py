"""Names and words in what an export writes: shells, systemd, YAML, nginx and headers give back what was meant."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.export import systemd
from placer.export.arguments import read_arguments
from placer.export.commands import serve_command
from placer.export.exporting import export_plan
from placer.export.fleet_table import fleet_table
from placer.export.folder import write_folder
from placer.export.header_value import adapter_of, header_value
from placer.export.kubernetes import escape, expand
from placer.export.names import LONGEST, resource_names
from placer.export.nginx import quote, tokens
from placer.export.options import ExportOptions
from placer.export.routing_weights import whole_weights
from placer.export.yaml_text import from_yaml, to_yaml
from tests.placer.exported import AWKWARD, NAMES, plan_of, planned

SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
TEXTS = st.sampled_from(AWKWARD) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(names=st.lists(NAMES, unique=True, max_size=12), prefix=st.sampled_from(["", "vllm", "v" * 30]))
def test_resource_names_are_valid_different_and_of_their_own(names: list[str], prefix: str) -> None:
    """RFC 1123 and 1035; what else is named, and in which order, changes nothing."""
    found = resource_names(names, prefix=prefix)
    assert list(found.keys() ^ set(names)) == []
    assert len(set(found.values())) == len(names)
    for name, made in found.items():
        assert len(made) <= LONGEST
        assert made.isascii()
        assert made[0].isalpha()
        assert made[-1] != "-"
        assert made == made.lower()
        assert made.replace("-", "").isalnum()
        assert resource_names([name], prefix=prefix)[name] == made
    assert resource_names(reversed(names), prefix=prefix) == found


def test_a_name_that_looks_like_a_digest_does_not_collide() -> None:
    """Valid names keep themselves; the other one gets a longer digest."""
    made = resource_names(["A b"])["A b"]
    found = resource_names(["A b", made])
    assert found[made] == made
    assert found["A b"] != made


@given(words=st.lists(TEXTS, max_size=6))
def test_a_units_command_is_split_into_its_words(words: list[str]) -> None:
    """On one line, without anything that systemd would expand."""
    line = systemd.quote_words(words)
    assert systemd.split_words(line) == words
    assert line.isprintable() or not line
    assert "%" not in line.replace("%%", "")
    assert "$" not in line.replace("$$", "")


@given(word=TEXTS)
def test_kubernetes_expands_nothing(word: str) -> None:
    """``$(NAME)`` in a command stands for a variable, and ``$$`` for the dollar."""
    assert expand(escape(word)) == word
    assert "$(" not in escape(word).replace("$$", "")


@given(values=st.lists(TEXTS, max_size=5))
def test_yaml_gives_back_every_string(values: list[str]) -> None:
    """With PyYAML's own loader; nothing is taken for a number, a date or a truth value."""
    document = {"list": values, "map": {value: value for value in values}}
    assert from_yaml(to_yaml([document, document]), where="here") == [document, document]
    assert list(yaml.safe_load_all(to_yaml([document]))) == [document]


@pytest.mark.parametrize(
    "word", ["1e3", "0o14", "12:30", "y", "NO", "off", "~", "0x1f", "1_000", ".5", "=", "2026-01-01"]
)
def test_words_that_parsers_disagree_about_are_quoted(word: str) -> None:
    """YAML 1.1 and 1.2 take some of them for numbers or truth values, and Kubernetes then refuses the resource."""
    assert to_yaml([{"a": word}]) == f'---\na: "{word}"\n'


@given(values=st.lists(TEXTS, max_size=5))
def test_nginx_parameters_are_read_back(values: list[str]) -> None:
    """Between marks and comments."""
    text = "".join(f"{quote(value)} # comment; }}\n" for value in values) + ";"
    assert list(tokens(text)) == [*(("", value) for value in values), (";", "")]


@given(name=TEXTS)
def test_a_header_can_have_what_stands_for_a_name(name: str) -> None:
    """Visible ASCII and inner spaces (RFC 9110), and plain names as they are."""
    value = header_value(name)
    assert adapter_of(value) == name
    assert value == value.strip()
    assert all(0x20 <= ord(character) < 0x7F for character in value)


@given(
    shares=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8),
    total=st.sampled_from([10_000, 1_000_000]),
)
def test_whole_weights_are_as_near_as_can_be(shares: list[float], total: int) -> None:
    """All of the requests, somebody for each replica, and no weight off by one but for those that would be nothing."""
    weights = whole_weights(shares, total)
    assert sum(weights) == total
    assert min(weights) >= 1
    ideal = [share * total / sum(shares) for share in shares]
    if min(ideal) >= 1:
        assert all(abs(weight - value) < 1 for weight, value in zip(weights, ideal, strict=True))


@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_a_command_gives_back_its_arguments(names: list[str]) -> None:
    """For a POSIX shell; and the adapters are read from it as they were."""
    table = fleet_table(plan_of([planned("gpu-0", names)]), ExportOptions())
    row = table.rows[0]
    words = shlex.split(serve_command(table, row))
    assert words == ["vllm", "serve", *table.serve_arguments(row, port=row.port)]
    assert read_arguments(words[2:], where="here").modules == {name: f"/adapters/{name}" for name in names}


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh here")
@pytest.mark.no_cover
def test_a_shell_runs_a_script_with_the_arguments_that_were_meant(tmp_path: Path) -> None:
    """A program in the place of vLLM notes what it is given: no name breaks out."""
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$CUDA_VISIBLE_DEVICES" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    plan = plan_of([planned("gpu-0", AWKWARD)])
    options = ExportOptions(vllm=str(program), vllm_arguments=("--seed", "$HOME\n'"))
    write_folder(tmp_path / "out", export_plan(plan, formats=["vllm"], options=options), is_forced=False)
    run = subprocess.run([tmp_path / "out" / "vllm" / "vllm-gpu-0.sh"], check=True, capture_output=True, cwd=tmp_path)
    table = fleet_table(plan, options)
    expected = ["0", "serve", *table.serve_arguments(table.rows[0], port=8000)]
    assert run.stdout.decode().split("\0")[:-1] == expected
    assert run.stderr == b""


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="there is no systemd-analyze here")
@pytest.mark.no_cover
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Its own check has nothing to say about units with any names."""
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    plan = plan_of([planned("gpu-0", AWKWARD), planned("It's\n%i", ["b"])])
    options = ExportOptions(vllm=str(program))
    write_folder(tmp_path / "out", export_plan(plan, formats=["systemd"], options=options), is_forced=False)
    units = sorted((tmp_path / "out" / "systemd" / "127.0.0.1").iterdir())
    run = subprocess.run(
        [str(SYSTEMD_ANALYZE), "verify", "--man=no", *units], check=False, capture_output=True, text=True
    )
    assert [line for line in run.stderr.splitlines() if "/out/systemd/" in line or "vllm" in line] == []


@settings(max_examples=5)
@given(name=NAMES)
def test_a_name_stays_in_its_annotation(name: str) -> None:
    """Labels and names are made of it; the original is kept beside them."""
    files = export_plan(plan_of([planned("gpu-0", [name])]), formats=["aibrix"])["aibrix"]
    document = from_yaml(files["model-adapters.yaml"], where="here")[0]
    assert document["metadata"]["annotations"] == {"lora-placer/adapter": name}
    assert document["metadata"]["name"] == resource_names([name])[name]
