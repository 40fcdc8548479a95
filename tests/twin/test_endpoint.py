"""Measuring a server over HTTP: every request is sent on time, and every way to fail is recorded as what it was."""

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.twin.completion_server import METRICS, Behaviour, CompletionServer, Fault
from tests.twin.measured import ignore_progress, new_folder, small_workload
from twin.calibration.evidence import read_evidence
from twin.errors import InputError, TwinError
from twin.measurement.endpoint import API_KEY_VARIABLE, EndpointDriver
from twin.measurement.folder import MeasurementFolder, open_folder
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import EndpointSettings
from twin.measurement.session import Progress, SegmentOutcome, run_segment, settle
from twin.measurement.tables import read_table

OUTPUT_TOKENS = 6


@pytest.fixture(autouse=True)
def _without_a_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever runs the tests may have a key; the tests have none."""
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    return iter([None])


def _settings(url: str, **changes: Any) -> EndpointSettings:
    options = {"drain_s": 5.0, "wait_s": 0.0, "give_up_s": 0.5, "metrics_interval_s": 0.0, "timeout_s": 5.0}
    return EndpointSettings(url=url, metrics_url=f"{url}/metrics", **{**options, **changes})


def _measure(
    path: Path,
    server: CompletionServer | str,
    *,
    rate_rps: float = 16.0,
    horizon_s: float = 0.5,
    stop: StopRequest | None = None,
    prompt_tokens: int = 20,
    **changes: Any,
) -> tuple[MeasurementFolder, SegmentOutcome]:
    """Measure three adapters for half a second; return the folder and how it ended."""
    url = server if isinstance(server, str) else server.url
    settings = _settings(url, **changes)
    workload = small_workload(rates_rps=(rate_rps,) * 3, prompt=prompt_tokens, output=OUTPUT_TOKENS)
    folder = new_folder(path / "m", workload, horizon_s=horizon_s, settings=settings)
    outcome = run_segment(folder, EndpointDriver(settings), stop or StopRequest(), ignore_progress)
    return folder, outcome


def _requests(folder: MeasurementFolder) -> pd.DataFrame:
    return read_table(folder.path, "requests")


def test_every_request_is_sent_and_recorded(tmp_path: Path) -> None:
    """In the order and with the lengths of the schedule, to its adapter, with the exact number of tokens."""
    with CompletionServer() as server:
        folder, outcome = _measure(tmp_path, server)
    schedule, requests = folder.schedule(), _requests(folder)
    assert (outcome.reason, folder.manifest.status) == (None, "complete")
    assert len(requests) == len(schedule) == len(server.requests) > 10
    assert (requests["status"] == "ok").all()
    assert (requests["generated_tokens"] == OUTPUT_TOKENS).all()
    assert (requests["counted_prompt_tokens"] == 20).all()
    assert set(requests["counting"]) == {"continuous"}
    assert requests["adapter"].tolist() == [f"a{index}" for index in schedule.adapter.tolist()]
    np.testing.assert_allclose(requests["arrival_s"], schedule.arrival_ns / 1e9, atol=1e-9)
    assert (requests["sent_s"] >= requests["arrival_s"]).all()
    total = requests["sent_s"] + requests["ttft_s"] + requests["itl_s"].map(np.sum)
    np.testing.assert_allclose(total, requests["finish_s"], atol=1e-6)
    assert (requests["itl_s"].map(len) == OUTPUT_TOKENS - 1).all()


def test_requests_ask_for_an_exact_output(tmp_path: Path) -> None:
    """Random ids below the size of the vocabulary, vLLM's fields for exact lengths, and what the context allows."""
    with CompletionServer(Behaviour(max_model_len=23)) as server:
        _measure(tmp_path, server, vocab_size=50)
    body = server.requests[0]
    assert body["model"] in {"a0", "a1", "a2"}
    assert len(body["prompt"]) == 20
    assert max(max(request["prompt"]) for request in server.requests) < 50
    assert body["max_tokens"] == 3
    assert (body["ignore_eos"], body["stream"]) == (True, True)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_servers_that_know_the_standard_only(tmp_path: Path) -> None:
    """Without vLLM's fields and with text for a prompt; the usage at the end confirms a token per chunk."""
    with CompletionServer(Behaviour(usage="end")) as server:
        folder, _ = _measure(tmp_path, server, prompt="text", has_standard_fields_only=True)
    body = server.requests[0]
    assert "ignore_eos" not in body
    assert body["stream_options"] == {"include_usage": True}
    assert len(body["prompt"].split()) == 20
    assert set(_requests(folder)["counting"]) == {"chunks"}
    # It takes each character for a token.
    assert any("counted 1.95 times the prompt tokens that were meant" in text for text in folder.manifest.warnings)


