"""The controller of examples/controller: what it decides, and in which order it changes servers and routes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import placer
from placer.export.options import ExportOptions
from placer.files import load_plan, save_plan
from placer.plan_document import AdapterShare, Plan

ROOT = Path(__file__).resolve().parent.parent
NOW_S = 1_790_000_000.0
WINDOW_S = 200.0
HOT_RPS = 1.2


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """Return the controller as a module."""
    spec = importlib.util.spec_from_file_location("controller", ROOT / "examples" / "controller" / "controller.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["controller"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["controller"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """Return a folder with the example's problem of a shipped model, and its plan of two GPUs."""
    folder = tmp_path_factory.mktemp("planned")
    problem = yaml.safe_load((ROOT / "examples" / "controller" / "problem.yaml").read_text("utf-8"))
    profile = json.loads((ROOT / "examples" / "controller" / "rated-profile.json").read_text("utf-8"))
    problem["model"], profile["model"] = "llama-3.1-8b", "llama-3.1-8b"
    problem["gpu_types"][0]["memory_gib"] = profile["gpu_memory_gib"] = 40.0
    (folder / "problem.yaml").write_text(yaml.safe_dump(problem), "utf-8")
    (folder / "rated-profile.json").write_text(json.dumps(profile), "utf-8")
    plan = placer.plan(placer.load_problem(folder / "problem.yaml"), max_evaluations=2000)
    assert plan.num_gpus == 2
    return folder, plan


