"""Plans for scenarios of rates: every GPU is simulated under each, and the verdict says under which it is worst."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.events import ignore
from placer.files import load_plan, save_plan
from placer.plan_document import Verification
from placer.planning import plan
from placer.recheck import recheck_plan
from placer.scenario_verdicts import joint_verdict
from placer.verify import TwinSettings, TwinVerifier
from solvers.placement import GpuAssignment
from tests.placer.small_fleets import HopefulSurrogate, fair_surrogate, small_data, small_problem, write_problem

QUICK: dict[str, Any] = {"solver": "bfd", "horizon_s": 600.0, "warmup_s": 100.0}
SHIFTS = {
    "cases": [
        {"name": "day", "factors": {"a[0-5]": 1.6, "a[6-9]": 0.2, "a1?": 0.2}},
        {"name": "night", "factors": {"a[0-5]": 0.2, "a[6-9]": 1.6, "a1?": 1.6}},
    ]
}


def test_a_plan_is_accepted_under_every_scenario(tmp_path: Path) -> None:
    """Each GPU, simulated under each scenario as a problem of its own, is accepted; and so it is when checked again."""
    problem = small_problem(tmp_path, total_rps=10.0, scenarios=SHIFTS)
    made = plan(problem, surrogate=HopefulSurrogate(), **QUICK)
    assert made.verdict == "accepted"
    assert made.repair.rejected_at_first > 0
    assert made.configuration.scenarios == problem.scenarios
    names = [adapter.name for adapter in problem.adapters]
    for gpu in made.gpus:
        assert gpu.verification is not None
        assert gpu.verification.scenario in {"day", "night"}
        assert gpu.verification.rejected_scenarios == ()
        adapters = tuple(names.index(name) for name in gpu.adapters)
        assigned = GpuAssignment(0, adapters, gpu.engine.max_loras, gpu.engine.max_lora_rank)
        for index in range(2):
            verifier = TwinVerifier(problem.in_scenario(index), TwinSettings(horizon_s=600.0, warmup_s=100.0))
            assert verifier.verify([assigned])[0].is_accepted
    save_plan(made, tmp_path / "plan.json")
    recheck = recheck_plan(
        load_plan(tmp_path / "plan.json"),
        plan_path=tmp_path / "plan.json",
        problem_path=tmp_path / "problem.yaml",
        names=(),
        engine="fast",
        horizon_s=None,
        seed=None,
        workers=None,
        compares=False,
        observer=ignore,
    )
    assert recheck.verdict == "accepted"
    told = {gpu.name: gpu.verification.scenario for gpu in recheck.gpus}
    assert told == {gpu.name: gpu.verification.scenario for gpu in made.gpus if gpu.verification is not None}


def verdict(*, is_accepted: bool, ratio: float) -> Verification:
    """Return a verdict with one reason where it rejects."""
    return Verification(
        engine="fast",
        horizon_s=600.0,
        warmup_s=100.0,
        seed=0,
        offered_tps=100.0,
        throughput_tps=100.0 * ratio,
        throughput_ratio=ratio,
        starved_adapters=(),
        itl_p95_s=0.1,
        ttft_p95_s=0.1,
        kv_usage_max=0.5,
        verdict="accepted" if is_accepted else "rejected",
        reasons=() if is_accepted else ("too slow",),
    )


@pytest.mark.parametrize(
    ("risk", "expected", "shown"), [(0.0, "rejected", "sale"), (0.2, "rejected", "sale"), (0.25, "accepted", "day")]
)
def test_a_risk_allows_scenarios_that_weigh_little(tmp_path: Path, risk: float, expected: str, shown: str) -> None:
    """Of four equal weights' worth of scenarios one rejects; the numbers are of the worst that says what holds."""
    cases = [{"name": "day", "weight": 2}, {"name": "night", "weight": 1}, {"name": "sale", "weight": 1}]
    problem = small_problem(tmp_path, scenarios={"cases": cases, "risk": risk})
    verdicts = [verdict(is_accepted=ok, ratio=ratio) for ok, ratio in ((True, 0.95), (True, 1.0), (False, 0.5))]
    joint = joint_verdict(problem, verdicts)
    assert (joint.verdict, joint.scenario, joint.rejected_scenarios) == (expected, shown, ("sale",))
    assert joint.reasons == (("scenario 'sale': too slow",) if expected == "rejected" else ())


def test_silence_at_night_is_no_failure(tmp_path: Path) -> None:
    """A scenario without any traffic is served by every GPU."""
    cases = [{"name": "day"}, {"name": "night", "factor": 0.0}]
    problem = small_problem(tmp_path, num_adapters=4, total_rps=4.0, scenarios={"cases": cases})
    made = plan(problem, surrogate=fair_surrogate(), **QUICK)
    assert (made.verdict, made.num_gpus) == ("accepted", 1)


def test_the_text_names_the_scenarios(tmp_path: Path) -> None:
    """And the risk that they may be refused with."""
    cases = [{"name": "day"}, {"name": "night", "factor": 0.3}]
    data = small_data(num_adapters=4, total_rps=4.0, scenarios={"cases": cases, "risk": 0.1})
    told = CliRunner().invoke(app, ["solve", str(write_problem(tmp_path, data)), "--solver", "bfd", "--no-verify"])
    assert "the worst of the scenarios that weigh at least 0.9 of all: day, night" in told.stdout


def test_the_text_says_what_each_gpu_is_shown_under_and_rejected_under(tmp_path: Path) -> None:
    """Also of a plan that is checked again; a scenario that the risk lets go is named as one."""
    cases = [{"name": "day", "weight": 9}, {"name": "sale", "factor": 40.0}]
    data = small_data(num_adapters=4, total_rps=4.0, scenarios={"cases": cases, "risk": 0.15})
    output = str(tmp_path / "plan.json")
    window = ["--horizon", "120", "--warmup", "20"]
    solve = ["solve", str(write_problem(tmp_path, data)), "--solver", "bfd", "--no-improve", *window, "-o", output]
    solved, checked = (CliRunner().invoke(app, command) for command in (solve, ["verify", output]))
    for told in (solved, checked):
        text = " ".join(told.stdout.split())
        assert "simulated numbers under scenario 'day': h100-64gb-0" in text
        assert "h100-64gb-0 is rejected under 'sale', which the scenarios' risk allows" in text
