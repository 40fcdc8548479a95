"""`placer measure` in this process: against a small server over HTTP, and messages for what cannot be measured.

What needs vLLM is in tests/vllm/test_measure_cli.py.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from placer.cli.application import app
from placer.cli.measure_progress import progress_text
from placer.files import load_problem, save_plan
from placer.measure_report import outcome_lines
from placer.measure_workload import load_measured_workload, parse_engine_arguments
from placer.planning import plan
from tests.placer.small_fleets import fair_surrogate, small_data, write_problem
from tests.twin.completion_server import Behaviour, CompletionServer
from tests.twin.measured import QueueDriver, ignore_progress, new_folder, small_workload
from twin.errors import InputError
from twin.hardware import load_model
from twin.measurement.demo import make_demo
from twin.measurement.endpoint import API_KEY_VARIABLE
from twin.measurement.folder import open_folder
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import Manifest
from twin.measurement.session import Progress, run_segment
from twin.measurement.tables import read_table
from twin.vllm_python import PYTHON_VARIABLE

WORKLOAD = {
    "schema_version": 1,
    "model": "llama-3.1-8b",
    "engine": {"max_num_seqs": 64, "max_loras": 2},
    "adapters": [
        {"name": f"a{index}", "rank": 8, "rate_rps": 8.0, "prompt_tokens": {"mean": 20}, "output_tokens": {"mean": 6}}
        for index in range(3)
    ],
}
QUICK = ("--horizon", "0.6", "--drain", "5", "--metrics-interval", "0", "--wait", "0", "--give-up", "0.5")


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def _without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a key; the tests have none."""
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """Return the file of a workload of three adapters."""
    return _written(tmp_path / "workload.yaml", WORKLOAD)


def _written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_server_is_measured_into_a_folder(workload: Path, tmp_path: Path) -> None:
    """The summary on standard output, progress on standard error, every request of the schedule in the table."""
    with CompletionServer() as server:
        code, output, errors = _run(
            "measure", workload, "--endpoint", f"{server.url}/v1/", "--output", tmp_path / "m", *QUICK
        )
    manifest = open_folder(tmp_path / "m").manifest
    assert code == 0
    assert (manifest.status, manifest.workload.file) == ("complete", "workload.yaml")
    assert len(read_table(tmp_path / "m", "requests")) == manifest.workload.num_requests == len(server.requests) > 3
    for text in ("complete: ", f"{manifest.workload.num_requests} ok", "TTFT", "served"):
        assert text in output
    assert "asking http" in errors
    assert f"wrote {tmp_path / 'm'}" in errors
    # What the file chooses is declared of the server, and token ids are the model's.
    assert manifest.settings.engine == {"max_num_seqs": 64, "max_loras": 2}
    assert max(max(body["prompt"]) for body in server.requests) < load_model("llama-3.1-8b").vocab_size


def test_json_is_the_manifest_and_nothing_else(workload: Path, tmp_path: Path) -> None:
    """Standard output can be piped; options are named as vLLM names them."""
    options = ("--max-loras", "4", "--engine-argument", "block-size=32", "--prompt", "text", "--retries", "1")
    with CompletionServer() as server:
        code, output, _ = _run(
            "measure", workload, "--endpoint", server.url, "-o", tmp_path / "m", "--json", *QUICK, *options
        )
    assert code == 0
    manifest = Manifest.model_validate_json(output)
    assert output == (tmp_path / "m" / "manifest.json").read_text("utf-8")
    assert manifest.settings.engine == {"max_num_seqs": 64, "max_loras": 4, "block_size": 32}
    assert all(isinstance(body["prompt"], str) for body in server.requests)


@pytest.mark.parametrize(("device", "machine"), [("cpu", "--gpu cpu "), ("NVIDIA L4", "--gpu NAME ")])
def test_what_is_next_names_a_machine_that_calibration_takes(tmp_path: Path, device: str, machine: str) -> None:
    """An engine on a processor has no datasheet, on whatever clock it was measured."""
    folder = new_folder(tmp_path / "m", small_workload())
    run_segment(folder, QueueDriver(), StopRequest(), ignore_progress)
    settings = folder.manifest.settings.model_copy(update={"clock": "wall"})
    folder.update(machine={"device": device}, settings=settings)
    assert machine in outcome_lines(folder.path, folder.manifest)[-1]


