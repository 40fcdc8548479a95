"""Jobs without HTTP and without workers: who is told what, in which order, when things go wrong."""

import asyncio
import contextlib
import inspect
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Message
from typer.testing import CliRunner

from placer.cli.application import app
from placer.events import PhaseStarted, PlanEvent
from placer.files import plan_to_json
from placer.planning import plan
from placer.replanning.run import replan
from placer.service.answers import answer
from placer.service.documents import ReplanOptions, SolveOptions, SolveRequest
from placer.service.error_details import RequestRefusedError
from placer.service.event_records import Thinning
from placer.service.job_store import FILE_NAME, JobEnd, JobStore, NewJob
from placer.service.jobs import Jobs
from placer.service.metrics import Metrics
from placer.service.operations import Work, perform
from placer.service.service import Service
from placer.service.settings import ServiceSettings
from placer.service.strict_json import check_numbers
from solvers.budget import Budget
from tests.placer.small_fleets import small_data, small_problem

TIMES: dict[str, Any] = {"horizon_s": 120, "warmup_s": 20}
QUICK = {"max_evaluations": 200, **TIMES}


def _jobs(folder: Path, clock: Iterator[int]) -> Jobs:
    settings = ServiceSettings(folder)
    return Jobs(JobStore(folder, lambda: float(next(clock))), settings, Metrics())


def test_numbers_of_events_ascend_over_services(tmp_path: Path) -> None:
    """Also where a start is not counted: who goes on after the last event misses none of the next service."""
    clock = itertools.count(1_000_000)

    async def number_of_service() -> list[int]:
        jobs = _jobs(tmp_path, clock)
        await jobs.resume()
        if not await jobs.latest(count=1, before=None, state=None):
            await jobs.submit("solve", b"{}", digest="d", key=None, solver_s=None)
        begun = await jobs.begin_next(lambda: None)
        assert begun is not None
        jobs.hear(begun.job_id, {"kind": "repair-round"})
        feed = jobs.feed_of(begun.job_id)
        assert feed is not None
        numbers = [event["id"] for event in feed.all()]
        await jobs.drain()
        await jobs.put_back(begun.job_id, is_counted=False)
        await jobs.close()
        return numbers

    numbers = [number for _ in range(3) for number in asyncio.run(number_of_service())]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 6


def test_who_may_not_wait_leaves_no_job(tmp_path: Path) -> None:
    """429 means that nothing was accepted: to ask again must not do it twice."""

    async def asked() -> None:
        service = Service(ServiceSettings(tmp_path, streams=0))
        service.jobs = _jobs(tmp_path, itertools.count())
        content = {"problem": small_data(num_adapters=2)}
        body = SolveRequest.model_validate(content)

        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps(content).encode()}

        request = Request({"type": "http", "headers": []}, receive)
        try:
            with pytest.raises(RequestRefusedError) as refused:
                await answer(service, "solve", body, key=None, deadline_s=1.0, request=request)
            assert refused.value.details.status == 429
            assert await service.jobs.latest(count=10, before=None, state=None) == []
        finally:
            await service.jobs.close()

    asyncio.run(asked())


def test_a_request_that_cannot_be_read_fails_its_job(tmp_path: Path) -> None:
    """Otherwise it would run for ever: no worker has it."""

    async def begun() -> None:
        jobs = _jobs(tmp_path, itertools.count())
        job = await jobs.submit("solve", b"{}", digest="d", key=None, solver_s=None)
        with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as other, other:
            other.execute("UPDATE jobs SET request = x'00'")
        assert await jobs.begin_next(lambda: None) is None
        ended = await jobs.get(job.id)
        assert (ended.state, ended.exit_code, jobs.num_running) == ("failed", 6, 0)
        assert jobs.feed_of(job.id) is None
        await jobs.close()

    asyncio.run(begun())


def test_a_clock_that_is_set_back_forgets_no_job_that_just_ended(tmp_path: Path) -> None:
    """Its caller waits for it."""
    times = iter([10.0, 20.0, 30.0, 5.0])
    store = JobStore(tmp_path, lambda: next(times))
    ended = []
    for name in ("a", "b"):
        store.add(NewJob(name, "solve", b"{}", name))
        ended.append(store.finish(name, JobEnd("succeeded", 0, result=b"{}"), keep=1).id)
    assert ended == ["a", "b"]
    assert [job.id for job in store.latest(count=9, before=None, state=None)] == ["b"]
    store.close()


def test_a_replan_that_is_interrupted_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a document, but is none that ended: the service puts its job back, or keeps it as cancelled."""
    monkeypatch.chdir(tmp_path)
    data = small_data(num_adapters=4, total_rps=11.0)
    before = plan(small_problem(tmp_path, num_adapters=4, total_rps=11.0), budget=Budget(None, 200), **TIMES)
    phases: list[str] = []

    def observe(event: PlanEvent) -> None:
        if isinstance(event, PhaseStarted) and event.phase in {"improve", "solve"} and not phases:
            phases.append(event.phase)
            raise KeyboardInterrupt

    request = {"problem": data, "plan": json.loads(plan_to_json(before)), "options": QUICK}
    outcome = perform("replan", Work(request, tmp_path, 1, None, observe, lambda _: None))
    assert json.loads(outcome.text)["plan"]["termination"] == "interrupted"
    assert (outcome.exit_code, outcome.is_interrupted) == (130, True)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"a": [0] * 20_001}, "a"),
        ({"a": [[]] * 19_999, "b": [[[], []]] * 19_999, "c": [[[], []]] * 15_000}, None),
        ({"a": {"b": [dict.fromkeys(range(19_000), 0)] * 30}}, "a.b"),
    ],
)
def test_bodies_of_too_many_values_are_refused(data: Any, field: str | None) -> None:
    """In a list, in lists of lists, in all of it."""
    with pytest.raises(RequestRefusedError) as refused:
        check_numbers(data, 50)
    assert refused.value.details.status == 422
    assert (refused.value.details.field or "").startswith(field or "")
    check_numbers(data, 100_000)


def test_the_best_placement_is_told_at_once() -> None:
    """Two improvements within a tenth of a second are two; the same GPUs again are thinned out."""
    told: list[tuple[int, int]] = []
    thinning = Thinning(lambda record: told.append((record["num_gpus"], record["n"])), clock=lambda: 1.0)
    for number, num_gpus in enumerate((5, 5, 4, 4, 4, 3)):
        thinning({"kind": "incumbent", "num_gpus": num_gpus, "cost_per_hour": 3.0 * num_gpus, "n": number})
    assert told == [(5, 0), (4, 2), (3, 5)]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--job-cpu", "inf"), ("--job-wall", "nan"), ("--max-body-mib", "inf"), ("--max-body-mib", "nan")],
)
def test_limits_of_the_service_are_finite(tmp_path: Path, option: str, value: str) -> None:
    """The kernel knows no infinite seconds: each job would end its worker."""
    result = CliRunner().invoke(app, ["serve", "--data-dir", str(tmp_path / "data"), option, value], prog_name="placer")
    assert result.exit_code == 2
    assert f"Got {value}" in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("function", "options"), [(plan, SolveOptions), (replan, ReplanOptions)])
def test_what_can_be_asked_in_python_can_be_asked_over_http(
    function: Callable[..., Any], options: type[BaseModel]
) -> None:
    """But for what the service decides, or the request has elsewhere."""
    elsewhere = {"problem", "plan", "budget", "workers", "observer", "repair_rounds", "engine", "record_rejections"}
    assert set(inspect.signature(function).parameters) - elsewhere <= set(options.model_fields)
