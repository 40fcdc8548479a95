"""Exports of plans: what every target promises, the folder, and the commands."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from typer.testing import CliRunner

from placer.cli.application import app
from placer.export.exporting import TARGETS, export_plan, import_files, import_folder
from placer.export.fleet_table import fleet_table
from placer.export.folder import MANIFEST, check_folder, read_folder, write_folder
from placer.export.options import ExportOptions, export_options
from placer.export.placement import placement_of
from placer.export.routing_table import RoutingTable
from placer.files import save_plan
from placer.plan_document import Plan
from tests.placer.exported import divided_plan, plan_of, planned, plans
from twin.errors import InputError

ALL = tuple(TARGETS)


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("target", ALL)
@given(plan=plans())
@settings(max_examples=25)
def test_an_import_gives_the_same_plan(target: str, plan: Plan) -> None:
    """Placement, settings and shares survive every target, whatever the names are."""
    files = export_plan(plan, formats=[target])[target]
    found = import_files(target, files).placement
    assert placement_of(plan).differences(found) == []
    assert placement_of(plan) == found


@pytest.mark.parametrize("target", ALL)
@given(plan=plans())
@settings(max_examples=10)
def test_equal_plans_give_equal_files(target: str, plan: Plan) -> None:
    """Whoever keeps exports under version control sees what changed, and nothing else."""
    again = Plan.model_validate_json(plan.model_dump_json())
    assert export_plan(plan, formats=[target]) == export_plan(again, formats=[target])


@pytest.mark.parametrize("target", ALL)
@given(plan=plans())
@settings(max_examples=10)
def test_files_have_names_of_their_own_that_every_file_system_takes(target: str, plan: Plan) -> None:
    """No name of a GPU leads out of the folder, or makes two replicas one file."""
    paths = export_plan(plan, formats=[target])[target]
    assert all(part.strip(".") and part.isascii() and len(part) < 100 for path in paths for part in path.split("/"))
    assert len({path.lower() for path in paths}) == len(paths)


@pytest.mark.parametrize("target", ["vllm", "systemd", "kubernetes"])
def test_an_edited_setting_is_what_counts(target: str, tmp_path: Path) -> None:
    """An import reads what would run, not what placer noted beside it."""
    plan = divided_plan()
    write_folder(tmp_path / "out", export_plan(plan, formats=[target]), is_forced=False)
    file = next(path for path in sorted((tmp_path / "out" / target).rglob("*gpu-1*")))
    text = file.read_text(encoding="utf-8")
    before, after = ('"256"', '"64"') if target == "kubernetes" else ("--max-num-seqs 256", "--max-num-seqs 64")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")
    summary = import_folder(tmp_path / "out", plan=plan)
    assert summary.formats[0].differences == ("gpu-1: max_num_seqs is 64, not 256",)
    assert not summary.is_same


def test_an_edited_weight_is_what_counts() -> None:
    """The share that was noted is believed as long as it is what nginx does."""
    files = export_plan(divided_plan(), formats=["nginx"])["nginx"]
    assert "    12.35% vllm-gpu-0;" in files["maps.conf"]
    edited = {path: text.replace("12.35%", "50.00%") for path, text in files.items()}
    placement = import_files("nginx", edited).placement
    assert {entry.share for replica in placement.replicas for entry in replica.shares} == {0.5}


def test_a_part_of_an_adapter_without_the_rest_is_refused() -> None:
    """A file that was left out would silently take away a share of the requests."""
    files = export_plan(divided_plan(), formats=["kubernetes"])["kubernetes"]
    some = {path: text for path, text in files.items() if "gpu-0" not in path}
    with pytest.raises(InputError, match=r"must be 1 in sum\. Got 0\.876543 for 'big' on 1 replicas"):
        import_files("kubernetes", some)


def test_formats_that_differ_are_named(tmp_path: Path) -> None:
    """Without a plan, the formats of a folder are compared with its first one."""
    write_folder(tmp_path / "out", export_plan(divided_plan(), formats=["routes", "nginx"]), is_forced=False)
    maps = tmp_path / "out" / "nginx" / "maps.conf"
    maps.write_text(maps.read_text(encoding="utf-8").replace('"a" vllm-gpu-0', '"a" vllm-gpu-2'), encoding="utf-8")
    summary = import_folder(tmp_path / "out")
    assert summary.compared_with == "routes"
    assert [entry.differences for entry in summary.formats] == [(), ("gpu-0: lacks 'a'", "gpu-2: has 'a', too")]


def test_the_routing_table_says_where_each_part_goes() -> None:
    """Replicas share hosts and have ports of their own."""
    options = ExportOptions(hosts=("one", "two"), gpus_per_host=2, port=9000)
    files = export_plan(divided_plan(), formats=["routes"], options=options)["routes"]
    table = RoutingTable.model_validate_json(files["routes.json"])
    assert [replica.url for replica in table.replicas] == ["http://one:9000", "http://one:9001", "http://two:9000"]
    routes = {adapter.name: [(route.url, route.share) for route in adapter.routes] for adapter in table.adapters}
    assert routes["big"] == [("http://one:9000", 0.123456789), ("http://one:9001", 0.876543211)]
    assert routes["c"] == [("http://two:9000", 1.0)]


def test_a_replica_stays_where_it_is_said_to_be() -> None:
    """The others get what is free, in their order."""
    options = export_options(
        {"hosts": ["one", "two"], "gpus_per_host": 2, "endpoints": {"gpu-2": {"host": "one", "port": 7000, "gpu": 1}}}
    )
    found = [(row.name, row.url, row.gpu) for row in fleet_table(divided_plan(), options).rows]
    assert found == [("gpu-0", "http://one:8000", 0), ("gpu-1", "http://two:8000", 0), ("gpu-2", "http://one:7000", 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vllm_arguments": ["--max-loras=9"]}, "none of those that the plan decides"),
        ({"vllm_arguments": ["--max_num_seqs", "9"]}, "none of those that the plan decides"),
        ({"vllm_arguments": ["--no-async-sched"]}, "none of those that the plan decides"),
        ({"vllm_arguments": ["other-model"]}, "none of those that the plan decides"),
        ({"hosts": ["one", "two"]}, "a GPU for each of the 3 replicas"),
        ({"endpoints": {"gpu-9": {"host": "one", "port": 1}}}, "must be about GPUs of the plan. Got 'gpu-9'"),
        (
            {"endpoints": {name: {"host": "one", "port": 1} for name in ("gpu-0", "gpu-1")}},
            "must differ in port and GPU",
        ),
        ({"port": 65534}, "ports must be below 65536"),
        ({"adapter_sources": {"nobody": "/x"}}, "must be about adapters of the plan"),
        ({"adapter_sources": {"a": "/x\0"}}, "without NUL"),
        ({"adapter_path": "/adapters"}, "must have {name}"),
        ({"labels": {"team": "a b"}}, "what Kubernetes allows"),
        ({"model": "--trust-remote-code"}, "not an option"),
        ({"hosts": ["a b"]}, "`hosts.0`"),
        ({"header": "X Model"}, "`header`"),
        ({"imag": "x"}, "`imag`"),
    ],
)
def test_options_that_cannot_hold_are_refused(options: dict[str, object], message: str) -> None:
    """Each with the reason, before anything is written."""
    with pytest.raises(InputError) as caught:
        export_plan(divided_plan(), formats=["routes"], options=export_options(options))
    assert message in caught.value.message


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "."])
def test_a_name_must_not_lead_out_of_the_adapters_folder(name: str) -> None:
    """It may have a path of its own instead."""
    plan = plan_of([planned("gpu-0", [name])])
    with pytest.raises(InputError, match="must not lead out of the folder"):
        export_plan(plan, formats=["vllm"])
    options = ExportOptions(adapter_sources={name: "/adapters/x"})
    files = export_plan(plan, formats=["vllm"], options=options)["vllm"]
    assert '"path": "/adapters/x"' in files["vllm-gpu-0.sh"]


def test_a_plan_without_a_placement_is_refused() -> None:
    """There is nothing to run."""
    with pytest.raises(InputError, match="must have a placement"):
        export_plan(plan_of([]), formats=["vllm"])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Unless it is forced: then what was there is kept beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it", encoding="utf-8")
    contents = export_plan(divided_plan(), formats=["vllm"])
    with pytest.raises(InputError, match="did not write it"):
        write_folder(folder, contents, is_forced=False)
    kept = write_folder(folder, contents, is_forced=True)
    assert kept == tmp_path / "mine.before-1"
    assert (kept / "thesis.txt").read_text(encoding="utf-8") == "all of it"
    assert read_folder(folder) == contents


def test_an_export_replaces_an_export_whole(tmp_path: Path) -> None:
    """Files that the new one lacks are gone, and nothing is left beside it."""
    folder = tmp_path / "out"
    write_folder(folder, export_plan(divided_plan(), formats=["vllm", "nginx"]), is_forced=False)
    write_folder(folder, export_plan(divided_plan(), formats=["routes"]), is_forced=False)
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "routes"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [("edit", "was changed since it was exported"), ("add", "did not write all of it: note.txt")],
)
def test_work_in_an_exported_folder_is_not_lost(tmp_path: Path, change: str, reason: str) -> None:
    """An edited or an added file is not what placer wrote."""
    folder = tmp_path / "out"
    write_folder(folder, export_plan(divided_plan(), formats=["routes"]), is_forced=False)
    file = folder / ("routes/routes.json" if change == "edit" else "note.txt")
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=reason):
        check_folder(folder, is_forced=False)


def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """All files or none: the second cannot be made because the first is in its place."""
    folder = tmp_path / "out"
    before = export_plan(divided_plan(), formats=["routes"])
    write_folder(folder, before, is_forced=False)
    with pytest.raises(InputError, match="must be a folder of its own"):
        write_folder(folder, {"vllm": {"a": "file", "a/b": "below it"}}, is_forced=False)
    assert read_folder(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not with force, nor one above it."""
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for folder in (Path(), tmp_path):
        with pytest.raises(InputError, match="It is where this runs, or above"):
            check_folder(folder, is_forced=True)