def test_a_server_that_dies_is_exit_code_6_and_can_be_resumed(workload: Path, tmp_path: Path) -> None:
    """What was recorded stays; the rest is sent once, by a command that needs the folder only."""
    behaviour = Behaviour(dies_after=6, token_s=0.01)
    with CompletionServer(behaviour) as server:
        code, output, errors = _run(
            "measure", workload, "--endpoint", server.url, "-o", tmp_path / "m", *QUICK, "--horizon", "4"
        )
        port = int(server.url.rpartition(":")[2])
    first = read_table(tmp_path / "m", "requests")
    assert code == 6
    assert "partial: " in output
    assert "the endpoint did not answer any more" in errors
    assert f"placer measure --resume {tmp_path / 'm'}" in errors

    with CompletionServer(dataclasses.replace(behaviour, dies_after=-1), port=port) as again:
        code, output, errors = _run("measure", "--resume", tmp_path / "m")
    requests = read_table(tmp_path / "m", "requests")
    assert code == 0
    assert "in 2 segments" in output
    assert requests["request"].tolist() == list(range(len(requests)))
    assert len(again.requests) == len(requests) - len(first)
    assert _run("measure", "--resume", tmp_path / "m")[0] == 0
    assert len(again.requests) == len(requests) - len(first)


def test_a_measurement_that_served_nothing_is_exit_code_6(workload: Path, tmp_path: Path) -> None:
    """All was sent, so that there is nothing to resume, and nothing was measured; what failed is in the tables."""
    with CompletionServer(Behaviour(faults=dict.fromkeys(range(500), "500"))) as server:
        code, output, errors = _run("measure", workload, "--endpoint", server.url, "-o", tmp_path / "m", *QUICK)
    assert code == 6
    assert "complete: " in output
    assert "error: no request was served, so that nothing was measured" in errors
    assert "hint: look at `error` in requests.parquet" in errors
    assert _run("measure", "--finish", tmp_path / "m")[0] == 6


def test_what_is_next_after_a_server(workload: Path, tmp_path: Path) -> None:
    """With metrics and settings a profile can be fitted, with settings one can be tried, without them neither."""
    with CompletionServer() as server:
        path, once = tmp_path / "m", ("measure", workload, "--endpoint", server.url, *QUICK)
        with_metrics = _run(*once, "-o", path, "--metrics-interval", "0.2")
        without = _run(*once, "-o", tmp_path / "n")
        undeclared = _written(tmp_path / "u.yaml", {name: WORKLOAD[name] for name in WORKLOAD if name != "engine"})
        unknown = _run("measure", undeclared, "--endpoint", server.url, *QUICK, "-o", tmp_path / "u")
    assert f"next: placer calibrate {path} --model CONFIG.JSON --gpu NAME --output profile.json" in with_metrics[1]
    assert f"next: placer validate {tmp_path / 'n'} --profile PROFILE --model CONFIG.JSON" in without[1]
    assert "warning: no metrics are recorded" in without[2]
    assert "next:" not in unknown[1]
    assert "warning: the workload file has no `engine`" in unknown[2]


def test_a_model_that_is_not_there_is_said_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, and nothing to resume."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    make_demo(tmp_path / "d", num_adapters=2, ranks=(8,), rate_rps=4.0, seed=0)
    arguments = ("measure", tmp_path / "d" / "workload.yaml", "--in-process", "-o", tmp_path / "m")
    code, _, errors = _run(*arguments, "--model", "nosuch")
    assert code == 2
    assert "Got 'nosuch'" in errors
    assert not (tmp_path / "m").exists()


def test_ctrl_c_is_exit_code_130(workload: Path, tmp_path: Path) -> None:
    """What was recorded is in the tables, and the message says how to go on."""
    with CompletionServer(Behaviour(token_s=0.05)) as server:
        threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        code, _, errors = _run(
            "measure", workload, "--endpoint", server.url, "-o", tmp_path / "m", *QUICK, "--horizon", "30"
        )
    assert code == 130
    assert "partial: interrupted by SIGINT" in errors
    assert "--resume" in errors
    assert 0 < len(read_table(tmp_path / "m", "requests")) < open_folder(tmp_path / "m").manifest.workload.num_requests


def test_finish_makes_the_tables_of_a_measurement_that_was_killed(tmp_path: Path) -> None:
    """As the killed process left it: `running`, with shards and without tables."""
    folder = new_folder(tmp_path / "m", small_workload())
    run_segment(folder, QueueDriver(stops_at=10), StopRequest(), ignore_progress)
    (segment,) = folder.manifest.segments
    running = segment.model_copy(update={"status": "running", "end_s": None, "reason": None})
    folder.update(status="running", segments=(running,), tables={}, summary=None)
    steps = read_table(folder.path, "steps")
    (folder.path / "steps.parquet").unlink()
    code, output, errors = _run("measure", "--finish", folder.path)
    assert code == 0
    assert "partial: " in output
    assert "the process that measured was killed" in errors
    pd.testing.assert_frame_equal(read_table(folder.path, "steps"), steps)


