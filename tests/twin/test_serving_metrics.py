"""Windows of serving from vLLM's metrics: every format says the same, counts are the engine's, bad input is named."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.simulated_serving import (
    Served,
    adapters_of,
    samples,
    scrapes,
    serve,
    write_answer,
    write_pages,
    write_table,
)
from twin.calibration.evidence import read_evidence
from twin.calibration.metrics_files import is_prometheus_answer, read_prometheus, read_text_pages, time_in_name
from twin.calibration.metrics_series import SampleCollector
from twin.calibration.metrics_windows import (
    FEW_STEPS,
    GAP,
    IDLE,
    NO_VALUE,
    PREEMPTED,
    RESTART,
    SPECULATIVE,
    TOO_BUSY,
    MetricsReading,
    read_windows,
)
from twin.calibration.serving_settings import ServingSettings, parse_settings
from twin.calibration.serving_windows import ServingWindow, merge_alike
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.profile import load_profile

REAL = Path(__file__).parents[1] / "data" / "vllm_0_32_cpu"
ENGINE = {"max_loras": 4, "max_lora_rank": 16, "max_cpu_loras": 8, "max_num_seqs": 64, "max_num_batched_tokens": 1024}
SETTINGS = parse_settings({"engine": ENGINE}, file="settings.yaml")
NAMES = [f"adapter-{index}" for index in range(6)]
TIMES_S = [5.0 * index for index in range(13)]
Page = dict[str, Any]
Sample = tuple[str, dict[str, str], float]


@pytest.fixture(scope="module")
def served() -> Served:
    """Return a minute of six adapters on four slots."""
    prompt, output = LengthDistribution(mean=200, std=100, min=10), LengthDistribution(mean=100, std=50, min=5)
    adapters = adapters_of(6, 4.0, prompt=prompt, output=output)
    return serve(load_profile("llama-3.1-8b-h100-64gb"), EngineConfig.model_validate(ENGINE), adapters, horizon_s=60)


@pytest.fixture(scope="module")
def pages(served: Served) -> list[Page]:
    """Return thirteen scrapes of it."""
    return scrapes(served, TIMES_S, names=NAMES)


@pytest.fixture(scope="module")
def rows(served: Served, pages: list[Page]) -> list[tuple[float, Sample]]:
    """Return their samples with their times."""
    return _rows(pages, served)


@pytest.fixture
def answer(served: Served, pages: list[Page], tmp_path: Path) -> Path:
    """Return them as an answer of Prometheus."""
    return write_answer(tmp_path / "answer.json", pages, served)


def _read(path: Path, known: ServingSettings = SETTINGS) -> Any:
    return read_evidence(path, model="llama-3.1-8b", settings_of=lambda _: known)


def _reading(rows: list[tuple[float, Sample]], known: ServingSettings = SETTINGS) -> MetricsReading:
    collector = SampleCollector()
    for time_s, (name, labels, value) in rows:
        collector.add("server", time_s, name, labels, value)
    return read_windows(collector.series(), known)


def _rows(pages: list[Page], served: Served, *, has_lora: bool = True) -> list[tuple[float, Sample]]:
    return [(page["time_s"], one) for page in pages for one in samples(page, served, has_lora=has_lora)]


def test_every_format_gives_the_same_windows(served: Served, pages: list[Page], tmp_path: Path) -> None:
    """Text pages, an answer of Prometheus and the table of a measurement differ in the name of the server only."""
    writers: list[Callable[[Path, list[Page], Served], Path]] = [write_pages, write_answer, write_table]
    files = ["pages.txt", "answer.json", "metrics.parquet"]
    found = []
    for name, write in zip(files, writers, strict=True):
        evidence = _read(write(tmp_path / name, pages, served))
        found.append(([replace(window, group="") for window in evidence.windows], evidence.summaries[0].dropped))
    assert len(found[0][0]) > 3
    assert found[0] == found[1] == found[2]


def test_one_page_per_file_is_dated_by_its_name(served: Served, pages: list[Page], tmp_path: Path) -> None:
    """A file per scrape, its time in its name, says what one file of all scrapes does."""
    whole = write_pages(tmp_path / "pages.txt", pages, served)
    folder = tmp_path / "each"
    folder.mkdir()
    for text in re.split(r"(?m)^(?=# scraped_at)", whole.read_text(encoding="utf-8"))[1:]:
        mark, _, page = text.partition("\n")
        (folder / f"metrics-{float(mark.split()[-1]):.0f}.txt").write_text(page, encoding="utf-8")
    each, together = _read(folder), _read(whole)
    assert [replace(window, group="") for window in each.windows] == [
        replace(window, group="") for window in together.windows
    ]
    assert each.summaries[0].dropped == together.summaries[0].dropped


def test_a_page_without_a_time_has_that_of_its_file(served: Served, pages: list[Page], tmp_path: Path) -> None:
    """The last modification stands for the scrape, which is said as an assumption."""
    whole = write_pages(tmp_path / "pages.txt", pages, served)
    folder = tmp_path / "each"
    folder.mkdir()
    for number, text in enumerate(re.split(r"(?m)^(?=# scraped_at)", whole.read_text(encoding="utf-8"))[1:]):
        mark, _, page = text.partition("\n")
        path = folder / f"{number}.prom"
        path.write_text(page, encoding="utf-8")
        os.utime(path, (float(mark.split()[-1]),) * 2)
    each, together = _read(folder), _read(whole)
    assert [window.steps for window in each.windows] == [window.steps for window in together.windows]
    assert any(sentence.startswith("13 pages were scraped when") for sentence in each.assumed)


def test_counts_of_a_window_are_the_engines(served: Served, pages: list[Page]) -> None:
    """Steps, decoded tokens, prompts and the mean gap between tokens are those that the simulation had in it."""
    windows = _reading(_rows(pages, served)).windows
    ends_s = served.end_ns[served.step] / 1e9
    is_gap = served.emitted & ~served.is_first
    kept = [index for index in range(12) if pages[index]["running"] or pages[index + 1]["running"]]
    assert len(windows) == len(kept)
    for index, window in zip(kept, windows, strict=True):
        inside = (ends_s > TIMES_S[index]) & (ends_s <= TIMES_S[index + 1])
        assert window.steps == len(np.unique(served.step[inside & served.emitted]))
        assert window.decode_tokens == int((inside & is_gap).sum())
        assert window.first_tokens == int((inside & served.is_first).sum())
        first = served.request[inside & served.is_first]
        assert window.prompt_tokens == int(served.requests.prompt_tokens[first].sum())
        assert window.time_ms == pytest.approx(float(served.gap_ns[inside & is_gap].mean()) / 1e6, rel=1e-6)
        assert (window.slots, window.max_rank, window.max_num_batched_tokens) == (4, 16, 1024)
        assert 0 < window.adapters <= 4


def test_real_scrapes_are_read(tmp_path: Path) -> None:
    """Pages of vLLM 0.32 give their busy windows, with what its own counters say between two of them."""
    shutil.copy(REAL / "pages.txt", tmp_path / "pages.txt")
    known = parse_settings({"engine": {"max_lora_rank": 16, "max_cpu_loras": 4}}, file="settings.yaml")
    evidence = _read(tmp_path / "pages.txt", known)
    assert (evidence.summaries[0].num_read, evidence.summaries[0].num_used) == (6, 5)
    assert set(evidence.summaries[0].dropped) == {GAP}
    texts = re.split(r"(?m)^(?=# scraped_at)", (REAL / "pages.txt").read_text(encoding="utf-8"))[1:3]

    def grown(name: str) -> float:
        first, second = (re.search(rf"(?m)^{name}\{{[^}}]*\}} (.*)$", text) for text in texts)
        assert first is not None
        assert second is not None
        return float(second.group(1)) - float(first.group(1))

    window = evidence.windows[0]
    gap_ms = 1000 * grown("vllm:inter_token_latency_seconds_sum") / grown("vllm:inter_token_latency_seconds_count")
    assert window.steps == grown("vllm:iteration_tokens_total_count")
    assert window.decode_tokens == grown("vllm:generation_tokens_total") - window.first_tokens
    assert window.first_tokens == grown("vllm:time_to_first_token_seconds_count")
    assert window.time_ms == pytest.approx(gap_ms)
    assert (window.slots, window.adapters, window.cached_adapters) == (2, 2.0, 4.0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        ("vllm:", "vllm_"),
        ("vllm:generation_tokens_total", "vllm:generation_tokens"),
        ("vllm:prompt_tokens_total", "vllm_prompt_tokens"),
    ],
)
def test_names_of_other_versions_and_collectors_are_known(
    served: Served, pages: list[Page], old: str, new: str
) -> None:
    """A metric that was renamed, or written without colon or suffix, is the same metric."""
    rows = _rows(pages, served)
    renamed = [(time_s, (name.replace(old, new), labels, value)) for time_s, (name, labels, value) in rows]
    assert renamed != rows
    assert _reading(renamed).windows == _reading(rows).windows


def test_a_preferred_name_is_not_added_to_its_older_one(served: Served, pages: list[Page]) -> None:
    """Versions between had both names of a metric: its values count once."""
    rows = _rows(pages, served)
    older = [
        (time_s, (name.replace("inter_token_latency", "time_per_output_token"), labels, value))
        for time_s, (name, labels, value) in rows
        if "inter_token_latency" in name
    ]
    assert _reading(rows + older).windows == _reading(rows).windows


def test_engines_of_one_server_are_apart(served: Served, pages: list[Page]) -> None:
    """Two engines with the same counts give the windows of one, twice; adapters need settings, as they are shared."""
    rows = _rows(pages, served, has_lora=False)
    other = [(time_s, (name, labels | {"engine": "1"}, value)) for time_s, (name, labels, value) in rows]
    plain = parse_settings({"engine": {"enable_lora": False, "max_num_batched_tokens": 1024}}, file="s.yaml")
    alone, both = _reading(rows, plain), _reading(rows + other, plain)
    assert [replace(window, group="") for window in both.windows] == [
        replace(window, group="") for window in alone.windows * 2
    ]
    assert {window.group for window in both.windows} == {"server engine 0 0", "server engine 1 0"}
    shared = _rows(pages, served) + other
    with pytest.raises(InputError, match="several engines share"):
        _reading(shared, parse_settings({"engine": {"max_lora_rank": 16}}, file="s.yaml"))
    told = parse_settings({"engine": ENGINE, "adapters": 6}, file="s.yaml")
    assert {window.slots for window in _reading(shared, told).windows} == {4}


def _changed(rows: list[tuple[float, Sample]], name: str, change: Callable[[float, float], float]) -> Any:
    return [
        (time_s, (own, labels, change(time_s, value) if own == name else value))
        for time_s, (own, labels, value) in rows
    ]


@pytest.mark.parametrize(
    ("name", "change", "reason", "count"),
    [
        ("vllm:generation_tokens_total", lambda t, v: v if t < 30 else v - 1e9, RESTART, 1),
        ("process_start_time_seconds", lambda t, v: v if t < 30 else v + 1, RESTART, 1),
        ("vllm:generation_tokens_total", lambda t, v: v if t != 30 else float("nan"), NO_VALUE, 2),
        ("vllm:num_requests_running", lambda t, v: v if t not in {30, 35} else 0.0, IDLE, 1),
        ("vllm:num_preemptions_total", lambda t, v: v + (t >= 30), PREEMPTED, 1),
        ("vllm:iteration_tokens_total_count", lambda _, v: v * 20, TOO_BUSY, 12),
    ],
)
def test_windows_that_say_nothing_are_counted_by_reason(
    rows: list[tuple[float, Sample]], name: str, change: Callable[[float, float], float], reason: str, count: int
) -> None:
    """A restart, a missing value, an idle scrape, preemption: such a window is left out, the others are not."""
    before = _reading(rows)
    after = _reading(_changed(rows, name, change))
    assert after.dropped[reason] - before.dropped.get(reason, 0) == count
    assert len(after.windows) == len(before.windows) - count


def test_speculative_steps_and_short_windows_are_left_out(served: Served, pages: list[Page]) -> None:
    """Drafts make several tokens a step; few steps make no mean."""
    rows = _rows(pages, served)
    drafts: Any = [(time_s, ("vllm:spec_decode_num_drafts_total", {"engine": "0"}, time_s)) for time_s in TIMES_S]
    assert SPECULATIVE in _reading(rows + drafts).dropped
    quiet = scrapes(served, [20.0, 20.05, 20.1], names=NAMES)
    assert _reading(_rows(quiet, served)).dropped == {FEW_STEPS: 2}


def test_scrapes_that_repeat_are_one(served: Served, pages: list[Page]) -> None:
    """A range query asks more often than the collector scrapes, and gets the sample before."""
    rows = _rows(pages[1:], served)
    repeated = rows + [(time_s + 2.0, sample) for time_s, sample in rows]
    assert [window.steps for window in _reading(repeated).windows] == [w.steps for w in _reading(rows).windows]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("vllm:iteration_tokens_total", "vllm:iteration_tokens_total_count"),
        ("vllm:generation_tokens", "vllm:generation_tokens_total"),
        ("vllm:time_to_first", "vllm:time_to_first_token_seconds_count"),
        ("vllm:prompt_tokens", "vllm:prompt_tokens_total"),
        ("vllm:num_requests_running", "vllm:num_requests_running"),
    ],
)
def test_a_missing_metric_is_named(served: Served, pages: list[Page], name: str, missing: str) -> None:
    """Without one of these nothing can be said."""
    rows = [row for row in _rows(pages, served) if not row[1][0].startswith(name)]
    with pytest.raises(InputError, match="must have the metric") as caught:
        _reading(rows)
    assert caught.value.field == missing


def test_samples_of_something_else_are_no_metrics_of_vllm(tmp_path: Path) -> None:
    """Of an answer about another program, the first metric that is missing is named."""
    series = {"metric": {"__name__": "up", "job": "vllm"}, "values": [[1.0e9, "1"], [1.0e9 + 15, "1"]]}
    path = tmp_path / "answer.json"
    path.write_text(
        json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [series]}}), encoding="utf-8"
    )
    with pytest.raises(InputError, match="must have the metric vllm:iteration_tokens_total_count"):
        _read(path)


def test_without_latencies_steps_share_the_time(served: Served, pages: list[Page]) -> None:
    """The time between two scrapes is then that of the steps, which is said."""
    rows = [row for row in _rows(pages, served) if "inter_token" not in row[1][0]]
    reading = _reading(rows)
    assert {window.is_token_mean for window in reading.windows} == {False}
    assert all(window.time_ms == pytest.approx(5000.0 / window.steps) for window in reading.windows)
    assert any("never idle" in sentence for sentence in reading.assumed)


def test_without_the_cache_context_is_that_of_the_requests(served: Served, pages: list[Page]) -> None:
    """A running request then has its prompt and half of its answer; which is near what the blocks say."""
    rows = _rows(pages, served)
    guessed = _reading([row for row in rows if "kv_cache" not in row[1][0]])
    assert any("half of its answer" in sentence for sentence in guessed.assumed)
    counted = [window.context_per_request for window in _reading(rows).windows]
    means = np.mean([window.context_per_request for window in guessed.windows])
    assert means == pytest.approx(np.mean(counted), rel=0.25)


def test_settings_that_metrics_do_not_tell_are_asked_for(served: Served, pages: list[Page]) -> None:
    """The rank of the slots, and without vllm:lora_requests_info the adapters."""
    with pytest.raises(InputError, match="`max_lora_rank` of the server must be given") as caught:
        _reading(_rows(pages, served), ServingSettings())
    assert caught.value.field == "engine.max_lora_rank"
    with pytest.raises(InputError, match="adapters of a server with LoRA must be known"):
        _reading(_rows(pages, served, has_lora=False))
    told = parse_settings({"engine": ENGINE, "adapters": 6}, file="s.yaml")
    assert {window.slots for window in _reading(_rows(pages, served, has_lora=False), told).windows} == {4}


def test_two_models_are_refused(served: Served, pages: list[Page], tmp_path: Path) -> None:
    """A profile is of one model; both names are given."""
    path = write_pages(tmp_path / "pages.txt", pages, served)
    text = path.read_text(encoding="utf-8")
    (tmp_path / "other.txt").write_text(text.replace('model_name="llama"', 'model_name="qwen"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"one model\. .*'llama'.*'qwen'") as caught:
        _read(tmp_path)
    assert (caught.value.field, caught.value.value) == ("model_name", "qwen")


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda text: text[: len(text) // 2], None, "must be whole and valid"),
        (lambda text: text.replace('"success"', '"error"'), "status", "holds its error"),
        (lambda text: text.replace('"matrix"', '"scalar"'), "data.resultType", "Got 'scalar'"),
        (lambda text: text.replace('"__name__"', '"other"', 1), "data.result.0.metric", "must name its metric"),
        (lambda text: text.replace('"values": [[', '"values": [["x", '), "data.result.0.values.0", "must be"),
        (lambda text: text.replace('"values": [[1', '"values": [[1e999, "1"], [1'), "data.result.0.values.0", "finite"),
        (lambda text: re.sub(r'"values": \[.*?\]\]', '"values": 3', text, count=1), "data.result.0.values", "Got 3"),
    ],
)
def test_bad_answers_are_named(answer: Path, change: Callable[[str], str], field: str | None, message: str) -> None:
    """File, field and value of what cannot be used are in the message."""
    answer.write_text(change(answer.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        _read(answer)
    assert str(answer) in str(caught.value)
    assert (caught.value.file, caught.value.field) == (str(answer), field)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('engine="0"}', 'engine="0}', 1), r"must be a sample.*pages\.txt:17"),
        (lambda text: text.replace("# scraped_at 175", "# scraped_at now 175", 1), r"unix seconds.*pages\.txt:1"),
        (lambda text: re.sub(r"(_count.*) 0\n", r"\1 zero\n", text, count=1), "must be a sample"),
    ],
)
def test_bad_pages_are_named_with_their_line(
    served: Served, pages: list[Page], tmp_path: Path, change: Callable[[str], str], message: str
) -> None:  # fmt: skip
    """The line that is none of the format is in the message."""
    path = write_pages(tmp_path / "pages.txt", pages, served)
    text = path.read_text(encoding="utf-8")
    path.write_text(change(text), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    with pytest.raises(InputError, match=message):
        _read(path)


def test_nothing_recognised_and_nothing_usable_are_told_apart(
    served: Served, pages: list[Page], tmp_path: Path
) -> None:
    """A file that is none of the formats, and one whose windows are all left out, with the reasons."""
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(InputError, match="is none of them"):
        _read(tmp_path / "notes.txt")
    idle = [page | {"running": 0} for page in pages]
    with pytest.raises(InputError, match=f"12 {IDLE}"):
        _read(write_pages(tmp_path / "idle.txt", idle, served))
    with pytest.raises(InputError, match="each server was scraped once"):
        _read(write_pages(tmp_path / "once.txt", pages[:1], served))


@pytest.mark.parametrize(
    ("stem", "seconds"),
    [
        ("metrics-1750000000", 1.75e9),
        ("metrics-1750000000123", 1750000000.123),
        ("metrics_1750000000.25", 1750000000.25),
        ("scrape-20250615T150640", 1.75e9),
        ("scrape 2025-06-15_15-06-40", 1.75e9),
        ("metrics-17", None),
        ("metrics-99999999T999999", None),
    ],
)
def test_time_in_a_name(stem: str, seconds: float | None) -> None:
    """Unix seconds or milliseconds, or date and time; nothing else."""
    assert time_in_name(stem) == seconds


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "data", "result", "resultType", "metric", "values"]), inner)
    ),
    max_leaves=12,
)


@given(data=st.fixed_dictionaries({"resultType": st.sampled_from(["matrix", "vector"]), "result": _json}) | _json)
def test_any_answer_is_read_or_refused(data: Any) -> None:
    """Whatever JSON stands in an answer, its samples are taken or an InputError is raised."""
    content = {"status": "success", "data": data}
    assert is_prometheus_answer(content)
    collector = SampleCollector()
    with contextlib.suppress(InputError):
        read_prometheus(content, collector, file="answer.json")
        assert collector.num_samples == sum(
            len(entry["values"]) if data["resultType"] == "matrix" else 1 for entry in data["result"]
        )


@given(
    lines=st.lists(
        st.sampled_from(
            ["vllm:num_requests_running", 'vllm:prompt_tokens_total{a="b"}', "# scraped_at", "# HELP vllm:x"]
        )
        | st.text(max_size=10),
        min_size=1,
        max_size=6,
    ),
    values=st.lists(st.sampled_from(["1", "NaN", "+Inf", "x", "", "{", '"', "1 2 3"]), min_size=6, max_size=6),
)
def test_any_page_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], values: list[str]
) -> None:
    """Whatever text stands in a page, its samples are taken or an InputError names the file."""
    path = tmp_path_factory.mktemp("page") / "pages.txt"
    text = "\n".join(f"{line} {value}" for line, value in zip(lines, values, strict=False))
    path.write_text(text, encoding="utf-8")
    collector = SampleCollector()
    try:
        read_text_pages(path, collector)
        error = None
    except InputError as caught:
        error = caught
    assert (error is None and collector.num_samples <= len(lines)) or (error is not None and error.file == str(path))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_samples_does_not_matter(served: Served, pages: list[Page], seed: int) -> None:
    """Samples come in any order, by series or by time."""
    rows = _rows(pages, served)
    shuffled = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows)).tolist()]
    assert _reading(shuffled).windows == _reading(rows).windows


def test_alike_windows_are_one_with_their_totals(served: Served, pages: list[Page]) -> None:
    """Counts add up, and the mean time is that of all tokens: nothing is lost."""
    windows = tuple(_reading(_rows(pages, served)).windows)
    merged = merge_alike(windows)
    assert len(merged) < len(windows)

    def tokens_ms(some: tuple[ServingWindow, ...]) -> float:
        return sum(window.decode_tokens * window.time_ms for window in some)

    assert tokens_ms(merged) == pytest.approx(tokens_ms(windows))
    for name in ("steps", "decode_tokens", "first_tokens", "prompt_tokens", "finished"):
        assert sum(getattr(one, name) for one in merged) == sum(getattr(one, name) for one in windows)


def test_cut_json_in_a_folder_is_not_passed_over(served: Served, pages: list[Page], tmp_path: Path) -> None:
    """A file that was cut off while it was written is an error, not one that is left unread."""
    write_pages(tmp_path / "pages.txt", pages, served)
    (tmp_path / "cut.json").write_text(json.dumps({"status": "success"})[:-3], encoding="utf-8")
    with pytest.raises(InputError, match=r"cut\.json, after 0 values"):
        _read(tmp_path)
