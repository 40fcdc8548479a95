"""The twin's entry point and its report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twin.engine import EngineConfig
from twin.errors import InputError, TwinError
from twin.hardware import GpuType, load_model
from twin.kernel import run_kernel
from twin.lengths import LengthDistribution
from twin.profile import load_profile
from twin.replica import NUM_GAP_BINS, Replica, build_inputs
from twin.report import SimulationReport, build_report
from twin.simulate import EngineName, simulate
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

PROMPT = LengthDistribution(mean=200, std=200, max=1024)
OUTPUT = LengthDistribution(mean=100, std=100, max=1024)


def make_adapters(rates_rps: list[float]) -> tuple[Adapter, ...]:
    """Return rank-16 adapters with these rates."""
    return tuple(
        Adapter(name=f"a{index}", rank=16, rate_rps=rate, prompt_tokens=PROMPT, output_tokens=OUTPUT)
        for index, rate in enumerate(rates_rps)
    )


def make_replica(**engine: object) -> Replica:
    """Return a Llama replica on the 64 GB H100 with the 0.8.5 rules."""
    settings = {"vllm_version": "0.8.5", "max_loras": 4, "max_cpu_loras": 64, **engine}
    return Replica(
        model=load_model("llama-3.1-8b"),
        gpu=GpuType(name="h100-64gb", memory_gib=63.43),
        engine=EngineConfig.model_validate(settings),
        profile=load_profile("llama-3.1-8b-h100-64gb"),
    )


def test_engines_give_the_same_report() -> None:
    """The readable and the compiled engine are interchangeable, time series included."""
    workload = Workload(make_adapters([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]))
    engines: tuple[EngineName, ...] = ("fast", "simpy")
    reports = [
        simulate(workload, make_replica(), engine=engine, horizon_s=60, warmup_s=10, sample_interval_s=5)
        for engine in engines
    ]
    assert reports[0].model_dump(exclude={"engine"}) == reports[1].model_dump(exclude={"engine"})
    assert len(reports[0].time_series.time_s) > 5


def test_an_unsaturated_replica_serves_what_is_offered() -> None:
    """Throughput equals the offered load but for what is in flight at the window's ends."""
    report = simulate(Workload(make_adapters([0.5] * 8)), make_replica(max_loras=8), horizon_s=900, warmup_s=100)
    assert report.throughput_ratio == pytest.approx(1.0, abs=0.03)
    assert not report.has_starvation
    assert report.offered_tps == pytest.approx(8 * 0.5 * 300, rel=0.1)


def test_an_overloaded_replica_starves() -> None:
    """Far more than a GPU serves: the replica and its adapters starve, and the backlog grows."""
    report = simulate(Workload(make_adapters([5.0] * 16)), make_replica(max_loras=16), horizon_s=300)
    assert report.is_starved
    assert len(report.starved_adapters) == 16
    assert report.waiting_max > 1000


def test_a_replica_with_few_requests_does_not_starve_by_the_windows_end() -> None:
    """One of two requests is in service when the simulation ends: half of the tokens, and no starvation."""
    requests = RequestTable(
        arrival_ns=np.array([0, 89 * NANOSECONDS]),
        adapter=np.array([0, 0]),
        prompt_tokens=np.array([100, 100]),
        output_tokens=np.array([200, 200]),
    )
    trace = Workload(make_adapters([2 / 90]), trace=requests, trace_duration_s=90.0)
    report = simulate(trace, make_replica(max_loras=1), horizon_s=90)
    assert (report.requests_arrived, report.requests_finished, report.requests_overdue) == (2, 1, 0)
    assert report.throughput_ratio == pytest.approx(0.5)
    assert report.served_ratio == 1.0
    assert not report.has_starvation


def test_an_adapter_starves_while_the_replica_does_not() -> None:
    """A cold adapter whose slots are held by hot ones waits for ever; the aggregate does not show it."""
    hot, cold = [12.0, 12.0], [0.05]
    report = simulate(Workload(make_adapters(hot + cold)), make_replica(max_loras=2), horizon_s=600, warmup_s=60)
    assert not report.is_starved
    assert report.starved_adapters == ("a2",)
    assert report.has_starvation


def test_warmup_is_not_measured() -> None:
    """Requests of the warm-up count neither as offered nor as completed."""
    requests = RequestTable(
        np.array([0, 50_000_000_000], np.int64),
        np.zeros(2, np.int32),
        np.full(2, 10, np.int32),
        np.full(2, 5, np.int32),
    )
    workload = Workload(make_adapters([1.0]), trace=requests)
    report = simulate(workload, make_replica(), horizon_s=100, warmup_s=20)
    assert (report.requests_arrived, report.requests_finished) == (1, 1)
    assert report.offered_tps == pytest.approx(15 / 80)


