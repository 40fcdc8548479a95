"""Results of `vllm bench serve`: what each kind of run gives, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.twin.simulated_serving import Served, adapters_of, bench_result, closed_loop_requests, serve
from twin.calibration.bench_files import BenchResult, parse_results, read_json_values
from twin.calibration.bench_runs import serving_run
from twin.calibration.bench_windows import closed_loop_windows, detailed_windows
from twin.calibration.evidence import Evidence, read_evidence
from twin.calibration.serving_settings import ServingSettings, parse_settings
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.profile import load_profile
from twin.validation.regenerate import regenerate_traffic
from twin.workload import Workload

REAL = Path(__file__).parents[1] / "data" / "vllm_0_32_cpu"
ENGINE = {"max_loras": 8, "max_lora_rank": 16, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
SETTINGS = parse_settings({"engine": ENGINE, "adapters": 6}, file="settings.yaml")
PROFILE = load_profile("llama-3.1-8b-h100-64gb")
ADAPTERS = adapters_of(
    6, 4.0, prompt=LengthDistribution(mean=200, std=100, min=10), output=LengthDistribution(mean=100, std=50, min=5)
)
Content = dict[str, Any]


@pytest.fixture(scope="module")
def served() -> Served:
    """Return a run whose requests arrive for 40 s and all end."""
    requests = Workload(ADAPTERS).requests(horizon_s=40, seed=0)
    return serve(PROFILE, EngineConfig.model_validate(ENGINE), ADAPTERS, horizon_s=200, requests=requests)


@pytest.fixture(scope="module")
def detailed(served: Served) -> Content:
    """Return its result with --save-detailed."""
    return bench_result(served, rate=4.0, concurrency=None, has_details=True)


@pytest.fixture(scope="module")
def looped() -> Served:
    """Return a closed loop of eight places."""
    engine = EngineConfig.model_validate(ENGINE)
    requests = closed_loop_requests(PROFILE, engine, ADAPTERS, places=8, number=120)
    return serve(PROFILE, engine, ADAPTERS, horizon_s=1000, requests=requests)


def _read(path: Path, contents: list[Any], known: ServingSettings = SETTINGS) -> Evidence:
    path.write_text("\n".join(json.dumps(content) for content in contents), encoding="utf-8")
    return read_evidence(path, model="llama-3.1-8b", settings_of=lambda _: known)


def test_real_results_are_read() -> None:
    """Results of vLLM 0.32 give a run, a closed loop and windows; their fields are those that vLLM writes."""
    contents = {name: read_json_values(REAL / f"{name}.json")[0] for name in ("rate3", "closed4", "detailed")}
    results = {name: BenchResult.model_validate(content) for name, content in contents.items()}
    optional = {"ramp_up_strategy"}
    for name, details in (("rate3", set()), ("closed4", set()), ("detailed", {"input_lens", "output_lens", "ttfts"})):
        known = set(BenchResult.model_fields) - {"input_lens", "output_lens", "ttfts", "itls", "start_times"}
        assert (known - optional) | details <= set(contents[name])
    assert [result.has_details for result in results.values()] == [False, False, True]
    assert results["rate3"].request_rate == 3.0
    assert (results["closed4"].request_rate, results["closed4"].max_concurrency) == (float("inf"), 4)
    evidence = read_evidence(REAL, model="tiny", settings_of=lambda _: _real_settings())
    assert [(summary.kind, summary.num_used) for summary in evidence.summaries] == [
        ("server metrics", 5),
        ("bench serve", 3),
    ]
    assert len(evidence.runs) == 1
    assert evidence.unread == ()


def _real_settings() -> ServingSettings:
    engine = {"max_loras": 2, "max_cpu_loras": 4, "max_lora_rank": 16, "max_num_seqs": 16}
    return parse_settings({"engine": engine | {"max_num_batched_tokens": 512}, "adapters": 4}, file="settings.yaml")


def test_details_give_what_ran_together(served: Served, detailed: Content) -> None:
    """Tokens are all counted, and the requests that decode in a step are those of the simulation."""
    windows = detailed_windows(BenchResult.model_validate(detailed), SETTINGS, "run")
    assert not isinstance(windows, str)
    assert len(windows) >= 8
    decoded = sum(window.decode_tokens for window in windows)
    assert decoded == pytest.approx(sum(length - 1 for length in detailed["output_lens"]), rel=0.02)
    is_gap = served.emitted & ~served.is_first
    ends_s = served.end_ns[served.step] / 1e9 - served.requests.arrival_ns.min() / 1e9
    inside = is_gap & (ends_s > 5.0) & (ends_s <= 10.0)
    per_step = inside.sum() / len(np.unique(served.step[inside]))
    assert windows[1].decodes_per_step == pytest.approx(per_step, rel=0.05)
    assert windows[1].time_ms == pytest.approx(float(served.gap_ns[inside].mean()) / 1e6, rel=0.05)


def test_a_closed_loop_gives_its_mean(looped: Served) -> None:
    """The mean number of decodes per step is that of the simulation, but for the loop's end."""
    result = BenchResult.model_validate(bench_result(looped, rate="inf", concurrency=8, has_details=False))
    windows = closed_loop_windows(result, SETTINGS, "run")
    assert not isinstance(windows, str)
    assert len(windows) == 1
    is_gap = looped.emitted & ~looped.is_first
    per_step = is_gap.sum() / len(np.unique(looped.step[is_gap]))
    assert windows[0].decodes_per_step == pytest.approx(per_step, rel=0.05)
    assert windows[0].decode_tokens == is_gap.sum()
    assert windows[0].time_ms == pytest.approx(float(looped.gap_ns[is_gap].mean()) / 1e6)