class Fleet:
    """Servers that answer like vLLM's about adapters, and write down what they are asked; and a log of the router.

    Attributes
    ----------
    calls
        What happened, in order: (port's place, action, adapter), and ("router", "reload", ...).
    refused
        Adapters that cannot be loaded.
    """

    def __init__(self, num_servers: int) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.refused: set[str] = set()
        self.num_busy_looks = 0
        fleet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_busy = fleet.num_busy_looks > 0
                fleet.num_busy_looks -= 1
                fleet.calls.append((self.place, "look", "busy" if is_busy else "idle"))
                names = ",".join(f"demo-{number:03d}" for number in range(6))
                text = f"vllm:num_requests_running {int(is_busy)}\n"
                text += f'vllm:lora_requests_info{{running_lora_adapters="{names}",waiting_lora_adapters=""}} {NOW_S}\n'
                self.reply(200, text)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fleet.calls.append((self.place, self.path.removeprefix("/v1/"), body["lora_name"]))
                self.reply(400 if body["lora_name"] in fleet.refused and "unload" not in self.path else 200, "said")

            @property
            def place(self) -> str:
                return str([server.server_port for server in fleet.servers].index(self.connection.getsockname()[1]))

            def reply(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
                """Say nothing."""

        self.servers: list[ThreadingHTTPServer] = []
        while len(self.servers) < num_servers:
            first = self.servers[-1].server_port + 1 if self.servers else 0
            try:
                self.servers.append(ThreadingHTTPServer(("127.0.0.1", first), Handler))
            except OSError:
                self.close()
                self.servers = []
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.server_close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Return two servers."""
    running = Fleet(2)
    yield running
    for server in running.servers:
        server.shutdown()
    running.close()


def _log(path: Path, plan: Plan, *, is_shifted: bool) -> None:
    """Write what a router logs in the window: even traffic, or so much for one adapter that its GPU is too small."""
    busy = max(plan.gpus, key=lambda gpu: len(gpu.adapters))
    lines = []
    for gpu in plan.gpus:
        for name in gpu.adapters:
            rate = 0.4
            if is_shifted:
                rate = HOT_RPS if name == busy.adapters[0] else 0.4 if gpu is busy else 0.2
            count = round(rate * WINDOW_S)
            lines += [{"time": NOW_S - WINDOW_S * (number + 0.5) / count, "model": name} for number in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def _controller(
    example: ModuleType, planned: tuple[Path, Plan], folder: Path, fleet: Fleet, **changes: Any
) -> tuple[Any, list[float]]:
    """Return a controller of the fleet in a folder, on a clock that only waiting moves."""
    source, plan = planned
    save_plan(plan, folder / "plan.json")
    options = ExportOptions(port=fleet.servers[0].server_port, adapter_path="/adapters/{name}")
    (folder / "maps.conf").write_text(example.maps_of(plan, options), "utf-8")
    (folder / "reloads").write_text("", "utf-8")
    settings = example.Settings(
        problem=source / "problem.yaml",
        plan=folder / "plan.json",
        observed=folder / "observed.yaml",
        decisions=folder / "decisions.jsonl",
        sources=(str(folder / "access.jsonl"),),
        window_s=WINDOW_S,
        maps=folder / "maps.conf",
        export=options,
        **({"reload": (sys.executable, "-c", "pass"), "max_moves": 2, "max_loads": 2} | changes),
    )
    now = [NOW_S]

    def wait(seconds: float) -> None:
        now[0] += seconds

    return example.Controller(settings, clock=lambda: now[0], wait=wait), now


def test_traffic_that_fits_keeps_the_placement(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path
) -> None:
    """Nothing is asked of any server, and the decision with the rates is in the log."""
    controller, _ = _controller(example, planned, tmp_path, fleet)
    _log(tmp_path / "access.jsonl", planned[1], is_shifted=False)
    decision = controller.round()
    assert decision["decision"] == "keep"
    assert decision["rate_rps"] == pytest.approx(2.4, rel=0.02)
    assert fleet.calls == []
    assert json.loads((tmp_path / "decisions.jsonl").read_text("utf-8")) == decision


def test_a_shift_is_applied_in_a_safe_order_and_then_cools_down(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path
) -> None:
    """Load where it goes, then the routes, then wait for its last request, then unload; a dry run does none of it."""
    controller, now = _controller(example, planned, tmp_path, fleet, drain_s=3.0)
    _log(tmp_path / "access.jsonl", planned[1], is_shifted=True)
    before = (tmp_path / "maps.conf").read_text("utf-8")
    controller.is_dry = True
    decision = controller.round()
    assert decision["decision"] == "would apply"
    assert (fleet.calls, (tmp_path / "maps.conf").read_text("utf-8")) == ([], before)

    controller.is_dry = False
    fleet.num_busy_looks = 2
    decision = controller.round()
    assert decision["decision"] == "applied"
    kinds = [step["step"] for step in decision["steps"]]
    assert kinds == ["load", "shift", "unload"]
    (moved,) = decision["steps"][0]["adapters"]
    assert fleet.calls == [
        ("1", "load_lora_adapter", moved),
        ("0", "look", "busy"),
        ("0", "look", "busy"),
        ("0", "look", "idle"),
        ("0", "unload_lora_adapter", moved),
    ]
    assert now[0] == pytest.approx(NOW_S + 3.0 + 2 * 0.5)
    placed = {gpu.name: gpu.adapters for gpu in load_plan(tmp_path / "plan.json").gpus}
    assert moved in placed[planned[1].gpus[1].name]
    assert moved not in placed[planned[1].gpus[0].name]
    maps = (tmp_path / "maps.conf").read_text("utf-8")
    now_in_place = example.maps_of(load_plan(tmp_path / "plan.json"), controller.settings.export)
    assert sorted(maps.splitlines()) == sorted(now_in_place.splitlines()) != sorted(before.splitlines())

    assert controller.round()["decision"] == "wait"
    assert len((tmp_path / "decisions.jsonl").read_text("utf-8").splitlines()) == 3
    # A controller that is started anew has the change in its log; a line that was cut off does not hinder it.
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write('{"decision": "appl')
    again = example.Controller(controller.settings, clock=lambda: now[0])
    assert again.round()["decision"] == "wait"
    now[0] = NOW_S + 700.0
    assert example.Controller(controller.settings, clock=lambda: now[0]).round()["decision"] != "wait"


def test_unknown_names_are_the_base_model_or_have_the_rank_of_the_settings(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path
) -> None:
    """Without either, one strange name in the log would end every round."""
    changes = {"base_models": ("tiny",), "rank": 8, "max_loads": 3}
    controller, _ = _controller(example, planned, tmp_path, fleet, **changes)
    _log(tmp_path / "access.jsonl", planned[1], is_shifted=False)
    with (tmp_path / "access.jsonl").open("a") as file:
        usage = {"prompt_tokens": 20, "completion_tokens": 20}
        for index in range(18):
            line = {"time": NOW_S - 5.0 * index - 1.0, "model": ("tiny", "newcomer")[index % 2], "usage": usage}
            file.write(json.dumps(line) + "\n")
    controller.is_dry = True
    decision = controller.round()
    assert decision["decision"] != "failed", decision
    assert "newcomer" in decision["rates_rps"]
    assert "tiny" not in decision["rates_rps"]


def test_limits_of_a_round_hold(example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path) -> None:
    """Without moves nothing is applied, and the decision says that the fleet starves."""
    controller, _ = _controller(example, planned, tmp_path, fleet, max_moves=0)
    _log(tmp_path / "access.jsonl", planned[1], is_shifted=True)
    decision = controller.round()
    assert decision["decision"] != "applied"
    assert decision["verdict"] == "rejected"
    assert decision["rejected_before"] == [planned[1].gpus[0].name]
    assert fleet.calls == []


def test_a_load_that_fails_changes_nothing(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path
) -> None:
    """Routes stay, the plan in place stays, and the reason is written down."""
    controller, _ = _controller(example, planned, tmp_path, fleet)
    _log(tmp_path / "access.jsonl", planned[1], is_shifted=True)
    fleet.refused = {f"demo-{number:03d}" for number in range(6)}
    before = (tmp_path / "maps.conf").read_text("utf-8"), (tmp_path / "plan.json").read_text("utf-8")
    decision = controller.round()
    assert decision["decision"] == "failed"
    assert "answers 400 to load_lora_adapter: said" in decision["reason"]
    assert before == ((tmp_path / "maps.conf").read_text("utf-8"), (tmp_path / "plan.json").read_text("utf-8"))
    assert [action for _, action, _ in fleet.calls] == ["load_lora_adapter"]


def test_routes_that_the_router_refuses_are_taken_back(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path
) -> None:
    """The map is the old one again, nothing is unloaded, and nobody was sent elsewhere."""
    refusing = (sys.executable, "-c", "import sys; sys.exit('no such upstream')")
    controller, _ = _controller(example, planned, tmp_path, fleet, reload=refusing)
    _log(tmp_path / "access.jsonl", planned[1], is_shifted=True)
    before = (tmp_path / "maps.conf").read_text("utf-8")
    decision = controller.round()
    assert decision["decision"] == "failed"
    assert "no such upstream" in decision["reason"]
    assert (tmp_path / "maps.conf").read_text("utf-8") == before
    assert "unload_lora_adapter" not in [action for _, action, _ in fleet.calls]


def test_nginx_follows_the_map_after_a_reload(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demonstration's router, before servers that only answer: an adapter goes where the map says."""
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        pytest.skip("nginx is not installed (Debian package `nginx-light`)")
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "controller"))
    demonstration = importlib.import_module("demonstration")
    plan = planned[1]
    name = plan.gpus[0].adapters[0]
    router_port = demonstration.free_ports(1)
    options = ExportOptions(port=fleet.servers[0].server_port, router_port=router_port)

    def ask() -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{router_port}/v1/ask", json.dumps({"lora_name": name}).encode(), {"X-Model": name}
        )
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - our own router
            return fleet.calls[-1][0]

    with demonstration.nginx(tmp_path / "nginx", plan, options) as reload:
        until = time.monotonic() + 20.0
        while not demonstration.is_listening(router_port):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert ask() == "0"
        first, second = plan.gpus
        moved = (
            first.model_copy(update={"adapters": first.adapters[1:]}),
            second.model_copy(update={"adapters": (*second.adapters, name)}),
        )
        (tmp_path / "nginx" / "maps.conf").write_text(
            example.maps_of(plan.model_copy(update={"gpus": moved}), options), "utf-8"
        )
        subprocess.run(reload, check=True)
        while ask() != "1":
            assert time.monotonic() < until
    lines = (tmp_path / "nginx" / "access.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["model"] for line in lines} == {name}
    assert {json.loads(line)["status"] for line in lines} == {"200"}


def test_a_plan_that_divides_an_adapter_is_refused(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path
) -> None:
    """Steps of `placer.replan` name shares, which no server knows: none is asked anything."""
    controller, _ = _controller(example, planned, tmp_path, fleet)
    first, second = planned[1].gpus
    name = first.adapters[0]
    gpus = (
        first.model_copy(update={"shares": (AdapterShare(adapter=name, replica=1, share=0.5),)}),
        second.model_copy(
            update={
                "adapters": (*second.adapters, name),
                "shares": (AdapterShare(adapter=name, replica=2, share=0.5),),
            }
        ),
    )
    save_plan(planned[1].model_copy(update={"gpus": gpus}), tmp_path / "plan.json")
    _log(tmp_path / "access.jsonl", planned[1], is_shifted=True)
    decision = controller.round()
    assert (decision["decision"], fleet.calls) == ("failed", [])
    assert "divide no adapter" in decision["reason"]


def test_an_empty_window_is_a_failed_round(
    example: ModuleType, planned: tuple[Path, Plan], fleet: Fleet, tmp_path: Path
) -> None:
    """A log that has not begun does not end the controller."""
    controller, _ = _controller(example, planned, tmp_path, fleet)
    assert controller.round()["decision"] == "failed"