def test_percentiles_come_from_the_gaps() -> None:
    """Interpolated percentiles of the gap histogram stay within two bins of those of all gaps."""
    workload, replica = Workload(make_adapters([1.0, 0.5, 0.2])), make_replica()
    requests = workload.requests(horizon_s=60)
    inputs = build_inputs(workload, requests, replica, horizon_s=60)
    trace = run_kernel(inputs, log_steps=True)
    report = build_report(workload, inputs, trace, engine="fast", seed=0, warmup_s=0.0, starvation_tolerance=0.1)
    log = trace.step_log
    assert log is not None
    last: dict[int, int] = {}
    computed: dict[int, int] = {}
    gaps = []
    for step in range(trace.num_steps - 1):
        end = int(log.start_ns[step] + log.duration_ns[step])
        for position in range(log.running_offset[step], log.running_offset[step + 1]):
            request = int(log.running_request[position])
            computed[request] = computed.get(request, 0) + int(log.running_tokens[position])
            if computed[request] >= inputs.prompt_tokens[request]:
                if request in last:
                    gaps.append(end - last[request])
                last[request] = end
    assert trace.num_preemptions == 0
    assert report.itl.mean_s == pytest.approx(np.mean(gaps) / 1e9, rel=1e-9)
    width = 10 ** (2 * 7.0 / NUM_GAP_BINS)
    for value, probability in ((report.itl.p50_s, 50), (report.itl.p95_s, 95), (report.itl.p99_s, 99)):
        expected = np.percentile(gaps, probability) / 1e9
        assert expected / width <= value <= expected * width  # type: ignore[operator]


def test_reports_survive_json() -> None:
    """A report is read back equal from its JSON."""
    report = simulate(Workload(make_adapters([0.5, 0.0])), make_replica(), horizon_s=30, sample_interval_s=10)
    assert SimulationReport.model_validate_json(report.model_dump_json()) == report


def test_an_idle_replica_is_not_starved() -> None:
    """Nothing offered, nothing missed; latencies are absent rather than zero."""
    report = simulate(Workload(make_adapters([0.0])), make_replica(), horizon_s=30)
    assert report.throughput_ratio == 1.0
    assert report.ttft.p95_s is None
    assert report.step_mean_s is None


@pytest.mark.parametrize(("horizon_s", "warmup_s"), [(0.0, 0.0), (10.0, 10.0), (10.0, -1.0)])
def test_bad_windows_are_refused(horizon_s: float, warmup_s: float) -> None:
    """The measured window must exist."""
    with pytest.raises(InputError, match="warm-up shorter"):
        simulate(Workload(make_adapters([1.0])), make_replica(), horizon_s=horizon_s, warmup_s=warmup_s)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon_s", float("inf")),
        ("horizon_s", float("nan")),
        ("horizon_s", 1e-10),
        ("sample_interval_s", -1.0),
        ("sample_interval_s", float("nan")),
        ("sample_interval_s", 1e-6),
        ("sample_interval_s", 1e300),
        ("starvation_tolerance", -0.1),
        ("starvation_tolerance", 1.5),
        ("seed", -1),
    ],
)
def test_bad_settings_are_refused_by_name(field: str, value: float) -> None:
    """What would end in a crash, an endless table or a verdict without meaning is refused before it runs."""
    settings: dict[str, Any] = {"horizon_s": 60.0, field: value}
    with pytest.raises(InputError) as caught:
        simulate(Workload(make_adapters([1.0])), make_replica(), **settings)
    assert caught.value.field == field


def test_any_large_seed_is_accepted() -> None:
    """Seeds beyond 64 bits, as random generators give them, are seeds like others."""
    assert simulate(Workload(make_adapters([1.0])), make_replica(), horizon_s=1, seed=2**70).seed == 2**70


def test_a_simulation_that_no_memory_holds_is_refused() -> None:
    """A long horizon is an error with a hint, not a process that the system kills."""
    with pytest.raises(InputError, match="20,000,000 requests at most") as caught:
        simulate(Workload(make_adapters([1.0])), make_replica(), horizon_s=5e9)
    assert caught.value.hint == "give a shorter horizon"


def test_unknown_engines_are_refused() -> None:
    """The message names the engines that exist."""
    with pytest.raises(InputError, match="fast, simpy"):
        simulate(Workload(make_adapters([1.0])), make_replica(), horizon_s=1, engine="magic")  # type: ignore[arg-type]


def test_a_replica_that_does_not_start_is_not_simulated() -> None:
    """The error carries vLLM's own words."""
    with pytest.raises(TwinError, match=r"To serve at least one request|No available memory|out of memory"):
        simulate(Workload(make_adapters([1.0])), make_replica(max_loras=500, max_cpu_loras=500), horizon_s=1)


def test_ranks_above_the_slots_are_refused() -> None:
    """An adapter cannot be loaded into a slot of a smaller rank."""
    with pytest.raises(InputError, match="max_lora_rank") as caught:
        simulate(Workload(make_adapters([1.0])), make_replica(max_lora_rank=8), horizon_s=1)
    assert caught.value.field == "adapters.0.rank"


def test_prompts_beyond_the_context_are_refused() -> None:
    """The engine would reject such a request; the twin says which it is."""
    long_prompt = LengthDistribution.constant(5000)
    adapter = Adapter(name="long", rank=8, rate_rps=1.0, prompt_tokens=long_prompt, output_tokens=OUTPUT)
    with pytest.raises(InputError, match="max_model_len"):
        simulate(Workload((adapter,)), make_replica(max_model_len=4096), horizon_s=10)
