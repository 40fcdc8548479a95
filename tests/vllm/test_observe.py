"""`placer observe` of a real vLLM server on the CPU: scraped by a real Prometheus server, and watched directly."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.vllm_server import VllmServer
from placer.cli.application import app
from placer.files import load_problem
from tests.vllm.demo_files import SERVER_ENGINE, make_files
from twin.vllm_python import VllmPython

# Requests per second by adapter: one is asked often, one rarely, one never.
RATES = {"demo-000": 2.5, "demo-001": 0.6, "demo-002": 0.0}
SENDING_S = 25.0


def _observe(*arguments: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["observe", *map(str, arguments), "--json"], prog_name="placer")
    assert result.exit_code == 0, result.stderr
    evidence: dict[str, Any] = json.loads(result.stdout)
    return evidence


@pytest.fixture(scope="module")
def server(python: VllmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Return a server of three adapters."""
    folder = make_files(tmp_path_factory.mktemp("files") / "demo", rate_rps=1.0).parent
    adapters = {name: folder / "adapters" / name for name in RATES}
    log = tmp_path_factory.mktemp("server") / "server.log"
    with VllmServer(python, folder / "model", adapters, SERVER_ENGINE, log=log) as running:
        yield running


@contextmanager
def _prometheus(target: str, folder: Path) -> Iterator[str]:
    """Run a Prometheus server that scrapes a target every second, and wait until it has done so."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed (Debian package `prometheus`)")
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: vllm, static_configs: [{{targets: ['{target}']}}]}}]\n",
        "utf-8",
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 60.0
        while not _has_samples(f"http://{address}"):
            assert process.poll() is None, (folder / "log").read_text("utf-8")
            assert time.monotonic() < until, "Prometheus has no samples"
            time.sleep(0.3)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _has_samples(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?query=vllm:request_success_total", timeout=5) as answer:  # noqa: S310 - our own server
            return bool(json.load(answer)["data"]["result"])
    except OSError:
        return False


def _send_traffic(server: VllmServer, log: Path) -> Counter[str]:
    """Send Poisson requests of each adapter's rate, log each with its usage, and return how many were answered."""
    generator = random.Random(0)  # noqa: S311 - reproducible traffic
    arrivals = []
    for name, rate in RATES.items():
        at_s = generator.expovariate(rate) if rate else SENDING_S
        while at_s < SENDING_S:
            # So long that a scrape a second meets the rare adapter, too, where the machine does nothing else.
            arrivals.append((at_s, name, generator.randint(8, 60), generator.randint(60, 120)))
            at_s += generator.expovariate(rate)
    answered: Counter[str] = Counter()
    lock, begin = threading.Lock(), time.monotonic()

    def send(name: str, num_prompt: int, num_output: int) -> None:
        sent_s = time.time()
        body = {"model": name, "prompt": [7] * num_prompt, "max_tokens": num_output, "ignore_eos": True}
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - our own server
            usage = json.load(answer)["usage"]
        with lock:
            answered[name] += 1
            with log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"timestamp": sent_s, "model": name, "usage": usage}) + "\n")

    threads = []
    for at_s, *request in sorted(arrivals):
        time.sleep(max(0.0, begin + at_s - time.monotonic()))
        threads.append(threading.Thread(target=send, args=request))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return answered


def test_prometheus_pages_and_a_log_tell_what_was_sent(server: VllmServer, tmp_path: Path) -> None:
    """One run of traffic, seen in three ways: totals and lengths agree, and each says how it knows the adapters."""
    log, watched = tmp_path / "access.jsonl", {}

    def watch() -> None:
        options = ("--window", str(SENDING_S), "--every", "0.5", "--rank", "16")
        watched.update(_observe(f"{server.url}/metrics", *options))

    with _prometheus(server.url.removeprefix("http://"), tmp_path) as url:
        time.sleep(2.0)
        watcher = threading.Thread(target=watch)
        watcher.start()
        answered = _send_traffic(server, log)
        watcher.join()
        time.sleep(2.5)
        from_prometheus = _observe(url, "--window", "600", "--rank", "16", "-o", tmp_path / "now.yaml")
    from_log = _observe(log, "--rank", "16")

    assert {entry["name"]: entry["num_requests"] for entry in from_log["adapters"]} == answered
    # vLLM counts them together, to the last one; which adapter they were for is estimated, and said to be.
    assert from_prometheus["sources"][0]["num_requests"] == pytest.approx(answered.total())
    entries = {entry["name"]: entry for entry in from_prometheus["adapters"]}
    assert set(entries) == {name for name, rate in RATES.items() if rate}
    assert {entry["rate_from"] for entry in entries.values()} == {"presence"}
    assert any("does not count requests by adapter" in text for text in from_prometheus["unknown"])
    for name, entry in entries.items():
        window_s = from_prometheus["sources"][0]["window_s"]
        assert entry["low_rps"] * window_s < answered[name] < entry["high_rps"] * window_s
    assert entries["demo-000"]["rate_rps"] > entries["demo-001"]["rate_rps"]
    # Their lengths are those of the log, in the mean.
    for key in ("prompt_tokens", "output_tokens"):
        logged = sum(entry[key] * entry["num_requests"] for entry in from_log["adapters"]) / answered.total()
        assert entries["demo-000"][key] == pytest.approx(logged, rel=1e-6)
    assert {adapter.name for adapter in load_problem(tmp_path / "now.yaml").adapters} == set(entries)
    assert {entry["name"] for entry in watched["adapters"]} == set(entries)


def test_a_server_whose_requests_have_ended_is_an_empty_window(server: VllmServer) -> None:
    """Nothing is asked while it is watched: that is said, not a rate of 0 for everybody."""
    arguments = ["observe", f"{server.url}/metrics", "--window", "2", "--rank", "16"]
    result = CliRunner().invoke(app, arguments, prog_name="placer")
    assert result.exit_code == 2
    assert "the window must have requests" in result.stderr