def test_an_open_loop_is_a_run_to_replay(served: Served) -> None:
    """Rates, lengths and time per token are the result's; the traffic drawn from it has its mean lengths."""
    content = bench_result(served, rate=4.0, concurrency=None, has_details=False)
    outcome = serving_run(BenchResult.model_validate(content), SETTINGS, run_id="r", model="llama-3.1-8b")
    assert not isinstance(outcome, str)
    run, assumed = outcome
    assert run.traffic is not None
    assert run.traffic.offered_rps == pytest.approx(4.0)
    assert (len(run.traffic.rates_rps), run.traffic.ranks, run.is_polled) == (6, (16,), False)
    assert run.measured.tpot_mean_ms == content["mean_tpot_ms"]
    assert any("as long as their mean" in sentence for sentence in assumed)
    workload, requests = regenerate_traffic(run.traffic, run_id="r", seed=0, horizon_s=500.0)
    assert len(workload.adapters) == 6
    assert len(requests) == pytest.approx(2000, rel=0.1)
    mean = content["total_input_tokens"] / content["completed"]
    assert np.abs(requests.prompt_tokens - mean).max() < 1
    assert requests.prompt_tokens.mean() == pytest.approx(mean, abs=0.1)
    assert np.bincount(requests.adapter) / len(requests) == pytest.approx(np.full(6, 1 / 6), rel=0.25)


def test_given_lengths_are_drawn(served: Served, detailed: Content) -> None:
    """Where a result has each length, but not the times, the run's lengths are distributed as they are."""
    content = detailed | {"start_times": []}
    outcome = serving_run(BenchResult.model_validate(content), SETTINGS, run_id="r", model="llama-3.1-8b")
    assert not isinstance(outcome, str)
    assert outcome[0].traffic is not None
    _, requests = regenerate_traffic(outcome[0].traffic, run_id="r", seed=0, horizon_s=500.0)
    assert requests.prompt_tokens.std() == pytest.approx(served.requests.prompt_tokens.std(), rel=0.1)
    assert requests.output_tokens.mean() == pytest.approx(np.mean(detailed["output_lens"]), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"completed": 0}, "no request that completed"),
        ({"spec_decode_num_drafts": 3}, "speculative decoding"),
        ({"request_rate": "inf"}, "all requests sent at once"),
        ({"ramp_up_strategy": "linear"}, "a rate that changes"),
        ({"mean_tpot_ms": 0.0}, "no time per output token"),
        ({"duration": 400.0}, "times as long as requests arrived"),
        ({"max_concurrency": 10}, "which of them held is not known"),
        ({"request_rate": "inf", "max_concurrency": 100}, "fewer than 3 requests per place"),
        ({"request_rate": "inf", "max_concurrency": 1, "mean_tpot_ms": 0, "mean_itl_ms": 0}, "no time per output"),
    ],
)
def test_results_that_say_nothing_are_refused_with_the_reason(
    served: Served, tmp_path: Path, changes: Content, reason: str
) -> None:
    """A single result that gives no step time is an error; beside others, it is counted with its reason."""
    content = bench_result(served, rate=4.0, concurrency=None, has_details=False)
    with pytest.raises(InputError, match=reason):
        _read(tmp_path / "alone.json", [content | changes])
    evidence = _read(tmp_path / "both.json", [content, content | changes])
    assert evidence.summaries[0].num_read == 2
    assert evidence.summaries[0].num_used == 1
    assert reason in next(iter(evidence.summaries[0].dropped))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"duration": float("nan")}, "duration", "nan"),
        ({"duration": 0}, "duration", "0"),
        ({"completed": -1}, "completed", "-1"),
        ({"total_input_tokens": "many"}, "total_input_tokens", "'many'"),
        ({"mean_tpot_ms": float("inf")}, "mean_tpot_ms", "inf"),
        ({"total_output_tokens": 10**400}, "total_output_tokens", "1000"),
        ({"itls": [[0.1, "x"]]}, "itls.0.1", "'x'"),
        ({"itls": [[0.1, float("nan")]]}, "itls.0.1", "nan"),
        ({"itls": [[-0.1]]}, "itls.0.0", "-0.1"),
        ({"ttfts": [float("inf")]}, "ttfts.0", "inf"),
        ({"start_times": [float("nan")]}, "start_times.0", "nan"),
        ({"ttfts": [0.1]}, "input_lens", None),
        ({"max_num_seqs": 0}, "engine.max_num_seqs", "0"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, detailed: Content, changes: Content, field: str, value: Any) -> None:
    """File, field and value of what vLLM would not have written are in the message."""
    path = tmp_path / "result.json"
    with pytest.raises(InputError) as caught:
        _read(path, [detailed | changes])
    assert caught.value.field == field
    assert str(path) in str(caught.value)
    assert value is None or value in str(caught.value)