def test_several_tokens_in_a_chunk(tmp_path: Path) -> None:
    """By continuous usage each is counted; the mean time per token is right, and no time is made up."""
    with CompletionServer(Behaviour(tokens_per_chunk=4, token_s=0.01)) as server:
        folder, _ = _measure(tmp_path, server)
    requests = _requests(folder)
    assert requests["chunk_tokens"].map(list).tolist() == [[4, 2]] * len(requests)
    waits = np.stack(requests["itl_s"].to_list())
    assert waits.shape == (len(requests), 5)
    # A busy client may read both chunks at once, but not those of all requests.
    assert np.flatnonzero(waits.any(axis=0)).tolist() == [3]


def test_several_tokens_in_a_chunk_that_nobody_counts(tmp_path: Path) -> None:
    """There are no times between tokens then, and the manifest says so."""
    with CompletionServer(Behaviour(tokens_per_chunk=4, usage="end")) as server:
        folder, _ = _measure(tmp_path, server)
    requests = _requests(folder)
    assert set(requests["counting"]) == {"mismatch"}
    assert requests["itl_s"].isna().all()
    assert (requests["generated_tokens"] == OUTPUT_TOKENS).all()
    assert any("did not say how many" in warning for warning in folder.manifest.warnings)


def test_tokens_that_nobody_counts(tmp_path: Path) -> None:
    """A chunk is taken for a token, and the manifest says so."""
    with CompletionServer(Behaviour(tokens_per_chunk=4, usage="never")) as server:
        folder, _ = _measure(tmp_path, server)
    requests = _requests(folder)
    assert set(requests["counting"]) == {"assumed"}
    assert (requests["generated_tokens"] == 2).all()
    warned = [warning for warning in folder.manifest.warnings if "each of their chunks counts as one" in warning]
    assert [warning.split(" requests")[0].split()[-1] for warning in warned] == [str(len(requests))]


def test_answers_shorter_than_asked_for(tmp_path: Path) -> None:
    """The load was less than offered, which no failure tells."""
    with CompletionServer(Behaviour(longest=2)) as server:
        folder, _ = _measure(tmp_path, server)
    requests = _requests(folder)
    assert (requests["status"] == "ok").all()
    expected = f"{len(requests)} of {len(requests)} answers are shorter than asked for"
    assert any(warning.startswith(expected) for warning in folder.manifest.warnings)


