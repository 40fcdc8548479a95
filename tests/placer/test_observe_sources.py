"""`placer observe` with logs, saved metrics, benchmarks and a Prometheus-like server: what it writes and refuses."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import load_problem
from placer.observing.access_logs import LogWindow, read_access_logs
from placer.observing.document import ObservedWorkload
from placer.observing.http_source import HttpAccess
from placer.observing.prometheus import watch_pages
from placer.observing.samples import LORA_INFO, REQUESTS, TrafficSamples, growth_of
from twin.errors import InputError
from twin.profile import load_profile

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "chat-llama-32.yaml"
# Adapters of the example.
SEEN = ("a0", "a1")
START_S = 1_790_000_000.0


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["observe", *map(str, arguments)], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _line(time_s: float, model: str, prompt: int = 20, output: int = 5, **more: Any) -> dict[str, Any]:
    return {"timestamp": time_s, "model": model, "usage": {"prompt_tokens": prompt, "completion_tokens": output}} | more


def _write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _log(path: Path, *, seconds: int = 600) -> Path:
    """Write a log: adapter chat-00 asks once a second, chat-01 every fourth."""
    lines = [_line(START_S + second, "chat-00", 100, 50) for second in range(seconds)]
    lines += [_line(START_S + second, "chat-01", 30, 10) for second in range(0, seconds, 4)]
    return _write(path, lines)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.sampled_from(["a", "b", "base"]), st.sampled_from([200, 429, 500])),
        min_size=1,
        max_size=40,
    )
)
def test_a_log_counts_what_a_loop_counts(tmp_path_factory: pytest.TempPathFactory, events: list[Any]) -> None:
    """Requests that were answered, of adapters, in the window; whatever their order and file."""
    folder = tmp_path_factory.mktemp("log")
    lines = [_line(START_S + time_s, model, status=status) for time_s, model, status in events]
    half = len(lines) // 2
    paths = [_write(folder / "1.jsonl", lines[:half]), _write(folder / "2.jsonl", lines[half:])]
    wanted = Counter(model for time_s, model, status in events if status == 200 and model != "base" and time_s >= 500)
    window = LogWindow(500.0, START_S + 1000.0)
    if not wanted:
        with pytest.raises(InputError, match="must have"):
            read_access_logs(paths, window=window, base_models=["base"])
        return
    seen = read_access_logs(paths, window=window, base_models=["base"])
    assert {name: traffic.num_requests for name, traffic in seen.adapters.items()} == wanted
    assert seen.window_s == 500.0


def test_a_log_becomes_a_problem_with_its_rates_and_lengths(tmp_path: Path) -> None:
    """The file is one that `placer solve` reads; the evidence says how each number is known."""
    output = tmp_path / "now.yaml"
    code, printed, _ = _run(_log(tmp_path / "access.jsonl"), "--rank", "16", "-o", output, "--json")
    assert code == 0
    rates = {adapter.name: adapter.rate_rps for adapter in load_problem(output).adapters}
    assert rates == pytest.approx({"chat-00": 1.0, "chat-01": 0.25}, rel=0.01)
    evidence = ObservedWorkload.model_validate_json(printed)
    entry = evidence.adapters[0]
    assert (entry.name, entry.num_requests, entry.rate_from, entry.rank_from) == ("chat-00", 600, "counted", "--rank")
    assert entry.low_rps < 1.0 < entry.high_rps
    assert entry.prompt_tokens == pytest.approx(100.0, rel=0.02)
    # sum of variances n / T^2 over sum of squared rates
    assert evidence.rate_cv == pytest.approx(((1.25 / 600) / (1.0 + 0.0625)) ** 0.5, rel=0.02)
    assert any("rank 16 of chat-00, chat-01" in text for text in evidence.assumed)


def test_a_problem_keeps_what_cannot_be_observed(tmp_path: Path) -> None:
    """GPU types, engine, ranks and adapters stay; rates follow; who was not seen is told, at 0 or as it was."""
    log, base = _log(tmp_path / "access.jsonl"), load_problem(EXAMPLE)
    names = [adapter.name for adapter in base.adapters]
    text = log.read_text("utf-8").replace("chat-00", names[0]).replace("chat-01", names[1])
    log.write_text(text, "utf-8")
    for unseen, expected in (("zero", 0.0), ("keep", base.adapters[2].rate_rps)):
        output = tmp_path / f"{unseen}.yaml"
        code, _, errors = _run(log, "--problem", EXAMPLE, "--unseen", unseen, "-o", output, "--probability", "0.9")
        assert code == 0, errors
        made = load_problem(output)
        assert [adapter.name for adapter in made.adapters] == names
        assert [adapter.rank for adapter in made.adapters] == [adapter.rank for adapter in base.adapters]
        assert made.adapters[0].rate_rps == pytest.approx(1.0, rel=0.01)
        assert made.adapters[2].rate_rps == pytest.approx(expected)
        assert made.gpu_types == base.gpu_types
        assert made.uncertainty is not None
        assert made.uncertainty.probability == 0.9
        assert "and 25 more had no request" in errors
    code, _, errors = _run(log, "--problem", EXAMPLE, "--unseen", "drop", "-o", tmp_path / "drop.yaml")
    assert [adapter.name for adapter in load_problem(tmp_path / "drop.yaml").adapters] == names[:2]


def test_a_problem_can_be_updated_in_place(tmp_path: Path) -> None:
    """What is observed goes into the file that it starts from."""
    problem = tmp_path / "problem.yaml"
    problem.write_bytes(EXAMPLE.read_bytes())
    assert _run(_log(tmp_path / "access.jsonl"), "--problem", problem, "--rank", "8", "-o", problem)[0] == 0
    assert {"chat-00", "chat-01"} <= {adapter.name for adapter in load_problem(problem).adapters}


def test_a_router_that_knows_no_lengths_takes_them_from_the_problem(tmp_path: Path) -> None:
    """A reverse proxy logs who asked when, and no tokens."""
    name = load_problem(EXAMPLE).adapters[0].name
    lines = [{"time": f"2026-05-01T10:00:{second:02d}+00:00", "model": name, "status": "200"} for second in range(60)]
    log = _write(tmp_path / "router.jsonl", lines)
    code, printed, _ = _run(log, "--problem", EXAMPLE, "--json")
    assert code == 0
    entry = json.loads(printed)["adapters"][0]
    assert (entry["rate_from"], entry["lengths_from"]) == ("counted", "problem")
    assert entry["rate_rps"] == pytest.approx(1.0)
    code, _, errors = _run(log, "--rank", "8")
    assert code == 2
    assert "lengths of requests must be known" in errors


def test_ranks_come_from_the_adapters_own_configuration(tmp_path: Path) -> None:
    """As PEFT writes them; one between vLLM's takes the next one's room."""
    for name, rank in (("chat-00", 64), ("chat-01", 12)):
        (tmp_path / "loras" / name).mkdir(parents=True)
        (tmp_path / "loras" / name / "adapter_config.json").write_text(json.dumps({"r": rank}), "utf-8")
    code, printed, _ = _run(_log(tmp_path / "a.jsonl"), "--adapter-folder", tmp_path / "loras", "--json")
    assert code == 0
    assert [entry["rank"] for entry in json.loads(printed)["adapters"]] == [64, 16]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", ["--rank", "8"], "is empty"),
        ("time,model\n1,a\n", ["--rank", "8"], "is something else"),
        ('{"a": 1}\n' * 3, ["--rank", "8"], "3 of 3 lines cannot be used"),
        ('{"timestamp": 5, "model": "a"}\n', ["--rank", "8"], "rates need a duration"),
        (None, ["--rank", "8", "--end", "2001-01-01"], "has no request from"),
        (None, ["--rank", "8", "--end", "soon"], "`end` must be unix seconds"),
        (None, ["--rank", "8", "--window", "-1"], "`window` must be a number of seconds"),
        (None, ["--rank", "8", "--fields", "when=t"], "fields must be given as role=name"),
        (None, ["--rank", "8", "--unseen", "guess"], "`unseen` must be one of"),
        (None, ["--rank", "7"], "rank"),
        (None, [], "the rank of every adapter must be known"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, content: str | None, options: list[str], message: str) -> None:
    """In one sentence, with exit code 2."""
    log = tmp_path / "access.jsonl"
    if content is None:
        _log(log)
    else:
        log.write_text(content, "utf-8")
    code, _, errors = _run(log, *options)
    assert (code, message in errors) == (2, True), errors


def test_lines_that_cannot_be_used_and_clocks_from_the_future_are_told(tmp_path: Path) -> None:
    """A line that is cut off, failed requests, times without a zone."""
    lines = [_line(0.0, "a") | {"timestamp": f"2026-05-01 10:00:{second:02d}"} for second in range(30)]
    log = _write(tmp_path / "a.jsonl", [*lines, _line(START_S, "a", status=503)])
    log.write_text(log.read_text("utf-8") + '{"timestamp": 17', "utf-8")
    seen = read_access_logs([log], now_s=1_000.0)
    told = " ".join((*seen.warnings, *seen.assumed))
    for words in ("1 lines are left out", "in the future", "a status of 400 or more", "without a zone are UTC"):
        assert words in told


@pytest.mark.parametrize(
    "line",
    [
        '{"timestamp": 1' + "0" * 400 + ', "model": "a0"}',
        '{"timestamp": "0001-01-01T00:00:00Z", "model": "a0"}',
        '{"timestamp": true, "model": "a0"}',
        '{"timestamp": 1790000000, "model": "\\ud800"}',
        '{"timestamp": 1790000000, "model": "x\\nadapters: []"}',
    ],
    ids=["huge", "year 1", "no number", "surrogate", "line break"],
)
def test_a_line_that_no_gateway_means_is_left_out(tmp_path: Path, line: str) -> None:
    """It neither ends the reading, nor stretches the window, nor gets into the file that is written."""
    log = _write(tmp_path / "log.jsonl", [_line(START_S + second, "a0") for second in range(100)])
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    code, _, stderr = _run(log, "--problem", EXAMPLE, "--rank", "8", "-o", tmp_path / "now.yaml")
    assert code == 0
    assert "1 lines are left out" in stderr
    rates = {adapter.name: adapter.rate_rps for adapter in load_problem(tmp_path / "now.yaml").adapters}
    assert rates["a0"] == pytest.approx(1.0)
    assert len(rates) == 32


def test_a_count_of_tokens_that_is_none_is_no_length(tmp_path: Path) -> None:
    """The request counts, its length does not."""
    lines = [_line(START_S + second, "a0") for second in range(100)]
    seen = read_access_logs([_write(tmp_path / "log.jsonl", [*lines, _line(START_S + 50, "a0", 10**400)])])
    assert seen.num_requests == 101
    assert seen.prompt_tokens is not None
    assert seen.prompt_tokens.max == 20


def test_a_log_that_ends_before_its_window_is_told(tmp_path: Path) -> None:
    """Rates of a log that nobody writes any more fall: that must not pass for less traffic."""
    log = _write(tmp_path / "log.jsonl", [_line(START_S + second, "a0") for second in range(600)])
    late, in_time = (
        read_access_logs([log], window=LogWindow(600.0, START_S + end_s)).warnings for end_s in (800.0, 601.0)
    )
    assert [text for text in late if "ends 201 s before" in text]
    assert not in_time


@pytest.mark.parametrize("end", ["nan", "inf", "1e300", "1790000000000"])
def test_an_end_that_is_no_time_is_refused(tmp_path: Path, end: str) -> None:
    """Not a bug, and not a file."""
    log = _write(tmp_path / "log.jsonl", [_line(START_S + second, "a0") for second in range(10)])
    code, _, stderr = _run(log, "--problem", EXAMPLE, f"--end={end}")
    assert code == 2
    assert "`end` must be unix seconds" in stderr


def test_a_benchmark_divides_its_requests_as_the_problem_does(tmp_path: Path) -> None:
    """A result tells how many requests there were, how fast and how long, and not whose."""
    result = {
        "duration": 105.0,
        "completed": 200,
        "request_rate": 2.0,
        "request_throughput": 1.9,
        "total_input_tokens": 20000,
        "total_output_tokens": 6000,
        "input_lens": [50, 150] * 100,
        "output_lens": [20, 40] * 100,
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(result), "utf-8")
    code, printed, errors = _run(path, "--problem", EXAMPLE, "--json")
    assert code == 0, errors
    evidence = json.loads(printed)
    base = load_problem(EXAMPLE).adapters
    assert evidence["rate_rps"] == pytest.approx(2.0)
    share = base[0].rate_rps / sum(adapter.rate_rps for adapter in base)
    assert evidence["adapters"][0]["rate_rps"] == pytest.approx(2.0 * share)
    # The problem's lengths, scaled: together they have the mean that was counted.
    tokens = sum(entry["rate_rps"] * entry["prompt_tokens"] for entry in evidence["adapters"])
    assert tokens / evidence["rate_rps"] == pytest.approx(100.0)
    assert _run(path, "--rank", "8")[0] == 2


def _answer() -> dict[str, Any]:
    """Return what Prometheus answers for a server that finished 90 requests in a minute."""
    common = {"instance": "gpu-1:8000", "job": "vllm"}
    counter = {"__name__": REQUESTS, "model_name": "base", "finished_reason": "stop", **common}
    lora = {"__name__": LORA_INFO, "running_lora_adapters": ",".join(SEEN), "waiting_lora_adapters": "", **common}
    times = [START_S + 15.0 * number for number in range(5)]
    return {
        "status": "success",
        "data": {
            "resultType": "matrix",
            "result": [
                {"metric": counter, "values": [[time_s, str(10.0 + 1.5 * (time_s - START_S))] for time_s in times]},
                {"metric": lora, "values": [[time_s, str(time_s)] for time_s in times]},
            ],
        },
    }


@contextmanager
def _serving(handle: Callable[[BaseHTTPRequestHandler, str], None]) -> Iterator[str]:
    """Serve on a free port; the handler is told the body of the request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            handle(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _reply(request: BaseHTTPRequestHandler, content: str, *, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content.encode())


def test_prometheus_is_asked_for_raw_samples_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the environment goes with the question, which names window and selector; the answer can be saved."""
    asked: list[tuple[str, str | None, str]] = []

    def handle(request: BaseHTTPRequestHandler, body: str) -> None:
        asked.append((request.path, request.headers.get("Authorization"), body))
        _reply(request, json.dumps(_answer()))

    monkeypatch.setenv("PROMETHEUS_TOKEN", "secret")
    with _serving(handle) as url:
        code, printed, errors = _run(
            f"{url}/prom",
            "--window",
            "90",
            "--selector",
            'job="vllm"',
            "--rank",
            "8",
            "--json",
            "--problem",
            EXAMPLE,
            "--unseen",
            "drop",
        )
    assert code == 0, errors
    path, authorization, body = asked[0]
    assert (path, authorization) == ("/prom/api/v1/query", "Bearer secret")
    assert "90000ms" in body
    assert "job%3D%22vllm%22" in body
    assert "secret" not in printed + errors
    saved = tmp_path / "answer.json"
    saved.write_text(json.dumps(_answer()), "utf-8")
    code, from_file, errors = _run(saved, "--json", "--problem", EXAMPLE, "--unseen", "drop")
    assert code == 0, errors
    assert json.loads(from_file)["adapters"] == json.loads(printed)["adapters"]
    assert json.loads(from_file)["rate_rps"] == pytest.approx(1.5)


def _redirect(request: BaseHTTPRequestHandler, body: str) -> None:
    del body
    _reply(request, "", status=302, Location="http://127.0.0.1:1/elsewhere")


@pytest.mark.parametrize(
    ("handle", "options", "code", "message"),
    [
        (lambda request, _: _reply(request, "x" * 100_000), ["--max-mib", "0.05"], 2, "at most 0.05 MiB"),
        (lambda request, _: _reply(request, "<html>"), [], 2, "must be that of a Prometheus server"),
        (lambda request, _: _reply(request, '{"status": "error", "error": "bad"}', status=422), [], 2, "422: bad"),
        (lambda request, _: _reply(request, "no", status=401), [], 2, "must accept the token"),
        (lambda request, _: _reply(request, "busy", status=503), [], 6, "503: busy"),
        (_redirect, [], 2, "redirects to http://127.0.0.1:1/elsewhere"),
        (
            lambda request, _: _reply(
                request, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": []}})
            ),
            ["--window", "60"],
            2,
            "has none in 60 s",
        ),
    ],
)
def test_what_a_server_may_answer_instead(handle: Any, options: list[str], code: int, message: str) -> None:
    """Too much, something else, refusals, redirections (a token must not go there), nothing."""
    with _serving(handle) as url:
        found, _, errors = _run(url, "--rank", "8", *options)
    assert (found, message in errors) == (code, True), errors


def test_an_address_that_does_not_answer_or_has_a_password() -> None:
    """The one is a failure, the other is bad input, and is not shown."""
    code, _, errors = _run("http://127.0.0.1:1", "--rank", "8", "--timeout", "2")
    assert (code, "must answer within 2 s" in errors) == (6, True), errors
    code, _, errors = _run("http://user:hunter2@127.0.0.1:1", "--rank", "8")
    assert (code, "hunter2" in errors) == (2, False), errors


def test_pages_are_watched_as_long_as_asked() -> None:
    """Every page at its time by our clock; a scrape that fails is counted, and the rest is used."""
    now, pages = [START_S], [0]

    def handle(request: BaseHTTPRequestHandler, body: str) -> None:
        del body
        pages[0] += 1
        content = f'{REQUESTS}{{model_name="base"}} {10.0 * pages[0]}\nother_metric 1\n'
        _reply(request, content, status=500 if pages[0] == 3 else 200)

    def wait(seconds: float) -> None:
        now[0] += seconds

    samples = TrafficSamples()
    with _serving(handle) as url:
        told = watch_pages(
            [f"{url}/metrics"],
            samples,
            window_s=50.0,
            every_s=10.0,
            access=HttpAccess(),
            clock=lambda: now[0],
            wait=wait,
        )
    (server,) = samples.traffic_servers().values()
    grown = growth_of(server, window_begin_s=START_S)
    assert (grown.begin_s, grown.end_s, grown.total(REQUESTS)) == (START_S, START_S + 50.0, 50.0)
    assert told == ("1 scrapes of 6 were not answered",)


def test_saved_pages_are_metrics(tmp_path: Path) -> None:
    """Pages one after the other in a file, as `curl` saves them in a loop."""
    text = ""
    for number in range(4):
        text += f"# scraped_at {START_S + 20 * number}\n"
        text += f'{REQUESTS}{{engine="0",model_name="base"}} {30 * number}\n'
        text += (
            f'{LORA_INFO}{{max_lora="4",running_lora_adapters="a",waiting_lora_adapters=""}} {START_S + 20 * number}\n'
        )
        for name, tokens in (("prompt", 100), ("generation", 50)):
            for end in ("50", "200", "+Inf"):
                count = 30 * number if float(end) >= tokens else 0
                text += f'vllm:request_{name}_tokens_bucket{{engine="0",le="{end}",model_name="base"}} {count}\n'
            text += f'vllm:request_{name}_tokens_sum{{engine="0",model_name="base"}} {30 * number * tokens}\n'
    pages = tmp_path / "pages.txt"
    pages.write_text(text, "utf-8")
    code, printed, errors = _run(pages, "--rank", "8", "--json")
    assert code == 0, errors
    evidence = json.loads(printed)
    (entry,) = evidence["adapters"]
    assert (entry["name"], entry["rate_from"], entry["lengths_from"]) == ("a", "presence", "all requests")
    assert entry["rate_rps"] == pytest.approx(90 / 60)
    assert (entry["prompt_tokens"], entry["output_tokens"]) == pytest.approx((100.0, 50.0))
    assert any("does not count requests by adapter" in text for text in evidence["unknown"])
    # A log beside them tells adapters apart, and what is still unknown is no longer said.
    log = _write(tmp_path / "a.jsonl", [{"time": START_S + second, "model": "a"} for second in range(60)])
    code, printed, errors = _run(pages, log, "--rank", "8", "--json")
    assert json.loads(printed)["adapters"][0]["rate_from"] == "counted"
    assert not any("does not count requests by adapter" in text for text in json.loads(printed)["unknown"])
    assert "sources disagree" in errors


def test_paths_of_the_problem_start_from_where_the_new_file_is(tmp_path: Path) -> None:
    """A profile beside the old problem is found from the folder of the new one."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    content = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    profile = load_profile(content["gpu_types"][0]["profile"])
    (tmp_path / "old" / "mine.json").write_text(profile.model_dump_json(), "utf-8")
    content["gpu_types"][0]["profile"] = "mine.json"
    (tmp_path / "old" / "problem.yaml").write_text(yaml.safe_dump(content), "utf-8")
    output = tmp_path / "new" / "now.yaml"
    code, _, errors = _run(
        _log(tmp_path / "a.jsonl"), "--problem", tmp_path / "old" / "problem.yaml", "--rank", "8", "-o", output
    )
    assert code == 0, errors
    assert yaml.safe_load(output.read_text("utf-8"))["gpu_types"][0]["profile"] == "../old/mine.json"