def test_the_options_in_the_documentation_are_options() -> None:
    """Each of its names and values is taken, with a plan that has the replica."""
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    options = export_options(yaml.safe_load(block))
    names = [f"h100-64gb-{number}" for number in range(3)]
    plan = plan_of([planned(name, ["legal-de"] if number == 0 else []) for number, name in enumerate(names)])
    files = export_plan(plan, formats=ALL, options=options)
    assert "/elsewhere/legal-de" in files["vllm"]["vllm-h100-64gb-0.sh"]
    assert "server gpu-b.example:8001;" in files["nginx"]["maps.conf"]


@pytest.fixture(name="plan_file")
def _plan_file(tmp_path: Path) -> Path:
    """Return the file of a plan with a divided adapter."""
    save_plan(divided_plan(), tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_the_commands_export_and_import(plan_file: Path, tmp_path: Path) -> None:
    """What was written is said, and read back; the plan was not verified, which is a warning."""
    folder = tmp_path / "out"
    code, output, errors = _run(
        *("export", plan_file, "-o", folder, "-f", "vllm,nginx", "--host", "one", "--label", "team=a", "--port", "9000")
    )
    assert (code, "nginx: 2 files" in output) == (0, True)
    assert "warning: the plan is unverified" in errors
    assert "server one:9002;" in (folder / "nginx" / "maps.conf").read_text(encoding="utf-8")
    code, output, errors = _run("import", folder, "--plan", plan_file, "-o", tmp_path / "placement.json")
    assert code == 0
    assert output.splitlines() == [
        "3 replicas, 5 adapters, model llama-3.1-8b",
        "vllm: the same as the plan",
        "nginx: the same as the plan",
    ]
    assert "nginx: names of replicas and GPU types, all settings" in errors
    placed = json.loads((tmp_path / "placement.json").read_text(encoding="utf-8"))
    assert placed == placement_of(divided_plan()).model_dump(mode="json")


def test_json_is_all_that_the_commands_print(plan_file: Path, tmp_path: Path) -> None:
    """With the files by format, and with what differs."""
    code, output, _ = _run("export", plan_file, "-o", tmp_path / "out", "-f", "routes", "--json")
    assert (code, json.loads(output)["files"]) == (0, {"routes": ["routes.json"]})
    other = tmp_path / "other.json"
    save_plan(plan_of([planned("gpu-0", ["a"])]), other)
    code, output, _ = _run("import", tmp_path / "out", "--plan", other, "--json")
    assert code == 5
    assert "gpu-1 is new" in json.loads(output)["formats"][0]["differences"]


def test_a_format_that_there_is_not_is_bad_input(plan_file: Path, tmp_path: Path) -> None:
    """Known ones are named, and nothing is written."""
    code, _, errors = _run("export", plan_file, "-o", tmp_path / "out", "-f", "vllm,helm")
    assert code == 2
    assert f"formats must be of {', '.join(ALL)}. Got helm." in errors
    assert not (tmp_path / "out").exists()


def test_a_format_that_a_folder_lacks_is_named(plan_file: Path, tmp_path: Path) -> None:
    """With those that it has."""
    _run("export", plan_file, "-o", tmp_path / "out", "-f", "routes")
    code, _, errors = _run("import", tmp_path / "out", "-f", "routes,nginx")
    assert code == 2
    assert "has routes. Got nginx." in errors


def test_a_folder_that_is_no_export_is_bad_input(tmp_path: Path) -> None:
    """An import reads what an export wrote."""
    code, _, errors = _run("import", tmp_path)
    assert code == 2
    assert f"has no valid {MANIFEST}" in errors
