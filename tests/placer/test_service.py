"""The HTTP service as its clients see it: one process, asked over a real connection."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from placer.client import Client, ServiceError
from placer.plan_document import Plan
from placer.recheck import Recheck
from placer.replan_document import Replan
from placer.service.documents import ReplanOptions, SolveOptions, WhatIfOptions
from placer.whatif.document import WhatIf
from tests.placer.service_process import RunningService, running_service, wait_for
from tests.placer.small_fleets import small_data

QUICK: dict[str, Any] = {"max_evaluations": 200, "horizon_s": 120, "warmup_s": 20}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Return a service with one worker and small limits."""
    options = ("--workers", "1", "--queue", "3", "--max-body-mib", "0.5", "--max-adapters", "50")
    with running_service(tmp_path_factory.mktemp("service") / "data", *options) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx.Client]:
    """Return a client of the service."""
    with service.client() as made:
        yield made


def _request(**options: Any) -> dict[str, Any]:
    return {"problem": small_data(num_adapters=4, total_rps=11.0), "options": {**QUICK, **options}}


def _solved(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/v1/solve", json=_request())
    assert answer.status_code == 200, answer.text
    plan: dict[str, Any] = answer.json()
    return plan


def test_solve_answers_with_a_plan(client: httpx.Client) -> None:
    """The document is the one of plan.json, and every GPU of it was simulated."""
    plan = Plan.model_validate(_solved(client))
    assert plan.verdict == "accepted"
    assert all(gpu.verification is not None for gpu in plan.gpus)


def test_verify_replan_and_whatif_answer_with_their_documents(client: httpx.Client) -> None:
    """All four operations go through the same jobs."""
    plan = _solved(client)
    problem = _request()["problem"]
    verified = client.post("/v1/verify", json={"problem": problem, "plan": plan, "options": {"engine": "fast"}})
    assert Recheck.model_validate(verified.json()).verdict == "accepted"
    changed = {"problem": problem, "plan": plan, "options": {**QUICK, "lose_gpus": [plan["gpus"][0]["name"]]}}
    replanned = Replan.model_validate(client.post("/v1/replan", json=changed).json())
    assert replanned.before.lost_gpus == (plan["gpus"][0]["name"],)
    scenarios = {"grid": {"scale_rates": "0.5,1"}}
    study = client.post("/v1/whatif", json={"problem": problem, "scenarios": scenarios, "options": QUICK})
    assert [cell.label for cell in WhatIf.model_validate(study.json()).cells] == ["scale_rates 0.5", "as it is"]


def test_problems_are_kept_as_they_were_sent(client: httpx.Client) -> None:
    """Validation turns some values into others that would not be valid again."""
    request = _request()
    request["problem"]["engine"]["max_num_seqs"] = "auto"
    answer = client.post("/v1/solve", json=request)
    assert answer.status_code == 200, answer.text
    assert len(Plan.model_validate(answer.json()).configuration.max_num_seqs_options) > 1


def test_a_job_is_accepted_followed_and_read(client: httpx.Client) -> None:
    """Submitted jobs answer at once; their events end with the job, and start again after any of them."""
    accepted = client.post("/v1/solve", params={"deadline_s": 0}, json=_request(seed=1))
    assert accepted.status_code == 202
    location = accepted.headers["location"]
    events = client.get(f"{location}/events").text.strip().split("\n\n")
    assert [line for line in events[-1].splitlines() if line.startswith("event:")] == ["event: end"]
    assert json.loads(events[-1].partition("data: ")[2])["state"] == "succeeded"
    numbers = [int(event.split("id: ")[1].split("\n")[0]) for event in events if event.startswith("id: ")]
    assert numbers == sorted(set(numbers))
    later = client.get(f"{location}/events", headers={"Last-Event-ID": str(numbers[1])}).text
    assert f"id: {numbers[1]}\n" not in later
    assert f"id: {numbers[2]}\n" in later
    assert Plan.model_validate(client.get(f"{location}/result").json()).num_gpus >= 1


def test_an_idempotency_key_stands_for_one_job(client: httpx.Client) -> None:
    """The same request again is the same job; another request under the key is refused."""
    headers = {"Idempotency-Key": "one"}
    first = client.post("/v1/solve", params={"deadline_s": 0}, json=_request(), headers=headers)
    again = client.post("/v1/solve", json=_request(), headers=headers)
    assert again.headers["location"] == first.headers["location"]
    other = client.post("/v1/solve", json=_request(seed=5), headers=headers)
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")


def test_a_waiting_and_a_running_job_are_cancelled(client: httpx.Client) -> None:
    """The one at once, the other soon; the worker goes on to live."""
    slow = {"problem": small_data(num_adapters=40, total_rps=30.0), "options": {"surrogate": "exact"}}
    running = client.post("/v1/solve", params={"deadline_s": 0}, json=slow).headers["location"]
    wait_for(lambda: client.get(running).json()["state"] == "running")
    waiting = client.post("/v1/solve", params={"deadline_s": 0}, json=_request()).headers["location"]
    assert client.post(f"{waiting}/cancel").json()["state"] == "cancelled"
    assert client.get(f"{waiting}/result").status_code == 409
    client.post(f"{running}/cancel")
    wait_for(lambda: client.get(running).json()["state"] == "cancelled")
    assert _solved(client)["verdict"] == "accepted"


def test_a_client_that_goes_away_takes_its_job_with_it(service: RunningService, client: httpx.Client) -> None:
    """Unless it gave a key, with which it can come again."""
    slow = {"problem": small_data(num_adapters=40, total_rps=30.0), "options": {"surrogate": "exact"}}
    for headers in ({}, {"Idempotency-Key": "will-be-back"}):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/v1/solve", json=slow, headers=headers, timeout=1.0)
    jobs = client.get("/v1/jobs", params={"count": 2}).json()["jobs"]
    wait_for(lambda: client.get(f"/v1/jobs/{jobs[1]['id']}").json()["state"] == "cancelled")
    assert client.get(f"/v1/jobs/{jobs[0]['id']}").json()["state"] in {"accepted", "running"}
    client.post(f"/v1/jobs/{jobs[0]['id']}/cancel")
    wait_for(lambda: client.get(f"/v1/jobs/{jobs[0]['id']}").json()["state"] == "cancelled")


def test_the_client_in_python(service: RunningService) -> None:
    """From a problem to a plan, its check, its change and a study; and errors."""
    problem = _request()["problem"]
    with Client(service.url) as client:
        plan = client.solve(problem, options=SolveOptions(**QUICK))
        assert client.verify(plan, problem).verdict == "accepted"
        assert client.replan(plan, problem, options=ReplanOptions(**QUICK)).changes.num_moves == 0
        study = client.whatif(problem, {"grid": {"lengths": [0.5]}}, options=WhatIfOptions(**QUICK))
        assert len(study.cells) == 2
        job = client.submit("solve", _request(seed=3))
        kinds = [event.kind for event in client.events(job.id)]
        assert kinds[0] == "state"
        assert client.wait(job.id).exit_code == 0
        assert isinstance(client.result(job.id), Plan)
        with pytest.raises(ServiceError, match="must be one of"):
            client.solve(problem, options=SolveOptions(solver="best"))


def test_a_full_queue_says_when_to_come_again(client: httpx.Client) -> None:
    """The fourth that would wait is refused, and nothing of it is kept."""
    slow = {"problem": small_data(num_adapters=40, total_rps=30.0), "options": {"surrogate": "exact"}}
    answers = [client.post("/v1/solve", params={"deadline_s": 0}, json=slow) for _ in range(6)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    for answer in answers:
        if answer.status_code == 202:
            client.post(f"{answer.headers['location']}/cancel")
    assert len(answers) - len(refused) in {3, 4}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "/etc/hostname"),
        ("model", "../../etc"),
        ("trace", {"file": "/etc/passwd"}),
        ("gpu_types", [{"name": "g", "memory_gib": 10.0, "profile": "/etc/passwd"}]),
    ],
)
def test_no_file_of_the_server_is_read(client: httpx.Client, field: str, value: object) -> None:
    """What is neither shipped nor came along is refused before anything looks for it."""
    request = _request()
    request["problem"][field] = value
    if field == "trace":
        del request["problem"]["adapters"]
    answer = client.post("/v1/solve", json=request)
    assert answer.status_code == 422
    assert "reads no other file" in answer.json()["detail"]


