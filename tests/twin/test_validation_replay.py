"""Replays of measured runs: what is simulated, what is taken from it, and in which processes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.twin.run_tables import RUN, measured_run, out_of_memory_row, write_runs
from twin.errors import InputError, ProfileError
from twin.profile import load_profile
from twin.replica import build_inputs
from twin.simulate import load_engine
from twin.validation.quantities import Quantities
from twin.validation.regenerate import regenerate_traffic
from twin.validation.replay import (
    DEFAULT_FRONT_END,
    ReplaySettings,
    choose_profiles,
    replay_run,
    replay_runs,
    replica_of,
)
from twin.validation.runs import MeasuredRun, read_runs

PROFILE = load_profile("llama-3.1-8b-h100-64gb")


def _quantities(run: MeasuredRun, seed: int) -> Quantities:
    return replay_run(run, PROFILE, seed=seed, horizon_s=None).quantities


def test_both_engines_say_the_same(tmp_path: Path) -> None:
    """The readable engine is the oracle of the compiled one, also through a replay."""
    run = measured_run(tmp_path)
    readable = replay_run(run, PROFILE, seed=1, horizon_s=None, engine="simpy")
    assert _quantities(run, 1) == readable.quantities
    assert readable.does_start


def test_quantities_are_those_of_completed_requests_from_the_start(tmp_path: Path) -> None:
    """Recomputed from the raw record of every request of an overloaded run, in which many only begin."""
    run = measured_run(tmp_path, rates_counts="4:1;8:3", slots=1, total_time=40)
    assert run.traffic is not None
    workload, requests = regenerate_traffic(run.traffic, run_id="R1", seed=0, horizon_s=40.0)
    inputs = build_inputs(workload, requests, replica_of(run, PROFILE), horizon_s=40.0, hash_seed=0)
    trace = load_engine("simpy")(inputs)
    tokens = requests.prompt_tokens + requests.output_tokens
    done = [index for index in range(len(requests)) if trace.finish_ns[index] >= 0]
    assert len(done) < np.count_nonzero(trace.first_token_ns >= 0) < len(requests)
    first_token_ms = [(trace.first_token_ns[index] - requests.arrival_ns[index]) / 1e6 for index in done]
    per_token_ms = [
        (trace.finish_ns[index] - trace.first_token_ns[index]) / 1e6 / (requests.output_tokens[index] - 1)
        for index in done
        if requests.output_tokens[index] > 1
    ]
    said = _quantities(run, 0)
    assert said.tok_per_s == pytest.approx(sum(int(tokens[index]) for index in done) / 40.0)
    assert said.goodput_ratio == pytest.approx(sum(int(tokens[index]) for index in done) / int(tokens.sum()))
    assert said.ttft_p50_ms == pytest.approx(float(np.median(first_token_ms)))
    assert said.tpot_mean_ms == pytest.approx(float(np.mean(per_token_ms)))
    assert said.itl_mean_ms == pytest.approx(
        int(trace.adapter_gap_sum_ns.sum()) / int(trace.adapter_gap_count.sum()) / 1e6
    )


def test_nothing_completed_has_no_latency(tmp_path: Path) -> None:
    """A run without a request has a throughput of 0 and no times."""
    said = _quantities(measured_run(tmp_path, rates_counts="0:4"), 0)
    assert (said.tok_per_s, said.ttft_p50_ms, said.tpot_mean_ms, said.itl_p50_ms) == (0.0, None, None, None)


def test_the_horizon_may_replace_the_length_of_the_run(tmp_path: Path) -> None:
    """A run of one length simulated for another equals a run of that length."""
    run = measured_run(tmp_path)
    shorter = replay_run(run, PROFILE, seed=0, horizon_s=20.0).quantities
    assert shorter == _quantities(replace(run, total_time_s=20.0), 0)
    assert shorter != _quantities(run, 0)


def test_a_run_of_too_many_requests_is_refused(tmp_path: Path) -> None:
    """Before memory is exhausted; the run is named."""
    with pytest.raises(InputError, match=r"20,000,000 requests at most\. About 3\.5e\+08 .* of run R1"):
        replay_run(measured_run(tmp_path), PROFILE, seed=0, horizon_s=1e8)


def test_a_replica_that_does_not_start_is_a_verdict(tmp_path: Path) -> None:
    """The slots of the row leave too little KV cache; nothing is simulated, with or without traffic."""
    (run,) = read_runs(write_runs(tmp_path / "runs.csv", [out_of_memory_row()])).runs
    for candidate in (run, replace(run, traffic=measured_run(tmp_path).traffic)):
        replay = replay_run(candidate, PROFILE, seed=0, horizon_s=None)
        assert (replay.does_start, replay.quantities) == (False, Quantities())


def test_every_memory_verdict_agrees_with_the_measured_one(data_dir: Path) -> None:
    """36 servers did not start, 258 did."""
    table = read_runs(data_dir / "runs" / "real_runs.csv")
    verdicts = [("ok" if replica_of(run, PROFILE).memory().starts else "oom") for run in table.runs]
    assert verdicts == [run.status for run in table.runs]


def test_the_number_of_processes_does_not_change_the_answers(tmp_path: Path) -> None:
    """Replays come back by run and seed, however they were spread; every one is announced."""
    rows = [RUN, RUN | {"run_id": "R2", "rates_counts": "2:4"}, out_of_memory_row()]
    runs = read_runs(write_runs(tmp_path / "runs.csv", rows)).runs
    profiles = choose_profiles(runs, None)
    announced: list[tuple[int, int]] = []
    answers = [
        [
            [replay.quantities for replay in replays]
            for replays in replay_runs(
                runs,
                profiles,
                ReplaySettings(seeds=(5, 6), workers=workers),
                on_replay=lambda done, total: announced.append((done, total)),
            )
        ]
        for workers in (1, 2)
    ]
    assert answers[0] == answers[1]
    alone = [
        [replay_run(run, PROFILE, seed=seed, horizon_s=None, front_end=DEFAULT_FRONT_END) for seed in (5, 6)]
        for run in runs
    ]
    assert answers[0] == [[replay.quantities for replay in replays] for replays in alone]
    assert announced == [(done, 6) for done in range(1, 7)] * 2


def test_the_shipped_profile_of_each_model_is_the_default(tmp_path: Path) -> None:
    """Rows of two models need two profiles."""
    rows = [RUN, RUN | {"run_id": "R2", "model": "qwen-2.5-7b-instruct"}]
    runs = read_runs(write_runs(tmp_path / "runs.csv", rows)).runs
    names = {model: profile.name for model, profile in choose_profiles(runs, None).items()}
    assert names == {"llama-3.1-8b": "llama-3.1-8b-h100-64gb", "qwen2.5-7b": "qwen2.5-7b-h100-64gb"}


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    """The message names both models."""
    with pytest.raises(ProfileError, match=r"\(llama-3\.1-8b\)\. .* measured with 'qwen2\.5-7b'"):
        choose_profiles([measured_run(tmp_path)], "qwen2.5-7b-h100-64gb")


def test_the_front_end_shows_in_latencies_only(tmp_path: Path) -> None:
    """It delays arrivals by milliseconds here: throughput stays, the first token comes later."""
    run = measured_run(tmp_path)
    direct = replay_run(run, PROFILE, seed=1, horizon_s=None).quantities
    seen = replay_run(run, PROFILE, seed=1, horizon_s=None, front_end=DEFAULT_FRONT_END).quantities
    assert seen.tok_per_s == pytest.approx(direct.tok_per_s, rel=0.05)
    assert seen.ttft_p50_ms is not None
    assert direct.ttft_p50_ms is not None
    assert seen.ttft_p50_ms > direct.ttft_p50_ms + 1000.0 * DEFAULT_FRONT_END.overhead_s * 0.5
