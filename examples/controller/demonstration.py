"""Show the controller at work: two vLLM servers on this machine's CPU, nginx before them, and traffic that changes.

Usage, in the root of the repository: ``PYTHONPATH=. python examples/controller/demonstration.py FOLDER``. Needs the
extra ``measure``, nginx, and an interpreter with vLLM (``PLACER_VLLM_PYTHON``). Takes about eight minutes.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller import Controller, Settings, maps_of

import placer
from benchmarks.vllm_server import VllmServer
from placer.export.exporting import export_plan
from placer.export.options import ExportOptions
from placer.files import save_plan
from placer.plan_document import Plan
from twin.measurement.demo import make_demo
from twin.vllm_engine import vllm_python

HERE = Path(__file__).resolve().parent
WINDOW_S, COOL_DOWN_S = 60.0, 75.0
PROMPT_TOKENS, OUTPUT_TOKENS = 24, 12
NUM_ADAPTERS = 6
# Of a server, apart from those of the plan: memory of a CPU is not a GPU's.
ENGINE = {"max_loras": 6, "max_lora_rank": 16, "max_cpu_loras": 6, "max_num_seqs": 8, "max_num_batched_tokens": 512,
          "max_model_len": 512, "block_size": 32, "gpu_memory_utilization": 0.1}  # fmt: skip
ANSWER_LIMIT_S = 300.0


@dataclass
class Load:
    """Poisson requests of adapters through the router, at rates that can be changed, and what became of each.

    Attributes
    ----------
    url, header
        Of the router.
    rates_rps
        By adapter.
    sent, answered, problems
        Requests by adapter, answers with all their tokens, and what else came back.
    """

    url: str
    header: str
    rates_rps: Mapping[str, float]
    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin to send."""
        self._sender = threading.Thread(target=self._send_all)
        self._sender.start()

    def finish(self) -> None:
        """Send no more, and wait for all answers."""
        self._over.set()
        self._sender.join()
        for thread in self._threads:
            thread.join()

    def _send_all(self) -> None:
        generator = random.Random(0)  # noqa: S311 - reproducible traffic
        next_s = time.monotonic()
        while not self._over.is_set():
            rates = dict(self.rates_rps)
            next_s += generator.expovariate(sum(rates.values()))
            self._over.wait(max(0.0, next_s - time.monotonic()))
            (name,) = generator.choices(list(rates), weights=list(rates.values()))
            self.sent[name] += 1
            self._threads.append(threading.Thread(target=self._send, args=(name,)))
            self._threads[-1].start()

    def _send(self, name: str) -> None:
        body = {"model": name, "prompt": [7] * PROMPT_TOKENS, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        headers = {"Content-Type": "application/json", self.header: name}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as answer:  # noqa: S310 - our own router
                content = json.load(answer)
            is_whole = content["model"] == name and content["usage"]["completion_tokens"] == OUTPUT_TOKENS
            problem = "" if is_whole else f"{name}: {content}"
        except (OSError, ValueError, LookupError) as error:
            problem = f"{name}: {error}"
        with self._lock:
            if problem:
                self.problems.append(problem)
            else:
                self.answered[name] += 1


@contextlib.contextmanager
def nginx(folder: Path, plan: Plan, options: ExportOptions) -> Iterator[tuple[str, ...]]:
    """Run nginx with the routes of a plan, and yield the command that makes it read them again."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    folder.mkdir()
    (folder / "maps.conf").write_text(maps_of(plan, options), "utf-8")
    (folder / "server.conf").write_text(
        export_plan(plan, formats=["nginx"], options=options)["nginx"]["server.conf"], "utf-8"
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    header = options.header.lower().replace("-", "_")
    line = f'{{"time":"$msec","model":"$http_{header}","status":"$status","server":"$upstream_addr"}}'
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder / 'pid'}; worker_processes 1; error_log {folder / 'error.log'};\n"
        "events { worker_connections 1024; }\n"
        f"http {{ {temporary} log_format adapters escape=json '{line}';\n"
        f"access_log {folder / 'access.jsonl'} adapters; include {folder / 'maps.conf'};\n"
        f"include {folder / 'server.conf'}; }}\n",
        "utf-8",
    )
    command = (program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"))
    process = subprocess.Popen(command)  # noqa: S603 - the installed nginx
    try:
        yield (*command, "-s", "reload")
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_listening(port: int) -> bool:
    """Return whether something takes connections on a port of this machine."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def free_ports(number: int) -> int:
    """Return the first of so many consecutive free ports."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for other in range(port + 1, port + number):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", other))
            except OSError:
                continue
            return port


def shifted(plan: Plan) -> dict[str, float]:
    """Return rates that overload the server with the most adapters: its first one's are tripled, others' are halved."""
    busy = max(plan.gpus, key=lambda gpu: len(gpu.adapters))
    rates = {name: 0.4 if name in busy.adapters else 0.2 for gpu in plan.gpus for name in gpu.adapters}
    return rates | {busy.adapters[0]: 1.2}


def say(text: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def demonstrate(folder: Path) -> dict[str, Any]:
    """Run the whole demonstration in a new folder, and return its summary."""
    folder.mkdir(parents=True)
    make_demo(folder / "demo", num_adapters=NUM_ADAPTERS, ranks=(8, 16), rate_rps=2.4, seed=0)
    for name in ("problem.yaml", "rated-profile.json"):
        shutil.copy(HERE / name, folder / name)
    plan = placer.plan(placer.load_problem(folder / "problem.yaml"), budget=5.0)
    save_plan(plan, folder / "plan.json")
    port = free_ports(len(plan.gpus) + 1)
    options = ExportOptions(
        hosts=("127.0.0.1",),
        port=port + 1,
        router_port=port,
        adapter_path=str(folder / "demo" / "adapters" / "{name}"),
        served_model_name="base",
    )
    say(f"plan: {', '.join(f'{gpu.name} serves {len(gpu.adapters)}' for gpu in plan.gpus)}; starting the servers")
    python = vllm_python()
    with contextlib.ExitStack() as stack:
        servers = [
            VllmServer(
                python,
                folder / "demo" / "model",
                {name: folder / "demo" / "adapters" / name for name in gpu.adapters},
                ENGINE,
                log=folder / f"{gpu.name}.log",
                port=port + 1 + index,
            )
            for index, gpu in enumerate(plan.gpus)
        ]
        with ThreadPoolExecutor(len(servers)) as starting:
            for server in starting.map(stack.enter_context, servers):
                say(f"{server.url} is ready")
        reload = stack.enter_context(nginx(folder / "nginx", plan, options))
        settings = Settings(
            problem=folder / "problem.yaml",
            plan=folder / "plan.json",
            observed=folder / "observed.yaml",
            decisions=folder / "decisions.jsonl",
            sources=(str(folder / "nginx" / "access.jsonl"),),
            window_s=WINDOW_S,
            maps=folder / "nginx" / "maps.conf",
            reload=reload,
            export=options,
            max_moves=2,
            max_loads=2,
            cool_down_s=COOL_DOWN_S,
        )
        return _under_load(Controller(settings), plan, Load(f"http://127.0.0.1:{port}", options.header, {}))


def _under_load(controller: Controller, plan: Plan, load: Load) -> dict[str, Any]:
    """Send traffic, shift it, and let the controller decide between."""
    first = {name: 0.4 for gpu in plan.gpus for name in gpu.adapters}
    load.rates_rps = first
    load.start()
    decisions = []

    def decide(*, is_dry: bool = False) -> None:
        controller.is_dry = is_dry
        decisions.append(controller.round())
        say(json.dumps({key: decisions[-1].get(key) for key in ("decision", "reason", "moves", "steps")}))

    try:
        time.sleep(WINDOW_S + 5.0)
        decide()
        load.rates_rps = shifted(plan)
        say(f"rates change to {load.rates_rps}")
        time.sleep(WINDOW_S + 5.0)
        decide(is_dry=True)
        decide()
        decide()
        time.sleep(COOL_DOWN_S)
        decide()
    finally:
        load.finish()
    return {
        "sent": load.sent.total(),
        "answered": load.answered.total(),
        "problems": load.problems[:5],
        "rates_rps": [first, dict(load.rates_rps)],
        "decisions": decisions,
        "adapters_before": {gpu.name: list(gpu.adapters) for gpu in plan.gpus},
    }


if __name__ == "__main__":
    summary = demonstrate(Path(sys.argv[1]).resolve())
    (Path(sys.argv[1]) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    say(f"requests sent {summary['sent']}, answered {summary['answered']}")
    sys.exit(summary["sent"] != summary["answered"])
