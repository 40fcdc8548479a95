"""Files: read with messages that name file and line, written whole or not at all."""

import datetime as dt
import gc
import json
import os
import stat
from pathlib import Path

import pytest

from placer.files import (
    load_plan,
    load_problem,
    plan_to_json,
    read_document,
    require_writable,
    save_plan,
    sha256_of,
    write_atomically,
)
from placer.plan_document import Plan
from placer.planning import plan
from tests.placer.small_fleets import fair_surrogate, small_data, small_problem, write_problem
from twin.errors import InputError, ProfileError


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Return a plan of a small problem, not simulated."""
    problem = small_problem(tmp_path_factory.mktemp("problem"))
    return plan(problem, surrogate=fair_surrogate(), verify=False)


def test_a_problem_is_the_same_from_yaml_and_from_json(tmp_path: Path) -> None:
    """The suffix decides how a file is read, not what it means."""
    data = small_data()
    from_yaml = load_problem(write_problem(tmp_path, data))
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    from_json = load_problem(path)
    assert from_json.adapters == from_yaml.adapters
    assert from_json.limits == from_yaml.limits


@pytest.mark.parametrize("is_enabled", [True, False])
def test_reading_leaves_the_collector_as_it_was(tmp_path: Path, *, is_enabled: bool) -> None:
    """Also when the file is refused."""
    was_enabled = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        load_problem(write_problem(tmp_path, small_data()))
        with pytest.raises(InputError):
            load_problem(write_problem(tmp_path, {"model": 1}))
        assert gc.isenabled() == is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_a_value_that_stands_twice_keeps_its_type(tmp_path: Path) -> None:
    """The text 8 is a number where it is plain, and a name where it is quoted."""
    path = tmp_path / "problem.yaml"
    path.write_text("[8, '8', 8.0, \"8\", 8, null, '', ~, 2026-11-22, '2026-11-22']", encoding="utf-8")
    data, _ = read_document(path)
    day = dt.date(2026, 11, 22)
    assert data == [8, "8", 8.0, "8", 8, None, "", None, day, "2026-11-22"]
    assert [type(value) for value in data[:5]] == [int, str, float, str, int]


def test_a_problem_knows_its_file_by_content(tmp_path: Path) -> None:
    """A plan can say later whether the file has changed."""
    path = write_problem(tmp_path, small_data())
    (entry,) = load_problem(path).inputs
    assert (entry.role, entry.name, entry.sha256) == ("problem", str(path), sha256_of(path.read_bytes()))


def test_a_trace_is_an_input_by_content_too(tmp_path: Path) -> None:
    """What a problem is derived from decides the plan as much as the problem file."""
    trace = tmp_path / "requests.csv"
    trace.write_text("time,prompt,output\n" + "".join(f"{i},100,10\n" for i in range(50)), encoding="utf-8")
    counts = tmp_path / "counts.csv"
    counts.write_text("id,requests\na,5\nb,3\n", encoding="utf-8")
    data = small_data()
    del data["adapters"]
    data["trace"] = {"file": trace.name, "adapters": {"count": 2, "popularity": f"file:{counts.name}"}}
    problem = load_problem(write_problem(tmp_path, data))
    assert [entry.role for entry in problem.inputs] == ["problem", "trace", "popularity"]
    assert problem.inputs[1].sha256 == sha256_of(trace.read_bytes())
    assert problem.inputs[2].sha256 == sha256_of(counts.read_bytes())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("p.yaml", "model: a\nlimits: {}\nmodel: b\n", id="yaml"),
        pytest.param("p.json", '{"model": "a",\n "limits": {},\n "model": "b"}\n', id="json"),
    ],
)
def test_a_repeated_key_is_refused_with_both_lines(tmp_path: Path, name: str, text: str) -> None:
    """The parsers keep the last value silently, and the first one may have been meant."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"`model` again .*:3\).* line 1") as caught:
        load_problem(path)
    assert (caught.value.file, caught.value.field) == (str(path), "model")


def test_a_repeated_key_in_an_adapter_is_refused(tmp_path: Path) -> None:
    """Nested mappings are looked at as well."""
    path = tmp_path / "p.yaml"
    path.write_text("adapters:\n  - {name: a, rank: 8, rank: 16}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"`rank` again .*p.yaml:2"):
        load_problem(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("p.yaml", "model: [a\nlimits: {}\n", r"valid YAML.*p.yaml:\d", id="yaml"),
        pytest.param("p.json", '{"model": "a",\n', r"valid JSON.*p.json:2", id="truncated json"),
        pytest.param("p.yaml", "", "is empty", id="empty"),
        pytest.param("p.yaml", "- a\n- b\n", "must be a mapping", id="list"),
        pytest.param("p.yaml", "[" * 3000, "valid YAML|nested", id="deep"),
    ],
)
def test_a_file_that_is_no_problem_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    """The message names the file, and the line where there is one."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_problem(path)
    assert caught.value.file == str(path)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """A spreadsheet's export in another encoding gets a sentence, not a decoder's traceback."""
    path = tmp_path / "p.yaml"
    path.write_bytes("model: é".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        load_problem(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The reason is the system's."""
    with pytest.raises(InputError, match="No such file"):
        load_problem(tmp_path / "none.yaml")