@pytest.mark.parametrize(
    ("fault", "status", "http_status", "message"),
    [
        ("500", "error", 500, "the engine is dead"),
        ("400", "error", 400, "max_tokens is too large"),
        ("html", "malformed", 200, "text/html instead of a stream: <html>bad gateway</html>"),
        ("drop", "disconnected", 200, "after 3 tokens"),
        ("half a line", "disconnected", 200, "after 3 tokens"),
        ("no end", "disconnected", 200, "after 3 tokens, without its end"),
        ("stall", "timeout", 200, "not done after 4 s, with 3 tokens"),
        ("garbage", "malformed", 200, "something else than a completion"),
        ("error event", "error", 200, "the engine died"),
    ],
)
def test_failures_are_recorded_as_what_they_were(
    tmp_path: Path, fault: Fault, status: str, http_status: int, message: str
) -> None:
    """With the tokens that came before; the other requests are served, and nothing is tried again unasked."""
    with CompletionServer(Behaviour(faults={2: fault})) as server:
        folder, outcome = _measure(tmp_path, server, timeout_s=4.0, drain_s=30.0)
    requests = _requests(folder)
    failed = requests[requests["status"] != "ok"]
    assert len(failed) == 1
    record = failed.iloc[0]
    assert (record["status"], record["http_status"], record["attempt"]) == (status, http_status, 0)
    assert message in record["error"]
    assert record["generated_tokens"] == (3 if http_status == 200 and fault != "html" else 0)
    assert len(server.requests) == len(requests) == len(folder.schedule())
    assert (outcome.reason, folder.manifest.status) == (None, "complete")
    assert folder.manifest.summary is not None
    assert folder.manifest.summary.failures == {f"{status} (HTTP {http_status})": 1}
    assert any("1 attempt failed" in warning for warning in folder.manifest.warnings)


def test_retries_hide_no_attempt(tmp_path: Path) -> None:
    """Each attempt is a row; a refusal that will stay one is not tried again."""
    with CompletionServer(Behaviour(faults={1: "500", 4: "400"})) as server:
        folder, _ = _measure(tmp_path, server, retries=2)
    requests = _requests(folder)
    by_status = requests[requests["status"] == "error"].set_index("http_status")["request"]
    again = requests[requests["request"] == by_status[500]]
    assert again["attempt"].tolist() == [0, 1]
    assert again["status"].tolist() == ["error", "ok"]
    assert again["arrival_s"].nunique() == 1
    assert again["sent_s"].is_monotonic_increasing
    assert requests[requests["request"] == by_status[400]]["attempt"].tolist() == [0]
    assert folder.manifest.summary is not None
    assert folder.manifest.summary.requests == {"error": 1, "ok": len(folder.schedule()) - 1}
    assert sum(folder.manifest.summary.failures.values()) == 2


def test_a_server_that_starts_slowly_is_waited_for(tmp_path: Path) -> None:
    """The clock starts when it is there."""
    with CompletionServer(Behaviour(refusals=2)) as server:
        folder, _ = _measure(tmp_path, server, wait_s=20.0)
    assert folder.manifest.status == "complete"
    assert _requests(folder)["sent_s"].min() < 1.0


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    """The address and what happened are named, and the folder can be used by the same command again."""
    for _ in range(2):
        with pytest.raises(
            TwinError, match=r"must answer within 0 s\. http://127\.0\.0\.1:9: it does not answer"
        ) as caught:
            _measure(tmp_path, "http://127.0.0.1:9")
        assert "(connection refused: 127.0.0.1:9)" in caught.value.message
    assert not (tmp_path / "m").exists()


def test_a_server_that_does_not_answer_again_loses_nothing(tmp_path: Path) -> None:
    """What was recorded before it went is kept when going on fails."""
    with CompletionServer(Behaviour(dies_after=4, token_s=0.01)) as server:
        folder, _ = _measure(tmp_path, server, rate_rps=8.0, horizon_s=6.0)
    before = _requests(folder)
    assert isinstance(folder.manifest.settings, EndpointSettings)
    with pytest.raises(TwinError, match="must answer within"):
        run_segment(folder, EndpointDriver(folder.manifest.settings), StopRequest(), ignore_progress)
    assert open_folder(folder.path).manifest.status == "partial"
    pd.testing.assert_frame_equal(_requests(folder), before)


def test_a_server_of_another_kind(tmp_path: Path) -> None:
    """An address with a path too many answers, but lists no models."""
    with CompletionServer() as server, pytest.raises(InputError, match="must be an OpenAI-compatible server"):
        _measure(tmp_path, f"{server.url}/v1")