def test_failed_requests_are_warned_of(workload: Path, tmp_path: Path) -> None:
    """A retry that succeeds does not hide the attempt that failed."""
    with CompletionServer(Behaviour(faults={1: "500"})) as server:
        code, output, errors = _run(
            "measure", workload, "--endpoint", server.url, "-o", tmp_path / "m", *QUICK, "--retries", "2"
        )
    assert code == 0
    assert "1 error (HTTP 500)" in output
    assert "warning: 1 attempt failed: 1 x error (HTTP 500)" in errors
    requests = read_table(tmp_path / "m", "requests")
    assert sorted(requests[requests["attempt"] == 1]["status"]) == ["ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of WORKLOAD, --resume, --finish and --demo must be given. Got none."),
        (("W", "--demo", "d"), "Got WORKLOAD and --demo."),
        (("W",), "one of --in-process and --endpoint URL must be given. Got none."),
        (("W", "--in-process", "--endpoint", "http://h", "-o", "m"), "Got both."),
        (("W", "--in-process"), "the folder to write must be given"),
        (("W", "--in-process", "-o", "m", "--retries", "2"), "`--retries` must come with --endpoint"),
        (("W", "--endpoint", "http://h", "-o", "m", "--clock", "cpu"), "`--clock` must come with --in-process"),
        (("W", "--endpoint", "h:8000", "-o", "m"), "`--endpoint` must be the URL of a server. Got 'h:8000'."),
        (("W", "--endpoint", "http://h", "-o", "m", "--prompt", "words"), "`--prompt` must be one of tokens, text."),
        (("W", "--in-process", "-o", "m", "--clock", "sun"), "`--clock` must be one of wall, cpu, steady. Got 'sun'."),
        (("W", "--in-process", "-o", "m"), "There is no folder `adapters` beside"),
        (("W", "--endpoint", "http://h", "-o", "m", "--gpu", "g"), "`--gpu` must come with --plan. Got 'g' alone."),
        (("W", "--endpoint", "http://h", "-o", "m", "--horizon", "0.001"), "None does in 0.001 s."),
        (("W", "--endpoint", "http://h", "-o", "m", "--engine-argument", "x"), "must be NAME=VALUE. Got 'x'."),
        (("W", "--endpoint", "http://h", "-o", "m", "--max-model-len", "12"), "shorter than `max_model_len` (12"),
        (("W", "--endpoint", "http://h", "-o", "m", "--horizon", "inf"), "the horizon must be a number of seconds"),
        (("W", "--endpoint", "http://h", "-o", "m", "--drain", "inf"), "`drain_s` is out of range"),
        (("W", "--endpoint", "http://h", "-o", "m", "--timeout", "inf"), "`timeout_s` is out of range"),
        (("missing.yaml", "--endpoint", "http://h", "-o", "m"), "a problem file must be a readable file. missing.yaml"),
        (("--resume", "nowhere"), "nowhere has none that can be read"),
        (("--finish", "nowhere"), "nowhere has none that can be read"),
        (("--plan", "p.json", "--gpu", "g", "--in-process", "-o", "m"), "WORKLOAD must be given besides --plan"),
        (("--demo", "d", "--ranks", "7"), "`ranks` must be of 8, 16"),
        (("--demo", "d", "--retries", "1"), "`--retries` must come with --endpoint. It is given without."),
        (("--demo", "d", "--output", "m"), "`--output` must come with a new measurement. It is given with --demo."),
        (
            ("--resume", "m", "--max-loras", "2"),
            "`--max-loras` must come with a new measurement. It is given with --resume",
        ),
        (("--finish", "m", "--seed", "2"), "`--seed` must come with a new measurement. It is given with --finish"),
        (("W", "--in-process", "-o", "m", "--ranks", "8"), "`--ranks` must come with --demo. It is given without."),
    ],
)
def test_what_cannot_be_measured_is_said(
    workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    """Exit code 2, one clear message, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, output, errors = _run("measure", *(str(workload) if argument == "W" else argument for argument in arguments))
    assert (code, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["workload.yaml"]


def test_a_wrong_field_is_named_with_its_line(tmp_path: Path) -> None:
    """The messages are those of problem files."""
    adapters: list[dict[str, Any]] = [dict(WORKLOAD["adapters"][0], rank=12)]  # type: ignore[index]
    path = _written(tmp_path / "w.yaml", WORKLOAD | {"adapters": adapters})
    code, _, errors = _run("measure", path, "--endpoint", "http://h", "-o", tmp_path / "m")
    assert code == 2
    assert "`rank` must be one of 8, 16" in errors
    assert "adapter 'a0', " in errors
    path.write_text("- 1\n", encoding="utf-8")
    assert "a workload must be a mapping" in _run("measure", path, "--endpoint", "http://h", "-o", tmp_path / "m")[2]


def test_a_server_that_is_not_there_is_exit_code_6(workload: Path, tmp_path: Path) -> None:
    """The message says where it was looked for, and with the right address the same command works."""
    code, _, errors = _run("measure", workload, "--endpoint", "http://127.0.0.1:9", "-o", tmp_path / "m", *QUICK)
    assert code == 6
    assert "the endpoint must answer within 0 s. http://127.0.0.1:9" in errors
    with CompletionServer() as server:
        assert _run("measure", workload, "--endpoint", server.url, "-o", tmp_path / "m", *QUICK)[0] == 0


def test_without_aiohttp_the_extra_is_named(workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6, before there is a folder."""
    for module in ("twin.measurement.endpoint", "twin.measurement.endpoint_client", "twin.measurement.endpoint_run"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    code, _, errors = _run("measure", workload, "--endpoint", "http://127.0.0.1:9", "-o", tmp_path / "m")
    assert code == 6
    assert "aiohttp must be installed to measure over HTTP" in errors
    assert "lora-placer[measure]" in errors
    assert not (tmp_path / "m").exists()


def test_without_vllm_nothing_is_run_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6, before there is a folder; how to install it is said."""
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    make_demo(tmp_path / "d", num_adapters=2, ranks=(8,), rate_rps=4.0, seed=0)
    code, _, errors = _run("measure", tmp_path / "d" / "workload.yaml", "--in-process", "-o", tmp_path / "m")
    assert code == 6
    assert "vLLM must be installed for this" in errors
    assert PYTHON_VARIABLE in errors
    assert not (tmp_path / "m").exists()


def test_the_demos_folder_must_have_its_model_and_its_adapters(tmp_path: Path) -> None:
    """What is missing is named, before anything starts."""
    make_demo(tmp_path / "d", num_adapters=2, ranks=(8,), rate_rps=4.0, seed=0)
    path = tmp_path / "d" / "workload.yaml"
    (tmp_path / "d" / "adapters" / "demo-001" / "adapter_config.json").unlink()
    code, _, errors = _run("measure", path, "--in-process", "-o", tmp_path / "m")
    assert code == 2
    assert "Adapter 'demo-001' has none" in errors
    content = yaml.safe_load(path.read_text("utf-8"))
    _written(path, content | {"model": "llama-3.1-8b", "adapters": content["adapters"][:1]})
    code, _, errors = _run("measure", path, "--in-process", "-o", tmp_path / "m")
    assert code == 2
    assert "the model must be a folder with its weights" in errors


def test_one_gpu_of_a_plan_is_measured_with_its_adapters_and_settings(tmp_path: Path) -> None:
    """What the plan chose for the GPU is what the server is declared to have."""
    problem = write_problem(tmp_path, small_data(num_adapters=4, total_rps=11.0))
    made = plan(load_problem(problem), surrogate=fair_surrogate())
    save_plan(made, tmp_path / "plan.json")
    gpu = made.gpus[0]
    content = load_measured_workload(problem, plan=tmp_path / "plan.json", gpu=gpu.name)
    assert {adapter.name for adapter in content.workload.adapters} == set(gpu.adapters)
    assert content.engine.max_loras == gpu.engine.max_loras
    assert {"max_loras", "max_lora_rank", "max_num_seqs"} <= content.given


def test_engine_arguments_are_json_where_they_can_be() -> None:
    """Names may be written as on vLLM's command line."""
    parsed = parse_engine_arguments(["--max-num-seqs=64", "dtype=bfloat16", "enforce_eager=true", 'x={"a": 1}'])
    assert parsed == {"max_num_seqs": 64, "dtype": "bfloat16", "enforce_eager": True, "x": {"a": 1}}
    with pytest.raises(InputError, match="given once"):
        parse_engine_arguments(["a=1", "a=2"])


def test_progress_is_a_line() -> None:
    """What is done, or how far it is, with what failed."""
    assert progress_text(Progress(what="warming up")) == "warming up"
    assert progress_text(Progress(None, 3.2, 10.0, 7, 5, 1)) == "3 of 10 s: 7 requests sent, 5 finished, 1 failed"
    assert "failed" not in progress_text(Progress(None, 3.2, 10.0, 7, 5, 0))


def test_the_manifests_schema_is_printed() -> None:
    """As those of all other documents."""
    code, output, _ = _run("schema", "measurement")
    assert code == 0
    assert json.loads(output)["title"] == "placer measurement"
