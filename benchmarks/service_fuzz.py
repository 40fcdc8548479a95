"""Send damaged and made-up requests to every endpoint of the service: no 5xx, no traceback in its log, no hang.

``python -m benchmarks.service_fuzz [--inputs 4000] [--seed 0] [--smoke]``

Half of the inputs are what Schemathesis makes of the service's own OpenAPI document, valid and invalid ones for each
operation; the other half are whole requests for work, damaged as `benchmarks.fuzz_mutations` damages files. The service
runs with small limits, so that what is valid by accident is soon done. The exit status is 1 when there is any finding:
an answer of 500 or above, none within `LIMIT_S`, a connection that breaks, or a traceback in the log.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed

from benchmarks.fuzz_mutations import mutate_json
from tests.placer.service_process import RunningService, running_service
from tests.placer.small_fleets import small_data

LIMIT_S = 30.0
LIMITS = (
    *("--workers", "1", "--queue", "20", "--max-body-mib", "1", "--max-adapters", "50", "--max-scenarios", "4"),
    *("--max-budget", "1", "--max-horizon", "120", "--max-deadline", "1", "--job-cpu", "5", "--job-wall", "5"),
)
SMOKE_INPUTS = 120
QUICK = {"max_evaluations": 50, "horizon_s": 30, "warmup_s": 5, "solver": "bfd", "improve": False}


@dataclass
class Tally:
    """What one endpoint answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    findings: list[str] = field(default_factory=list)

    def ask(self, what: str, send: Callable[[], Any]) -> None:
        """Send a request, and note the answer."""
        started_s = time.perf_counter()
        try:
            status = int(send().status_code)
        except Exception as error:  # noqa: BLE001 - whatever keeps a client from its answer is a finding
            self.findings.append(f"{type(error).__name__}: {error} ({what[:300]})")
            return
        self.slowest_s = max(self.slowest_s, time.perf_counter() - started_s)
        self.statuses[status] += 1
        if status >= 500:
            self.findings.append(f"{status} ({what[:300]})")


def fuzz_by_schema(url: str, tallies: dict[str, Tally], *, each: int, seed: int) -> None:
    """Send what Schemathesis makes of the OpenAPI document."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # a document of ours is sound, or this says why not
        tally = tallies.setdefault(operation.label, Tally())
        for mode in modes:
            _send_cases(operation.as_strategy(generation_mode=mode), tally, each=-(-each // len(modes)), seed=seed)


def _send_cases(strategy: Any, tally: Tally, *, each: int, seed: int) -> None:
    @hypothesis_seed(seed)
    @settings(
        max_examples=each,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        tally.ask(f"{case.method} {case.path} {case.query} {case.body}", lambda: case.call(timeout=LIMIT_S))

    try:
        send()
    except Exception as error:
        # Some operations have nothing that could be given wrongly.
        if type(error).__name__ != "Unsatisfiable":
            raise


def fuzz_by_damage(url: str, tallies: dict[str, Tally], *, number: int, seed: int) -> None:
    """Send whole requests that were damaged."""
    with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        requests = _whole_requests(client)
        for index in range(number):
            random = Random(f"{seed} {index}")
            name = random.choice(sorted(requests))
            body = mutate_json(requests[name], random)
            tally = tallies.setdefault(f"POST /v1/{name}, damaged", Tally())
            headers = {"content-type": random.choice(("application/json",) * 8 + ("text/plain", "multipart/form-data"))}
            send = partial(client.post, f"/v1/{name}", params={"deadline_s": 0}, content=body, headers=headers)
            tally.ask(repr(body[:300]), send)


def _whole_requests(client: httpx.Client) -> dict[str, bytes]:
    """Return a valid body for each operation."""
    problem = small_data(num_adapters=4, total_rps=8.0)
    traced = {key: value for key, value in problem.items() if key != "adapters"}
    traced["trace"] = {"file": "trace.csv", "format": "csv", "adapters": {"count": 2, "popularity": "zipf:0.9"}}
    lines = "time,prompt,output\n" + "".join(f"{n},20,5\n" for n in range(20))
    plan = json.loads((Path(__file__).resolve().parent / "fuzz_seeds" / "plan.json").read_text(encoding="utf-8"))
    bodies: dict[str, dict[str, Any]] = {
        "solve": {"problem": problem, "options": QUICK},
        "replan": {"problem": problem, "plan": plan, "options": {"horizon_s": 30, "warmup_s": 5, "budget_s": 0.5}},
        "verify": {"problem": problem, "plan": plan, "options": {"engine": "fast", "horizon_s": 30}},
        "whatif": {"problem": problem, "scenarios": {"grid": {"scale_rates": [1, 2]}}, "options": QUICK},
    }
    for name, body in bodies.items():
        status = client.post(f"/v1/{name}", params={"deadline_s": 0}, json=body).status_code
        assert status == 202, f"{name}: {status}"
    whole = {name: json.dumps(body).encode("utf-8") for name, body in bodies.items()}
    with_trace = {"problem": traced, "files": {"trace.csv": lines}, "options": QUICK}
    assert client.post("/v1/solve", params={"deadline_s": 0}, json=with_trace).status_code == 202
    # Both are solves; the tally is of the path.
    return whole


def run(service: RunningService, *, inputs: int, seed: int) -> dict[str, Tally]:
    """Return what came of all inputs, by endpoint."""
    tallies: dict[str, Tally] = {}
    fuzz_by_damage(service.url, tallies, number=inputs // 2, seed=seed)
    num_operations = len(list(schemathesis.openapi.from_url(f"{service.url}/openapi.json").get_all_operations()))
    fuzz_by_schema(service.url, tallies, each=max(2, inputs // 2 // num_operations), seed=seed)
    return tallies


def main() -> int:
    """Fuzz, and print a table of the endpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE_INPUTS} inputs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    started_s = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="placer-fuzz-") as folder,
        running_service(Path(folder) / "data", *LIMITS) as service,
    ):
        tallies = run(service, inputs=SMOKE_INPUTS if arguments.smoke else arguments.inputs, seed=arguments.seed)
        with service.client() as client:
            is_alive = client.get("/healthz").status_code == 200
        service.terminate()
        log = service.log.read_text(encoding="utf-8", errors="replace")
    print("| endpoint | inputs | answers | findings | slowest (s) |\n|---|---|---|---|---|")
    for name, tally in tallies.items():
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(tally.statuses.items()))
        total = tally.statuses.total() + sum(not finding[0].isdigit() for finding in tally.findings)
        print(f"| {name} | {total} | {answers} | {len(tally.findings)} | {tally.slowest_s:.2f} |")
    findings = [f"{name}: {finding}" for name, tally in tallies.items() for finding in tally.findings]
    if "Traceback" in log:
        findings.append("the log has a traceback:\n" + log[log.index("Traceback") :][:3000])
    if not is_alive:
        findings.append("the service is not alive any more")
    total = sum(tally.statuses.total() for tally in tallies.values())
    print(f"\n{total:,} answers, {len(findings)} findings, {time.perf_counter() - started_s:.0f} s")
    for finding in findings[:20]:
        print(finding)
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