_value = st.none() | st.floats() | st.integers(-3, 10) | st.text(max_size=3) | st.lists(st.floats(), max_size=3)


@given(
    changes=st.dictionaries(
        st.sampled_from([*BenchResult.model_fields, "max_loras", "spec_decode_num_drafts"]), _value, max_size=3
    )
)
def test_any_result_is_used_or_refused(detailed: Content, changes: Content) -> None:
    """Whatever a field holds, the result parses into what it says, or an InputError names the file."""
    try:
        (result,) = parse_results([detailed | changes], file="result.json")
    except InputError as error:
        assert (error.file, error.field is None) == ("result.json", False)  # noqa: PT017 - either outcome is right
    else:
        assert result.duration > 0
        assert math.isfinite(result.duration)
        assert len(result.itls) in {0, len(result.ttfts)} or not result.ttfts


def test_a_file_of_results_holds_nothing_else(tmp_path: Path, detailed: Content) -> None:
    """Of appended results, the one that is none is named by its number."""
    with pytest.raises(InputError, match="result 2 is none"):
        _read(tmp_path / "results.json", [detailed, {"duration": 3}])
    (tmp_path / "cut.json").write_text(json.dumps(detailed) + json.dumps(detailed)[:100], encoding="utf-8")
    with pytest.raises(InputError, match="after 1 values"):
        read_evidence(tmp_path / "cut.json", model="m")


def test_models_of_results_must_agree(tmp_path: Path, detailed: Content) -> None:
    """Two results of different models are not one calibration."""
    with pytest.raises(InputError, match=r"'llama'.*'qwen'"):
        _read(tmp_path / "results.json", [detailed, detailed | {"model_id": "qwen"}])


@pytest.mark.parametrize(
    ("known", "field"),
    [
        ({"engine": {"max_loras": 8}}, "engine.max_lora_rank"),
        ({"engine": {"max_loras": 8, "max_lora_rank": 16}}, "adapters"),
        ({"adapters": 6}, "engine.max_loras"),
    ],
)
def test_settings_that_results_do_not_tell_are_asked_for(
    tmp_path: Path, detailed: Content, known: Content, field: str
) -> None:
    """Slots, their rank, and the adapters; without LoRA none of them."""
    with pytest.raises(InputError) as caught:
        _read(tmp_path / "result.json", [detailed], parse_settings(known, file="settings.yaml"))
    assert caught.value.field == field
    plain = parse_settings({"engine": {"enable_lora": False}}, file="settings.yaml")
    assert {window.slots for window in _read(tmp_path / "result.json", [detailed], plain).windows} == {0}


def test_settings_in_a_result_hold_for_it(tmp_path: Path, detailed: Content) -> None:
    """`--metadata max_loras=4` stands in the result, as text, and beats the file of settings."""
    windows = _read(tmp_path / "result.json", [detailed | {"max_loras": "4"}]).windows
    assert {window.slots for window in windows} == {4}
    assert {window.max_num_batched_tokens for window in windows} == {2048}


_BAD_SETTINGS: list[tuple[object, str, str]] = [
    ({}, "engine", "neither"),
    ({"engine": [1]}, "engine", r"Got \[1\]"),
    ({"engine": {"max_lora_rank": 7}}, "engine.max_lora_rank", "Got 7"),
    ({"engine": {"max_seqs": 7}}, "engine.max_seqs", "Got 7"),
    ({"adapters": 0}, "adapters", "Got 0"),
    ({"adapters": True}, "adapters", "Got True"),
    ({"adapters": [{"rank": 8}]}, "adapters.0.rate_rps", "Got None"),
    ({"adapters": [{"rank": 7, "rate_rps": 1}]}, "adapters.0.rank", "Got 7"),
    ({"adapters": [{"rank": 8, "rate_rps": 0}]}, "adapters.0.rate_rps", "greater than 0"),
]


@pytest.mark.parametrize(("content", "field", "message"), _BAD_SETTINGS)
def test_bad_settings_are_named(content: object, field: str, message: str) -> None:
    """Every setting that vLLM would not take is named with its value and file."""
    with pytest.raises(InputError, match=message) as caught:
        parse_settings(content, file="settings.yaml")
    assert (caught.value.file, caught.value.field) == ("settings.yaml", field)