def test_a_server_that_does_not_even_answer_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are no list of models either."""
    with (
        CompletionServer(Behaviour(listing=b"\xff\xfe\x00")) as server,
        pytest.raises(InputError, match="must be an OpenAI-compatible server"),
    ):
        _measure(tmp_path, server)


def test_an_unknown_adapter(tmp_path: Path) -> None:
    """It is found before anything is sent."""
    with (
        CompletionServer(Behaviour(models=("a0", "a2"))) as server,
        pytest.raises(InputError, match=r"It lacks a1\. It has a0, a2, base") as caught,
    ):
        _measure(tmp_path, server)
    assert "--load-adapters" in str(caught.value.hint)
    assert server.requests == []


def test_adapters_are_loaded_before_and_unloaded_after(tmp_path: Path) -> None:
    """Those that the server has already stay; each call is recorded with its time."""
    with CompletionServer(Behaviour(models=("a1",), loadable=("a0", "a2"))) as server:
        folder, _ = _measure(tmp_path, server, adapter_directory="/adapters")
    assert server.calls == [("load", "/adapters/a0"), ("load", "/adapters/a2"), ("unload", "a0"), ("unload", "a2")]
    calls = read_table(folder.path, "adapter_calls")
    assert calls["action"].tolist() == ["load", "load", "unload", "unload"]
    assert calls["error"].isna().all()
    assert (calls["seconds"] > 0).all()


def test_an_adapter_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The server's reason is passed on, and what was loaded is unloaded again."""
    with (
        CompletionServer(Behaviour(models=(), loadable=("a0",))) as server,
        pytest.raises(InputError, match="does not load 'a1' from /adapters/a1: LoRA rank 64 is greater"),
    ):
        _measure(tmp_path, server, adapter_directory="/adapters")
    assert server.calls[-1] == ("unload", "a0")


