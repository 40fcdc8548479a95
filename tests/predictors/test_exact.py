"""The exact surrogate: it says what the twin says, once per question."""

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.catalog import load_surrogate
from predictors.contract import check_surrogate
from predictors.exact import ExactSurrogate
from predictors.features import FEATURE_SCHEMA, adapter_aggregates, build_features, engine_row, inflate
from predictors.surrogate import InflatedSurrogate, ThresholdSurrogate
from tests.predictors.populations import CHAT_OUTPUT, CHAT_PROMPT, chat_adapters
from twin.engine import EngineConfig
from twin.hardware import GpuType, ModelArchitecture
from twin.memory import check_memory
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import simulate
from twin.workload import Adapter, Workload

HORIZON_S, WARMUP_S = 60.0, 10.0
WORKLOAD = Workload(
    adapters=(
        *chat_adapters(6, rate_rps=0.8),
        Adapter(name="hot", rank=16, rate_rps=20.0, prompt_tokens=CHAT_PROMPT, output_tokens=CHAT_OUTPUT),
        Adapter(name="idle", rank=8, rate_rps=0.0, prompt_tokens=CHAT_PROMPT, output_tokens=CHAT_OUTPUT),
    )
)


@pytest.fixture
def exact(model: ModelArchitecture, gpu: GpuType, engine: EngineConfig, profile: PerformanceProfile) -> ExactSurrogate:
    """Return a surrogate of short simulations."""
    return ExactSurrogate(WORKLOAD, model, gpu, engine, profile, horizon_s=HORIZON_S, warmup_s=WARMUP_S, cache_size=8)


def features_of(
    exact: ExactSurrogate, members: tuple[int, ...], *, slots: int = 8, rank: int = 8
) -> NDArray[np.float32]:
    """Return the features of a set on the surrogate's replica with these slots, float32 [1, F]."""
    engine = exact.engine_template.model_copy(update={"max_loras": slots, "max_lora_rank": rank})
    memory = check_memory(exact.model, exact.gpu, engine, exact.profile)
    aggregate = adapter_aggregates([WORKLOAD.adapters[index] for index in members]).sum(axis=0)
    return build_features(aggregate, engine_row(engine, kv_tokens=memory.kv_tokens))


def report_of(exact: ExactSurrogate, workload: Workload, *, slots: int = 8, rank: int = 8) -> SimulationReport:
    """Return what the twin says about a workload on the same replica."""
    count = len(workload.adapters)
    engine = exact.engine_template.model_copy(
        update={"max_loras": slots, "max_lora_rank": rank, "max_cpu_loras": max(count, slots)}
    )
    replica = Replica(model=exact.model, gpu=exact.gpu, engine=engine, profile=exact.profile)
    return simulate(workload, replica, horizon_s=HORIZON_S, warmup_s=WARMUP_S)


@pytest.mark.parametrize("members", [(0,), (0, 1, 2, 3, 4, 5), (2, 6)])
def test_it_says_what_the_twin_says(exact: ExactSurrogate, members: tuple[int, ...]) -> None:
    """Light, loaded and overloaded: every output is the report's."""
    output = exact.predict_members([members], features_of(exact, members, rank=16))
    report = report_of(exact, WORKLOAD.subset(list(members)), rank=16)
    assert output.throughput_ratio[0] == np.float32(report.served_ratio)
    assert output.starvation_probability[0] == float(report.has_starvation)
    assert output.itl_s[0] == np.float32(report.itl.p95_s)
    assert output.ttft_s[0] == np.float32(report.ttft.p95_s)


def test_a_hot_adapter_starves_and_a_cold_set_does_not(exact: ExactSurrogate) -> None:
    """Both verdicts occur, so the comparison above is not between constants."""
    rows = np.concatenate([features_of(exact, (0,), rank=16), features_of(exact, (6,), rank=16)])
    output = exact.predict_members([(0,), (6,)], rows)
    assert output.starvation_probability.tolist() == [0.0, 1.0]


def test_a_question_is_simulated_once(exact: ExactSurrogate) -> None:
    """Local search asks the same sets again and again, and in any order of their members."""
    row = features_of(exact, (0, 1))
    first = exact.predict_members([(0, 1), (1, 0)], np.concatenate([row, row]))
    second = exact.predict_members([(0, 1)], row)
    assert (exact.num_lookups, exact.num_simulations) == (3, 1)
    assert first.itl_s.tolist() == [second.itl_s[0], second.itl_s[0]]


def test_other_slots_are_another_question(exact: ExactSurrogate) -> None:
    """The engine columns of the row decide, not the template."""
    exact.predict_members([(0, 1), (0, 1)], np.concatenate([features_of(exact, (0, 1), slots=s) for s in (2, 1)]))
    assert exact.num_simulations == 2


def test_the_memory_is_bounded(exact: ExactSurrogate) -> None:
    """The least recently used answer is dropped, the others stay."""
    exact.cache_size = 2
    for members in ((0,), (1,), (0,), (2,)):
        exact.predict_members([members], features_of(exact, members))
    assert exact.num_simulations == 3
    exact.predict_members([(0,)], features_of(exact, (0,)))
    assert exact.num_simulations == 3
    exact.predict_members([(1,)], features_of(exact, (1,)))
    assert exact.num_simulations == 4


