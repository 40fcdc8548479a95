"""`placer measure --endpoint` with vLLM's own server on the CPU: what it records, and what survives when it breaks."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.vllm_server import VllmServer
from tests.vllm.breakable_network import BreakableNetwork
from tests.vllm.demo_files import MAX_LORAS, NUM_ADAPTERS, SERVER_ENGINE, make_files, run, status_of, when_recorded
from twin.measurement.folder import MeasurementFolder, open_folder
from twin.measurement.metrics_page import samples_of
from twin.measurement.tables import read_table
from twin.vllm_python import VllmPython

# The other adapters are loaded for a measurement, and unloaded after it.
NUM_LOADED_AT_START = 12
COUNTERS = {
    "prompt": "vllm:prompt_tokens_total",
    "generated": "vllm:generation_tokens_total",
    "requests": "vllm:request_success_total",
}
QUICK = ("--drain", "60", "--metrics-interval", "1", "--give-up", "1", "--wait", "60")


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workload of a demo of 16 adapters and 4 slots."""
    return make_files(tmp_path_factory.mktemp("files") / "demo", rate_rps=4.0)


@pytest.fixture(scope="module")
def server(python: VllmPython, workload: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Return a server that runs as long as the module's tests."""
    folder = workload.parent
    names = sorted(path.name for path in (folder / "adapters").iterdir())[:NUM_LOADED_AT_START]
    adapters = {name: folder / "adapters" / name for name in names}
    log = tmp_path_factory.mktemp("server") / "server.log"
    with VllmServer(python, folder / "model", adapters, SERVER_ENGINE, log=log) as running:
        yield running


def _counters(page: str) -> dict[str, float]:
    """Return what the server says that it has done since it was started."""
    samples = list(samples_of(page))
    return {key: sum(value for name, _, value in samples if name == wanted) for key, wanted in COUNTERS.items()}


@pytest.fixture(scope="module")
def measured(
    server: VllmServer, workload: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MeasurementFolder, dict[str, float]]:
    """Return a measurement of ten seconds, and by how much the server's counters grew meanwhile."""
    path = tmp_path_factory.mktemp("measured") / "m"
    before = _counters(server.get("/metrics"))
    adapters = workload.parent / "adapters"
    code, _, errors = run(
        *(workload, "--endpoint", server.url, "-o", path, "--horizon", "10", "--load-adapters", str(adapters), *QUICK)
    )
    assert code == 0, errors
    after = _counters(server.get("/metrics"))
    return open_folder(path), {key: after[key] - before[key] for key in before}


def test_the_requests_are_those_that_the_server_counted(measured: tuple[MeasurementFolder, dict[str, float]]) -> None:
    """Prompt tokens, generated tokens and finished requests agree to the last one."""
    folder, grown = measured
    requests, schedule = read_table(folder.path, "requests"), folder.schedule()
    assert (requests["status"] == "ok").all()
    assert len(requests) == len(schedule) == grown["requests"] > 20
    assert requests["prompt_tokens"].sum() == requests["counted_prompt_tokens"].sum() == grown["prompt"]
    assert requests["generated_tokens"].sum() == schedule.output_tokens.sum() == grown["generated"]
    assert set(requests["counting"]) == {"continuous"}
    assert (requests["itl_s"].map(len) == requests["generated_tokens"] - 1).all()
    assert (requests["ttft_s"] > 0).all()


def test_the_recorded_metrics_are_the_servers(measured: tuple[MeasurementFolder, dict[str, float]]) -> None:
    """The last page has what the measurement added, on the same clock as the requests."""
    folder, grown = measured
    metrics = read_table(folder.path, "metrics")
    assert metrics["error"].isna().all()
    pages = metrics[metrics["name"] == COUNTERS["generated"]].sort_values("time_s")
    assert len(pages) >= 8
    assert pages["value"].iloc[-1] - pages["value"].iloc[0] == grown["generated"]
    assert (np.diff(pages["value"]) >= 0).all()
    finish_s = read_table(folder.path, "requests")["finish_s"].max()
    assert pages["time_s"].iloc[-1] >= finish_s


def test_the_manifest_has_what_is_known_of_the_server(measured: tuple[MeasurementFolder, dict[str, float]]) -> None:
    """What the problem file declares, and what the server says of itself."""
    manifest = measured[0].manifest
    engine = manifest.server.engine
    assert engine is not None
    assert (engine.max_loras, engine.max_model_len, engine.block_size) == (MAX_LORAS, 512, 32)
    assert manifest.server.kv_tokens is not None
    assert manifest.server.kv_tokens > 10_000
    assert manifest.versions["vllm"].startswith("0.")
    assert manifest.summary is not None
    assert manifest.summary.lateness is not None


def test_adapters_are_loaded_before_and_unloaded_after(
    server: VllmServer, measured: tuple[MeasurementFolder, dict[str, float]]
) -> None:
    """Those that the server lacked, each with the time it took."""
    calls = read_table(measured[0].path, "adapter_calls")
    missing = [f"demo-{index:03d}" for index in range(NUM_LOADED_AT_START, NUM_ADAPTERS)]
    assert sorted(calls[calls["action"] == "load"]["adapter"]) == missing
    assert sorted(calls[calls["action"] == "unload"]["adapter"]) == missing
    assert (calls["http_status"] == 200).all()
    assert (calls["seconds"] > 0).all()
    names = {card["id"] for card in json.loads(server.get("/v1/models"))["data"]}
    assert len(names) == 1 + NUM_LOADED_AT_START
    assert not names & set(missing)


def test_a_cut_network_loses_nothing_and_the_rest_can_be_measured(
    server: VllmServer, workload: Path, tmp_path: Path
) -> None:
    """Every connection breaks and no new one is made: it is said, and when the network is back the rest is sent."""
    path = tmp_path / "m"
    adapters = str(workload.parent / "adapters")
    with BreakableNetwork(server.port) as network:
        options = ("--endpoint", network.url, "-o", path, "--horizon", "8", "--load-adapters", adapters, *QUICK)
        with when_recorded(path, "requests", 8, network.cut):
            code, _, errors = run(workload, *options)
        assert code == 6
        assert "the endpoint did not answer any more" in errors
        first = read_table(path, "requests")
        _require_partial(path, first)
        network.mend()
        # The adapters that were loaded are still there: nobody could unload them.
        assert run("--resume", path)[0] == 0
    _require_complete(path, first)


def test_a_killed_server_loses_nothing_and_the_rest_can_be_measured(
    server: VllmServer, python: VllmPython, workload: Path, tmp_path: Path
) -> None:
    """SIGKILL to the server and its engine: started again, it gets the rest. The module's last test."""
    path = tmp_path / "m"
    options = ("--endpoint", server.url, "-o", path, "--horizon", "8", *QUICK)
    adapters = str(workload.parent / "adapters")
    with when_recorded(path, "requests", 8, server.kill):
        code, _, errors = run(workload, *options, "--load-adapters", adapters)
    assert code == 6
    assert "the endpoint did not answer any more" in errors
    first = read_table(path, "requests")
    _require_partial(path, first)
    names = sorted(entry.name for entry in (workload.parent / "adapters").iterdir())
    folders = {name: workload.parent / "adapters" / name for name in names}
    log = tmp_path / "server.log"
    with VllmServer(python, workload.parent / "model", folders, SERVER_ENGINE, log=log, port=server.port):
        assert run("--resume", path)[0] == 0
    _require_complete(path, first)


def _require_partial(path: Path, requests: pd.DataFrame) -> None:
    status, reason = status_of(path)
    assert (status, "did not answer any more" in str(reason)) == ("partial", True)
    assert (requests["status"] == "ok").sum() >= 8
    broken = requests[requests["status"] != "ok"]
    assert set(broken["status"]) <= {"disconnected", "unreachable", "unfinished"}
    assert broken["error"].notna().all()
    assert len(requests) < open_folder(path).manifest.workload.num_requests


def _require_complete(path: Path, first: pd.DataFrame) -> None:
    manifest, requests = open_folder(path).manifest, read_table(path, "requests")
    assert (manifest.status, manifest.reason) == ("complete", None)
    assert requests["request"].tolist() == list(range(manifest.workload.num_requests))
    pd.testing.assert_frame_equal(requests.iloc[: len(first)], first)
    assert (requests.iloc[len(first) :]["status"] == "ok").all()
    assert not (path / "shards").exists()