def test_the_profile_can_be_replaced(tmp_path: Path) -> None:
    """The option goes through the same checks as the file: a profile of another model is refused."""
    path = write_problem(tmp_path, small_data())
    assert load_problem(path, profile="llama-3.1-8b-h100-64gb").profiles[0].name == "llama-3.1-8b-h100-64gb"
    with pytest.raises(ProfileError, match=r"qwen2\.5-7b"):
        load_problem(path, profile="qwen2.5-7b-h100-64gb")


def test_a_plan_survives_its_file(tmp_path: Path, small_plan: Plan) -> None:
    """What is read is what was written, and it is the documented JSON."""
    path = tmp_path / "plan.json"
    save_plan(small_plan, path)
    assert load_plan(path) == small_plan
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema_version"] == 1
    assert list(content) == sorted(content)
    assert content["gpus"][0]["engine"]["max_loras"] == small_plan.gpus[0].engine.max_loras


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_plan_is_refused_with_what_to_do(tmp_path: Path, small_plan: Plan, share: float) -> None:
    """A plan that was cut off is no shorter plan."""
    text = plan_to_json(small_plan)
    path = tmp_path / "plan.json"
    path.write_text(text[: int(share * len(text))], encoding="utf-8")
    with pytest.raises(InputError, match="complete JSON") as caught:
        load_plan(path)
    assert caught.value.file == str(path)
    assert "placer solve" in str(caught.value.hint)


def test_a_plan_with_another_schema_is_refused_by_field(tmp_path: Path, small_plan: Plan) -> None:
    """The first offence is named with its place."""
    content = small_plan.model_dump(mode="json")
    content["gpus"][0]["engine"]["max_loras"] = 0
    content["surprise"] = 1
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"gpus\.0\.engine\.max_loras.* And 1 more"):
        load_plan(path)


def test_a_problem_is_no_plan(tmp_path: Path) -> None:
    """The two files are easily mixed up on a command line."""
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(small_data()), encoding="utf-8")
    with pytest.raises(InputError, match=r"a plan must have .*problem\.json is another document"):
        load_plan(path)


def test_writing_replaces_the_old_content_and_keeps_the_mode(tmp_path: Path) -> None:
    """A file that others may not read stays so."""
    path = tmp_path / "out"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o600)
    write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    """Temporary files are private; what takes their place must not be."""
    usual = tmp_path / "usual"
    usual.touch()
    write_atomically(tmp_path / "new", b"1")
    assert (tmp_path / "new").stat().st_mode == usual.stat().st_mode


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is found out when data is forced to it: the target is untouched, no temporary file stays."""
    path = tmp_path / "out"
    path.write_text("old", encoding="utf-8")

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a write is no half-written plan."""
    path = tmp_path / "out"
    path.write_text("old", encoding="utf-8")

    def interrupt(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    """The file behind a link is replaced, not the link."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"


def test_a_pipe_is_refused_and_stays_a_pipe(tmp_path: Path) -> None:
    """What is no file must neither be replaced nor stop the program until somebody reads it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for refuse in (require_writable, lambda target: write_atomically(target, "x")):
        with pytest.raises(InputError, match="It is a pipe or a device"):
            refuse(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_links_in_a_circle_are_refused_and_stay(tmp_path: Path) -> None:
    """There is no file behind them that could be written."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to(other)
    other.symlink_to(one)
    with pytest.raises(InputError, match="Its links do not end at a file"):
        write_atomically(one, "x")
    assert one.is_symlink()


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"])
def test_other_descriptors_are_refused(name: str) -> None:
    """The file behind them must not be replaced while the program writes to it; none is opened here."""
    with pytest.raises(InputError, match="It is a pipe or a device"):
        require_writable(name)


@pytest.mark.parametrize("make", ["folder", "no folder", "file as folder"])
def test_an_unwritable_path_is_named_before_any_work(tmp_path: Path, make: str) -> None:
    """An hour of search must not end in a path that never existed."""
    file = tmp_path / "file"
    file.touch()
    path = {"folder": tmp_path, "no folder": tmp_path / "none" / "out", "file as folder": file / "out"}[make]
    for refuse in (require_writable, lambda target: write_atomically(target, "x")):
        with pytest.raises(InputError, match="must be writable") as caught:
            refuse(path)
        assert caught.value.file == str(path)