@pytest.mark.parametrize("solver", ["os:system", "tests.placer.foreign:Solver", "/tmp/own.py:Solver"])  # noqa: S108
def test_no_code_of_the_caller_is_run(client: httpx.Client, solver: str) -> None:
    """``module:object`` is for those who have the machine."""
    answer = client.post("/v1/solve", json=_request(solver=solver))
    assert (answer.status_code, answer.json()["field"]) == (422, "options.solver")


def test_a_trace_comes_with_its_problem(client: httpx.Client) -> None:
    """Files go inline, under plain names."""
    rows = "".join(f"2023-11-16 18:{index // 60:02}:{index % 60:02}.0000000,100,50\n" for index in range(400))
    problem = small_data() | {"trace": {"file": "azure.csv", "adapters": {"count": 3}}}
    del problem["adapters"]
    request = {"problem": problem, "options": QUICK}
    request["files"] = {"azure.csv": f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"}
    answer = client.post("/v1/solve", json=request)
    assert answer.status_code == 200, answer.text
    assert {entry.role for entry in Plan.model_validate(answer.json()).inputs} >= {"problem", "trace"}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b'{"problem": NaN}', 400),
        (b'{"problem": 1e999}', 400),
        (b'{"problem": {}, "problem": {}}', 400),
        (b"[" * 100_000, 400),
        (b"\xff\xfe", 400),
        (b'{"problem": "\\ud800"}', 422),
        (b'{"problem": ' + b"1" * 5000 + b"}", 400),
        (b" " * (1 << 20), 413),
    ],
)
def test_bodies_that_are_none(client: httpx.Client, content: bytes, status: int) -> None:
    """Every one of them is answered with problem details."""
    answer = client.post("/v1/solve", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


@pytest.mark.parametrize("path", ["healthz", "readyz", "metrics", "v1/jobs"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    """Checks of load balancers ask so."""
    answer = client.head(f"/{path}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client.get(f"/{path}").headers["content-type"]


@pytest.mark.parametrize("hollow", ['{"problem": {"adapters": [%s]}}', '{"plan": {"gpus": [%s]}}'])
def test_errors_of_validation_are_not_many(client: httpx.Client, hollow: str) -> None:
    """Each of many hollow entries would have several, all kept at a time."""
    body = hollow % ",".join(["{}"] * 100_000)
    answer = client.post("/v1/verify", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["field"] in {"problem.adapters", "plan.gpus"}
    assert "entries" in answer.json()["detail"]


def test_limits_name_the_field(client: httpx.Client) -> None:
    """More adapters, a larger budget, more scenarios, a longer wait than the server allows."""
    many = {"problem": small_data(num_adapters=51)}
    assert client.post("/v1/solve", json=many).json()["field"] == "problem.adapters"
    assert client.post("/v1/solve", json=_request(budget_s=1e6)).json()["field"] == "options.budget_s"
    assert client.post("/v1/solve", params={"deadline_s": 5000}, json=_request()).json()["field"] == "deadline_s"
    grid = {"grid": dict.fromkeys(("scale_rates", "lengths", "itl_p95_ms", "prompt_lengths"), "1:100:1")}
    study = client.post("/v1/whatif", json={**_request(), "scenarios": grid})
    assert (study.status_code, study.json()["field"]) == (422, "scenarios")


def test_bad_problems_are_told_in_the_words_of_problem_files(client: httpx.Client) -> None:
    """With field and hint, also where only the worker finds out."""
    request = _request()
    request["problem"]["adapters"][1]["rate"] = request["problem"]["adapters"][1].pop("rate_rps")
    error = client.post("/v1/solve", json=request).json()
    assert error["field"] == "adapters.1.rate"
    assert "rate_rps" in error["hint"]
    request = _request()
    request["problem"]["adapters"][1]["name"] = request["problem"]["adapters"][0]["name"]
    answer = client.post("/v1/solve", json=request)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:placer:error:bad-input")


def test_metrics_health_and_unknown_paths(client: httpx.Client) -> None:
    """What operators ask."""
    _solved(client)
    text = client.get("/metrics").text
    assert 'placer_jobs_finished_total{operation="solve",state="succeeded"}' in text
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/v1/nothing").status_code == 404
    assert client.get(f"/v1/jobs/{'0' * 32}").json()["type"] == "urn:placer:error:no-such-job"
    assert client.get("/openapi.json").json()["openapi"].startswith("3.")
