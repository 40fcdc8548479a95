"""Plans with secondary objectives: what is in place, what the twin changes, and what is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.current_plan import with_secondary
from placer.files import load_plan, save_plan
from placer.plan_document import Plan
from placer.planning import plan
from solvers.current import CurrentGpu
from tests.placer.small_fleets import HopefulSurrogate, fair_surrogate, small_data, small_problem, write_problem
from tests.solvers.analytic import AnalyticSurrogate
from twin.errors import InputError

QUICK: dict[str, Any] = {"solver": "bfd", "horizon_s": 600.0, "warmup_s": 100.0, "max_evaluations": 3000}


def homes(made: Plan) -> dict[str, str]:
    """Return on which GPU each adapter is, by the names of the GPUs in place."""
    return {name: gpu.current or "new" for gpu in made.gpus for name in gpu.adapters}


def test_a_plan_near_the_one_in_place(tmp_path: Path) -> None:
    """Rates grow, one adapter comes and one goes: each GPU says for which it stands, and moves are counted so."""
    first = plan(small_problem(tmp_path), surrogate=fair_surrogate(), **QUICK)
    data = small_data(num_adapters=13, total_rps=16.0)
    del data["adapters"][5]
    problem = small_problem(tmp_path, adapters=data["adapters"])
    free = plan(problem, surrogate=fair_surrogate(), current=first, secondary=[], **QUICK)
    near = plan(problem, surrogate=fair_surrogate(), current=first, **QUICK)
    assert near.configuration.secondary == ("moves",)
    assert (free.num_gpus, near.num_gpus) == (2, 2)
    assert near.verdict == "accepted"
    before = {name: gpu.name for gpu in first.gpus for name in gpu.adapters}
    for made in (free, near):
        assert made.moves is not None
        now = homes(made)
        moved = [name for name, gpu in now.items() if name in before and gpu != before[name]]
        assert (made.moves.num_moved, made.moves.num_placed, made.moves.num_new) == (len(moved), 11, 1)
        assert made.moves.share == pytest.approx(len(moved) / 11, abs=1e-6)
    assert near.moves is not None
    assert free.moves is not None
    assert near.moves.num_moved <= free.moves.num_moved
    assert near.moves.loaded_mib < free.moves.loaded_mib or near.moves.num_moved == free.moves.num_moved


def test_after_the_repair_adapters_go_back(tmp_path: Path) -> None:
    """A surrogate that accepts anything leaves all to the repair; the plan is still accepted and near what was."""
    problem = small_problem(tmp_path, total_rps=20.0)
    first = plan(problem, surrogate=fair_surrogate(), **QUICK)
    made = plan(problem, surrogate=HopefulSurrogate(), current=first, **QUICK)
    assert made.repair.rejected_at_first > 0
    assert made.verdict == "accepted"
    assert made.moves is not None
    assert made.moves.num_moved < len(problem.adapters)


@pytest.mark.parametrize("seed", [2, 3])
def test_a_plan_never_has_more_gpus_for_the_sake_of_moves(tmp_path: Path, seed: int) -> None:
    """Where the twin lets a GPU of the solver's own placement be emptied, and none of the changed one, that counts."""
    generator = np.random.default_rng(seed)
    data = small_data(num_adapters=24, total_rps=34.0)
    surrogate = AnalyticSurrogate(speed=0.34)
    first = plan(small_problem(tmp_path, **data), surrogate=surrogate, **QUICK)
    for adapter in data["adapters"]:
        adapter["rate_rps"] = round(adapter["rate_rps"] * float(generator.uniform(0.7, 1.15)), 4)
    later = small_problem(tmp_path, **data)
    free, near = (plan(later, surrogate=surrogate, current=first, secondary=it, **QUICK) for it in ([], ["moves"]))
    assert near.verdict == free.verdict == "accepted"
    assert near.num_gpus <= free.num_gpus < first.num_gpus
    assert near.moves is not None
    assert free.moves is not None
    assert near.moves.num_moved <= free.moves.num_moved


def test_the_command_takes_the_plan_in_place(tmp_path: Path) -> None:
    """Text and JSON say what moves; the plan names the file."""
    path = write_problem(tmp_path, small_data(num_adapters=6, total_rps=8.0))
    made = plan(
        small_problem(tmp_path, **small_data(num_adapters=6, total_rps=8.0)), surrogate=fair_surrogate(), **QUICK
    )
    save_plan(made, tmp_path / "before.json")
    options = ["--solver", "bfd", "--max-evaluations", "500", "--no-verify"]
    command = ["solve", str(path), *options, "--current", str(tmp_path / "before.json")]
    told = CliRunner().invoke(app, [*command, "--secondary", "moves,headroom"])
    assert "then, at the same objective: moves, headroom; the least headroom is" in told.stdout
    assert "moves: 0 of 6 adapters (0.0%)" in told.stdout
    output = tmp_path / "after.json"
    CliRunner().invoke(app, [*command, "--output", str(output)])
    after = load_plan(output)
    assert after.moves is not None
    assert [entry.name for entry in after.inputs if entry.role == "current"] == ["before.json"]
    assert json.loads(output.read_text())["gpus"][0]["current"] == made.gpus[0].name


