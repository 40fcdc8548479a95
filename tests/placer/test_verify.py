"""The twin as judge: verdicts with reasons, in parallel, the same from both engines."""

from dataclasses import replace
from pathlib import Path

import pytest

from placer.events import GpuVerified, PlanEvent
from placer.files import ProblemFromFile
from placer.verify import TwinSettings, TwinVerifier, effective_horizon_s, verify_gpus
from solvers.placement import GpuAssignment
from tests.placer.small_fleets import small_problem
from twin.errors import InputError

LIGHT = GpuAssignment(0, (1, 3), 2, 16)
HEAVY = GpuAssignment(0, tuple(range(12)), 12, 16)
IDLE = GpuAssignment(0, (11,), 1, 16)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> ProblemFromFile:
    """Return twelve adapters that need two GPUs."""
    return small_problem(tmp_path_factory.mktemp("problem"))


def test_a_light_gpu_is_accepted_and_an_overloaded_one_is_not(problem: ProblemFromFile) -> None:
    """The verdict says what was measured, and why."""
    light, heavy = verify_gpus(problem, [LIGHT, HEAVY])
    assert (light.verdict, light.reasons) == ("accepted", ())
    assert heavy.verdict == "rejected"
    assert heavy.throughput_ratio < 0.9
    assert heavy.reasons[0].startswith("the replica starves: ")
    assert heavy.reasons[1].startswith("12 adapters starve: a0, a1, a2, a3, a4 and 7 more")


def test_adapters_can_starve_on_a_replica_that_does_not(tmp_path: Path) -> None:
    """A few slow adapters behind one slot: the replica's total looks fine, theirs does not."""
    problem = small_problem(tmp_path, num_adapters=40, total_rps=9.0)
    (verdict,) = verify_gpus(problem, [GpuAssignment(0, tuple(range(40)), 1, 16)])
    assert verdict.throughput_ratio >= 0.9 or "the replica starves" in verdict.reasons[0]
    assert verdict.starved_adapters
    assert any("starve: " in reason or "starves: " in reason for reason in verdict.reasons)


def test_latency_limits_are_the_problems(tmp_path: Path) -> None:
    """A limit between two measured values rejects with the value and the limit in milliseconds."""
    free = small_problem(tmp_path)
    (before,) = verify_gpus(free, [LIGHT])
    assert before.itl_p95_s is not None
    assert before.ttft_p95_s is not None
    for name, value_s in (("itl_p95_ms", before.itl_p95_s), ("ttft_p95_ms", before.ttft_p95_s)):
        limits = {"starvation_tolerance": 0.1, name: value_s * 1000.0 * 0.99}
        (after,) = verify_gpus(small_problem(tmp_path, limits=limits), [LIGHT])
        assert after.verdict == "rejected"
        assert f"{name[:4].strip('_').upper()} p95 {value_s * 1000.0:.1f} ms is above" in after.reasons[0]


def test_a_replica_that_does_not_start_is_rejected_with_the_engines_words(problem: ProblemFromFile) -> None:
    """A verdict, not a crash: repair can give the GPU fewer slots."""
    (verdict,) = verify_gpus(problem, [GpuAssignment(0, (0,), 2000, 512)])
    assert verdict.verdict == "rejected"
    assert "must start" in verdict.reasons[0]
    assert (verdict.itl_p95_s, verdict.throughput_tps) == (None, 0.0)


def test_both_engines_give_the_same_verdict(problem: ProblemFromFile) -> None:
    """The readable engine runs in processes, the fast one in threads; what they measure is equal."""
    fast = verify_gpus(problem, [LIGHT, HEAVY], engine="fast", horizon_s=90.0, warmup_s=10.0)
    simpy = verify_gpus(problem, [LIGHT, HEAVY], engine="simpy", horizon_s=90.0, warmup_s=10.0)
    assert [v.model_dump(exclude={"engine"}) for v in simpy] == [v.model_dump(exclude={"engine"}) for v in fast]


def test_the_number_of_workers_does_not_change_the_verdicts(problem: ProblemFromFile) -> None:
    """Results come in any order and are put where they belong."""
    gpus = [GpuAssignment(0, (index,), 1, 16) for index in range(8)]
    assert verify_gpus(problem, gpus, workers=4) == verify_gpus(problem, gpus, workers=1)


def test_a_gpu_with_few_requests_is_simulated_for_longer(problem: ProblemFromFile) -> None:
    """Whether the last request is still being served at the end must not decide about an almost idle GPU."""
    rate_rps = problem.adapters[11].rate_rps
    settings = TwinSettings(horizon_s=200.0, warmup_s=50.0)
    (verdict,) = verify_gpus(problem, [IDLE], horizon_s=200.0, warmup_s=50.0)
    assert verdict.horizon_s == pytest.approx(50.0 + 200.0 / rate_rps)
    assert verdict.is_accepted
    assert effective_horizon_s(problem.workload, settings) == 200.0


def test_an_overloaded_gpu_cannot_catch_up_after_its_trace(problem: ProblemFromFile) -> None:
    """Beyond the end of a replayed trace the queue would drain: the simulation ends with the trace."""
    requests = problem.workload.requests(horizon_s=300.0)
    replayed = replace(problem.workload, trace=requests, trace_duration_s=300.0)
    (verdict,) = verify_gpus(replace(problem, workload=replayed), [HEAVY], horizon_s=1800.0, warmup_s=100.0)
    assert verdict.horizon_s == 300.0
    assert verdict.verdict == "rejected"
    assert verdict.throughput_ratio < 0.9


def test_a_trace_must_outlast_the_warmup(problem: ProblemFromFile) -> None:
    """Nothing would be measured; the message says how long the trace is."""
    replayed = replace(problem.workload, trace=problem.workload.requests(horizon_s=50.0), trace_duration_s=50.0)
    with pytest.raises(InputError, match="ends after 50 s") as caught:
        verify_gpus(replace(problem, workload=replayed), [LIGHT], warmup_s=100.0)
    assert caught.value.field == "warmup_s"


def test_the_verifier_remembers(problem: ProblemFromFile) -> None:
    """The same GPU is simulated once, also when it is asked about twice in a batch."""
    verifier = TwinVerifier(problem, TwinSettings())
    first = verifier.verify([LIGHT, LIGHT])
    assert verifier.verify([LIGHT]) == first[:1]
    assert verifier.num_calls == 1
    assert verifier.known(HEAVY) is None


def test_ctrl_c_keeps_the_verdicts_so_far(problem: ProblemFromFile) -> None:
    """Of three GPUs one was simulated when Ctrl-C came; its verdict is known."""
    gpus = [GpuAssignment(0, (index,), 1, 16) for index in range(3)]

    def interrupt(event: PlanEvent) -> None:
        if isinstance(event, GpuVerified):
            raise KeyboardInterrupt

    verifier = TwinVerifier(problem, TwinSettings(workers=1), observer=interrupt)
    with pytest.raises(KeyboardInterrupt):
        verifier.verify(gpus)
    assert verifier.num_calls == 1
    assert sum(verifier.known(gpu) is not None for gpu in gpus) == 1


@pytest.mark.parametrize(("horizon_s", "warmup_s"), [(0.0, 0.0), (100.0, 100.0), (-1.0, 0.0), (1e9, 0.0), (10.0, -1.0)])
def test_an_empty_window_is_refused(horizon_s: float, warmup_s: float) -> None:
    """A window in which nothing is measured has no verdict."""
    with pytest.raises(InputError, match="horizon"):
        TwinSettings(horizon_s=horizon_s, warmup_s=warmup_s)