def test_a_margin_scales_the_rates_of_the_set(exact: ExactSurrogate) -> None:
    """Behind a margin, the very set is simulated with larger rates."""
    members = (0, 1, 2)
    output = InflatedSurrogate(exact, 1.5).predict_members([members], features_of(exact, members))
    report = report_of(exact, WORKLOAD.subset(list(members)).scaled(1.5))
    assert output.throughput_ratio[0] == np.float32(report.served_ratio)
    assert output.itl_s[0] == np.float32(report.itl.p95_s)


def test_a_threshold_changes_nothing_that_the_twin_says(exact: ExactSurrogate) -> None:
    """The very set is simulated, and what it says is certain; that of a hopeless set, too."""
    sets = [(0, 1, 2), (0, 1, 2, 3, 4, 5, 6)]
    rows = np.concatenate([features_of(exact, sets[0]), inflate(features_of(exact, sets[1]), 50.0)])
    expected = exact.predict_members(sets, rows)
    actual = ThresholdSurrogate(exact, 0.001).predict_members(sets, rows)
    assert expected.starvation_probability.tolist() == actual.starvation_probability.tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(actual.throughput_ratio, expected.throughput_ratio)
    assert exact.num_simulations == 2


def test_a_trace_is_replayed_faster() -> None:
    """A trace has no rates to scale: its clock runs faster."""
    trace = WORKLOAD.requests(horizon_s=HORIZON_S)
    faster = Workload(adapters=WORKLOAD.adapters, trace=trace).scaled(2.0)
    assert faster.trace is not None
    np.testing.assert_array_equal(faster.trace.arrival_ns, np.round(trace.arrival_ns / 2.0))
    assert faster.adapters[0].rate_rps == 2.0 * WORKLOAD.adapters[0].rate_rps


def test_a_faster_trace_does_not_end_before_the_simulation(exact: ExactSurrogate) -> None:
    """Three times the load of a trace as long as the horizon: the time left over must not drain the queue."""
    trace = WORKLOAD.requests(horizon_s=HORIZON_S)
    exact.workload = Workload(adapters=WORKLOAD.adapters, trace=trace)
    rows = features_of(exact, (0, 1, 2, 3, 4, 5, 6), rank=16)
    members = [(0, 1, 2, 3, 4, 5, 6)]
    lighter, heavier = (exact.predict_members(members, inflate(rows, factor)) for factor in (1.0, 3.0))
    assert heavier.throughput_ratio[0] < 0.6 * lighter.throughput_ratio[0]
    assert heavier.starvation_probability[0] == 1.0


def test_slots_below_a_rank_are_refused(exact: ExactSurrogate) -> None:
    """VLLM would not load the adapter: no simulation is needed to know."""
    output = exact.predict_members([(6,)], features_of(exact, (6,), rank=8))
    assert output.starvation_probability.tolist() == [1.0]
    assert output.throughput_ratio.tolist() == [0.0]


def test_a_replica_that_does_not_start_is_refused(exact: ExactSurrogate) -> None:
    """Memory is arithmetic; the twin is not asked about a server that would not run."""
    output = exact.predict_members([(0,)], features_of(exact, (0,), slots=576, rank=64))
    assert output.starvation_probability.tolist() == [1.0]


def test_an_empty_set_is_served(exact: ExactSurrogate) -> None:
    """A GPU without adapters does all that is asked of it."""
    row = features_of(exact, (0,))
    row[:, : FEATURE_SCHEMA.index("max_loras")] = 0.0
    assert exact.predict(row).throughput_ratio.tolist() == [1.0]
    assert exact.predict_members([()], row).starvation_probability.tolist() == [0.0]


def test_idle_adapters_are_served(exact: ExactSurrogate) -> None:
    """Nothing offered, nothing starved, and no latency to report."""
    output = exact.predict_members([(7,)], features_of(exact, (7,)))
    assert (output.throughput_ratio[0], output.starvation_probability[0], output.itl_s[0]) == (1.0, 0.0, 0.0)


def test_features_alone_give_a_like_population(exact: ExactSurrogate) -> None:
    """Without members, a canonical population stands in: close to the real one where that is like it."""
    members = (0, 1, 2, 3, 4, 5)
    row = features_of(exact, members)
    alike = exact.predict(row)
    real = exact.predict_members([members], row)
    assert alike.starvation_probability.tolist() == real.starvation_probability.tolist()
    assert alike.itl_s[0] == pytest.approx(real.itl_s[0], rel=0.3)
    assert alike.throughput_ratio[0] == pytest.approx(real.throughput_ratio[0], abs=0.1)


def test_it_keeps_the_contract(exact: ExactSurrogate) -> None:
    """The twin behind the interface is a surrogate like any other."""
    rows = np.concatenate([features_of(exact, members, rank=16) for members in ((0,), (0, 1, 2), (6,), (7,))])
    check_surrogate(exact, features=rows)


def test_threads_give_the_same_answers(
    model: ModelArchitecture, gpu: GpuType, engine: EngineConfig, profile: PerformanceProfile
) -> None:
    """The number of workers is a matter of speed."""
    sets = [(0,), (1, 2), (3, 4, 5)]

    def answers(workers: int) -> list[float]:
        surrogate = load_surrogate(
            "exact",
            workload=WORKLOAD,
            model=model,
            gpu=gpu,
            engine=engine,
            profile=profile,
            horizon_s=HORIZON_S,
            warmup_s=WARMUP_S,
            workers=workers,
        )
        assert isinstance(surrogate, ExactSurrogate)
        rows = np.concatenate([features_of(surrogate, members) for members in sets])
        return [float(value) for value in surrogate.predict_members(sets, rows).ttft_s]

    assert answers(1) == answers(2)