def test_the_problem_file_can_say_it_all(tmp_path: Path) -> None:
    """GPUs in place without names are called by their number."""
    names = [f"a{index}" for index in range(6)]
    current = [{"gpu_type": "h100-64gb", "adapters": names[:3]}, {"gpu_type": "h100-64gb", "adapters": names[3:]}]
    problem = small_problem(
        tmp_path, **small_data(num_adapters=6, total_rps=3.0), current=current, secondary=["headroom", "moves"]
    )
    made = plan(problem, surrogate=fair_surrogate(), verify=False, **QUICK)
    assert made.configuration.secondary == ("headroom", "moves")
    assert made.num_gpus == 1
    assert made.gpus[0].current in {"#0", "#1"}
    assert made.moves is not None
    assert (made.moves.num_moved, made.moves.num_gpus_before) == (3, 2)


def test_a_type_in_place_that_the_problem_does_not_offer_is_told(tmp_path: Path) -> None:
    """Its GPUs may be on their way out, or misspelt: all of their adapters count as moved, which the plan says."""
    names = [f"a{index}" for index in range(4)]
    current = [
        {"gpu_type": "a100-80gb", "adapters": names[:2], "name": "old"},
        {"gpu_type": "h100-64gb", "adapters": names[2:], "name": "kept"},
    ]
    problem = small_problem(tmp_path, **small_data(num_adapters=4, total_rps=2.0), current=current)
    made = plan(problem, surrogate=fair_surrogate(), verify=False, **QUICK)
    told = [warning for warning in made.warnings if "a100-80gb" in warning]
    expected = (
        "In place are GPUs of a type that the problem does not offer: old (a100-80gb). The plan gives them back, "
        "and their adapters count as moved."
    )
    assert told == [expected]
    known = small_problem(tmp_path, **small_data(num_adapters=4, total_rps=2.0), current=current[1:])
    warnings = plan(known, surrogate=fair_surrogate(), verify=False, **QUICK).warnings
    assert not any("In place" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema_version: 1\nmodel: llama-3.1-8b\n", "a plan must be JSON"),
        ('{"schema_version": 1, "model": "llama-3.1-8b"}', "a plan must have `configuration`, `gpus` and `verdict`"),
        ("[]", "a plan must have"),
        ('{"verdict": ', "complete JSON"),
        ("", "complete JSON"),
    ],
)
def test_another_document_is_no_plan(tmp_path: Path, text: str, message: str) -> None:
    """A problem file given in place of a plan is called what it is, not a damaged plan."""
    path = tmp_path / "other"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        with_secondary(small_problem(tmp_path), None, path)
    assert caught.value.file == str(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"secondary": ["moves", "moves"]}, "each objective once"),
        ({"secondary": ["speed"]}, "secondary"),
        ({"current": [{"gpu_type": "x", "adapters": ["a0", "a1", "a0"]}]}, "'a0' is on GPU 0 twice"),
        (
            {
                "current": [
                    {"gpu_type": "x", "adapters": [], "name": "g"},
                    {"gpu_type": "x", "adapters": [], "name": "g"},
                ]
            },
            "must be unique",
        ),
    ],
)
def test_bad_fields_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    """With what must hold."""
    with pytest.raises(InputError, match=message):
        small_problem(tmp_path, **fields)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    """Unknown names, names given twice, moves from nowhere, and an adapter in two places."""
    problem = small_problem(tmp_path)
    for names in (["speed"], ["moves", "moves"], ["none", "moves"]):
        with pytest.raises(InputError, match="secondary objectives must be of moves, headroom"):
            with_secondary(problem, names, None)
    with pytest.raises(InputError, match="needs to know what is in place"):
        plan(problem, surrogate=fair_surrogate(), secondary=["moves"], **QUICK)
    twice = [CurrentGpu(gpu_type="x", adapters=("a0", "a0"))]
    with pytest.raises(InputError, match="must name each adapter once"):
        with_secondary(problem, None, twice)
    with pytest.raises(InputError):
        with_secondary(problem, None, tmp_path / "no such plan.json")
    assert with_secondary(problem, ["none"], None).secondary == ()