def test_a_key_is_sent_and_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the error says where it is to stand."""
    with CompletionServer(Behaviour(key="secret-key")) as server:
        with pytest.raises(InputError, match="must accept the API key") as caught:
            _measure(tmp_path / "without", server)
        assert "OPENAI_API_KEY" in str(caught.value.hint)
        monkeypatch.setenv(API_KEY_VARIABLE, "secret-key")
        folder, _ = _measure(tmp_path / "with", server)
    assert folder.manifest.status == "complete"
    assert "secret-key" not in (folder.path / "manifest.json").read_text("utf-8")


def test_prompts_that_the_server_would_refuse(tmp_path: Path) -> None:
    """Its own longest sequence is what counts."""
    with CompletionServer(Behaviour(max_model_len=20)) as server, pytest.raises(InputError, match="must be shorter"):
        _measure(tmp_path, server)


def test_a_server_that_dies_leaves_a_partial_measurement(tmp_path: Path) -> None:
    """What was recorded stays, what was in flight failed, and what was not sent yet can be sent later."""
    behaviour = Behaviour(dies_after=8, token_s=0.01)
    with CompletionServer(behaviour) as server:
        folder, outcome = _measure(tmp_path, server, rate_rps=8.0, horizon_s=6.0)
        port = int(server.url.rpartition(":")[2])
    assert outcome.cause == "failed"
    assert "the endpoint did not answer any more from about" in str(outcome.reason)
    manifest, requests = folder.manifest, _requests(folder)
    assert manifest.status == "partial"
    assert len(server.requests) == 9
    assert {"ok", "disconnected", "unreachable"} >= set(requests["status"]) > {"disconnected"}
    assert 9 < len(requests) < len(folder.schedule())
    assert manifest.summary is not None
    assert manifest.summary.requests["unsent"] == len(folder.schedule()) - len(requests)

    with CompletionServer(dataclasses.replace(behaviour, dies_after=-1), port=port) as again:
        reopened = open_folder(folder.path)
        assert isinstance(reopened.manifest.settings, EndpointSettings)
        driver = EndpointDriver(reopened.manifest.settings)
        outcome = run_segment(reopened, driver, StopRequest(), ignore_progress)
    assert (outcome.reason, reopened.manifest.status) == (None, "complete")
    rest = _requests(folder).iloc[len(requests) :]
    assert (rest["status"] == "ok").all()
    assert set(rest["segment"]) == {2}
    assert len(again.requests) == len(rest) == len(folder.schedule()) - len(requests)
    # The schedule's clock went on: the rest came when it was due, not at once.
    assert reopened.manifest.segments[1].start_s == rest["arrival_s"].iloc[0]
    assert ((rest["sent_s"] - rest["arrival_s"]).abs() < 1.0).all()


def test_a_stop_in_the_middle(tmp_path: Path) -> None:
    """What is in flight is recorded as it is, with the tokens that it has."""
    stop = StopRequest()
    with CompletionServer(Behaviour(token_s=0.15)) as server:
        threading.Timer(1.0, stop.make, ["interrupted by the test"]).start()
        folder, outcome = _measure(tmp_path, server, horizon_s=30.0, stop=stop)
    requests = _requests(folder)
    assert (outcome.cause, folder.manifest.reason) == ("interrupted", "interrupted by the test")
    cut = requests[requests["status"] == "unfinished"]
    assert len(cut) > 0
    assert set(cut["error"]) == {"interrupted by the test"}
    assert (cut["itl_s"].map(len) == np.maximum(cut["generated_tokens"] - 1, 0)).all()
    assert len(requests) < len(folder.schedule())
    assert settle(folder) == folder.manifest


def test_a_stop_while_nobody_answers(tmp_path: Path) -> None:
    """Waiting for a server ends as well."""
    stop = StopRequest()
    settings = _settings("http://127.0.0.1:9", wait_s=60.0)
    folder = new_folder(tmp_path / "m", small_workload(), settings=settings)

    def interrupt(progress: Progress) -> None:
        if "waiting" in str(progress.what):
            stop.make("interrupted by the test")

    outcome = run_segment(folder, EndpointDriver(settings), stop, interrupt)
    assert outcome.cause == "interrupted"


def test_the_end_of_the_drain_cuts_what_is_left(tmp_path: Path) -> None:
    """The measurement is complete: how long to wait was decided before."""
    with CompletionServer(Behaviour(token_s=1.0)) as server:
        folder, outcome = _measure(tmp_path, server, drain_s=0.2)
    assert (outcome.reason, folder.manifest.status) == (None, "complete")
    assert set(_requests(folder)["status"]) == {"unfinished"}
    assert folder.manifest.summary is not None
    assert folder.manifest.summary.throughput_tps == 0.0


def test_metrics_are_recorded_beside_the_requests(tmp_path: Path) -> None:
    """Sample by sample, with times on the same clock; a page that is none is an error row and a warning."""
    pages = (METRICS, "<html>\nvllm:x{ 1\n", METRICS)
    with CompletionServer(Behaviour(metrics=pages)) as server:
        folder, _ = _measure(tmp_path, server, metrics_interval_s=0.25)
    metrics = read_table(folder.path, "metrics")
    bad = metrics[metrics["error"].notna()]
    assert len(bad) == 1
    assert "no page of metrics" in bad["error"].iloc[0]
    good = metrics[metrics["error"].isna() & (metrics["time_s"] != bad["time_s"].iloc[0])]
    assert good["time_s"].nunique() >= 3
    running = good[good["name"] == "vllm:num_requests_running"]
    assert set(running["value"]) == {3.0}
    assert set(running["labels"]) == {'{"engine": "0", "model_name": "base"}'}
    assert good.groupby("time_s").size().nunique() == 1
    assert any(f"1 of {metrics['time_s'].nunique()} pages" in warning for warning in folder.manifest.warnings)


def test_a_server_without_metrics(tmp_path: Path) -> None:
    """It is asked once."""
    with CompletionServer(Behaviour(metrics=(None,))) as server:
        folder, _ = _measure(tmp_path, server, metrics_interval_s=0.1)
    assert folder.manifest.status == "complete"
    assert any("has no metrics" in warning for warning in folder.manifest.warnings)
    with pytest.raises(InputError, match=r"must have recorded pages of metrics\..*: error: HTTP 404") as caught:
        read_evidence(folder.path, model="llama-3.1-8b")
    assert "--metrics-url" in str(caught.value.hint)


def _warnings_before_requests(server: CompletionServer, path: Path, **changes: Any) -> list[str]:
    """Measure; return what was warned of before the first request was sent."""
    settings = _settings(server.url, **changes)
    folder = new_folder(path / "m", small_workload(), horizon_s=0.5, settings=settings)
    warned: list[str] = []

    def note(progress: Progress) -> None:
        if progress.warning is not None:
            assert server.requests == []
            warned.append(progress.warning)

    run_segment(folder, EndpointDriver(settings), StopRequest(), note)
    assert set(warned) <= set(folder.manifest.warnings)
    return warned


def test_what_makes_a_measurement_useless_is_said_at_its_start(tmp_path: Path) -> None:
    """Without settings nothing can be validated, without metrics nothing calibrated; with both nothing is said."""
    declared = {"max_loras": 4, "max_lora_rank": 16}
    with CompletionServer() as server:
        (without,) = _warnings_before_requests(server, tmp_path / "1", metrics_interval_s=0.2)
        assert "`engine`" in without
        assert "placer validate" in without
    with CompletionServer() as server:
        (unasked,) = _warnings_before_requests(server, tmp_path / "2", engine=declared)
        assert "placer calibrate" in unasked
    with CompletionServer(Behaviour(metrics=(None,))) as server:
        (missing,) = _warnings_before_requests(server, tmp_path / "3", engine=declared, metrics_interval_s=0.2)
        assert "has no metrics" in missing
        assert "placer calibrate" in missing
    with CompletionServer() as server:
        assert _warnings_before_requests(server, tmp_path / "4", engine=declared, metrics_interval_s=0.2) == []


def test_what_a_server_said_is_written_before_requests_are_sent(tmp_path: Path) -> None:
    """Whoever kills the measurement does not lose it."""
    declared = {"max_loras": 4, "max_lora_rank": 16}
    seen: list[Any] = []
    with CompletionServer(Behaviour(token_s=0.05)) as server:
        settings = _settings(server.url, engine=declared, metrics_interval_s=0.2)
        path = tmp_path / "m"
        folder = new_folder(path, small_workload(rates_rps=(4.0,) * 3), horizon_s=2.0, settings=settings)
        note = lambda progress: seen.append(open_folder(path).manifest) if progress.num_sent else None  # noqa: E731
        run_segment(folder, EndpointDriver(settings), StopRequest(), note)
    assert seen[0].status == "running"
    assert seen[0].server == folder.manifest.server
    assert seen[0].server.kv_tokens == 16_000
    assert seen[0].versions == folder.manifest.versions
    assert seen[0].versions["vllm"] == "0.32.0"


def test_a_measurement_that_served_nothing_says_so(tmp_path: Path) -> None:
    """First of all: its other numbers mean nothing."""
    with CompletionServer(Behaviour(faults=dict.fromkeys(range(500), "500"))) as server:
        folder, _ = _measure(tmp_path, server)
    sent = len(_requests(folder))
    assert folder.manifest.warnings[0].startswith(f"NO REQUEST WAS SERVED: of {sent} that were sent, {sent} error")
    with CompletionServer(Behaviour(faults={0: "500"})) as server:
        folder, _ = _measure(tmp_path / "other", server)
    assert not any("NO REQUEST" in warning for warning in folder.manifest.warnings)


def test_settings_that_contradict_each_other_are_said(tmp_path: Path) -> None:
    """The server has 4 slots: it cannot have a CPU cache of 2, and what it has is not known."""
    declared = {"max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": 16}
    with CompletionServer() as server:
        folder, _ = _measure(tmp_path, server, metrics_interval_s=0.5, engine=declared)
    assert folder.manifest.server.engine is None
    assert any("`max_cpu_loras` must be at least `max_loras` (4)" in warning for warning in folder.manifest.warnings)


def test_what_the_server_says_about_itself_is_recorded(tmp_path: Path) -> None:
    """Beside what the problem file declares, and above it where they differ."""
    declared = {"max_loras": 8, "max_lora_rank": 16, "max_num_seqs": 32}
    with CompletionServer() as server:
        folder, _ = _measure(tmp_path, server, metrics_interval_s=0.5, engine=declared)
    facts = folder.manifest.server
    assert facts.kv_tokens == 16_000
    assert facts.engine is not None
    assert (facts.engine.max_loras, facts.engine.max_num_seqs, facts.engine.block_size) == (4, 32, 16)
    assert facts.engine.max_model_len == 512
    assert folder.manifest.versions["vllm"] == "0.32.0"
    assert any("`max_loras` 4, and the problem file says 8" in warning for warning in folder.manifest.warnings)


def test_the_client_records_its_own_lateness(tmp_path: Path) -> None:
    """A client that is late must not pass for a server that is slow."""
    with CompletionServer() as server:
        folder, _ = _measure(tmp_path, server, horizon_s=2.0)
    client = read_table(folder.path, "client")
    assert len(client) >= 2
    assert (client["lag_s"] >= 0).all()
    assert folder.manifest.summary is not None
    lateness = folder.manifest.summary.lateness
    assert lateness is not None
    assert lateness.max_s == pytest.approx((_requests(folder)["sent_s"] - _requests(folder)["arrival_s"]).max())
    assert lateness.timer_max_s == client["lag_s"].max()


def test_a_client_that_is_held_up_says_so(tmp_path: Path) -> None:
    """Half a second of something else in the client is in the lateness, and in a warning."""
    settings_seen: list[float] = []

    def hold_up(progress: Progress) -> None:
        # Progress is told from the client's own loop.
        if progress.num_sent and not settings_seen:
            settings_seen.append(progress.time_s)
            threading.Event().wait(0.5)

    with CompletionServer() as server:
        settings = _settings(server.url)
        workload = small_workload(rates_rps=(10.0,) * 3, output=OUTPUT_TOKENS)
        folder = new_folder(tmp_path / "m", workload, horizon_s=3.0, settings=settings)
        run_segment(folder, EndpointDriver(settings), StopRequest(), hold_up)
    assert settings_seen
    assert folder.manifest.summary is not None
    assert folder.manifest.summary.lateness is not None
    assert 0.3 < float(folder.manifest.summary.lateness.max_s or 0.0) < 2.0
    assert any("the client was late" in warning for warning in folder.manifest.warnings)


def test_many_requests_in_flight(tmp_path: Path) -> None:
    """Hundreds at once: open loop, nobody waits for anybody."""
    with CompletionServer(Behaviour(token_s=0.5)) as server:
        folder, _ = _measure(tmp_path, server, rate_rps=200.0, drain_s=30.0, timeout_s=30.0)
    requests = _requests(folder)
    assert (requests["status"] == "ok").all()
    times = np.concatenate([requests["sent_s"], requests["finish_s"]])
    changes = np.repeat([1, -1], len(requests))
    assert np.cumsum(changes[np.argsort(times, kind="stable")]).max() > 250


def test_the_client_does_not_look_at_all_requests_for_each_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands in flight after the horizon, that alone would keep it busy, and its latencies would be its own."""
    looks: list[int] = []
    wait = asyncio.wait

    async def counted(tasks: Any, **options: Any) -> Any:
        looks.append(len(tasks))
        return await wait(tasks, **options)

    monkeypatch.setattr(asyncio, "wait", counted)
    with CompletionServer(Behaviour(token_s=0.25)) as server:
        folder, _ = _measure(tmp_path, server, rate_rps=100.0, drain_s=30.0, timeout_s=30.0)
    requests = _requests(folder)
    assert (requests["status"] == "ok").all()
    assert sum(looks) < 20 * len(requests)
