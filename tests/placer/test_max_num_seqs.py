"""`max_num_seqs` as a decision: what a file may say, what is planned with it, and that the twin has the last word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import placer
from placer.cli.tables import print_plan
from placer.comparison_document import PlacementRecord
from placer.files import load_plan, load_problem, save_plan
from placer.plan_document import InputFile, Plan
from placer.recheck import replica_of
from placer.searches import mend, other_sequences, run_searches
from placer.sequences import better_plan, quickest
from placer.simulation import replica_for
from placer.verify import TwinSettings, TwinVerifier
from placer.why_not import question_of
from solvers.bounds import work_bound
from solvers.feasibility import FeasibilityModel
from solvers.objective import evaluate
from solvers.placement import GpuAssignment, Placement, replica_of_gpu, validate_placement
from solvers.problem_file import problem_schema
from tests.placer.small_fleets import HopefulSurrogate, fair_surrogate, rechecked, small_problem
from twin.errors import InputError

WINDOW: dict[str, Any] = {"horizon_s": 400.0, "warmup_s": 100.0}
SETTINGS = TwinSettings(horizon_s=400.0, warmup_s=100.0, workers=1)
ENGINE = {"max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}


def chat(num_adapters: int, *, rate_rps: float, output_tokens: int = 300) -> list[dict[str, Any]]:
    """Return adapters of three ranks with equal rates."""
    return [
        {
            "name": f"a{index}",
            "rank": (8, 16, 32)[index % 3],
            "rate_rps": rate_rps,
            "prompt_tokens": {"mean": 200},
            "output_tokens": {"mean": output_tokens},
        }
        for index in range(num_adapters)
    ]


def planned(folder: Path, max_num_seqs: object, *, solver: str = "bfd", **changes: Any) -> Plan:
    """Return the plan of a shipped model's surrogate for a problem with this `max_num_seqs`."""
    engine = ENGINE | {"max_num_seqs": max_num_seqs}
    return placer.plan(small_problem(folder, engine=engine, **changes), solver=solver, workers=1, **WINDOW)


def test_auto_is_every_usual_value_that_a_step_has_tokens_for(tmp_path: Path) -> None:
    """A step of 256 tokens cannot decode for 512 sequences; vLLM's default counts until one is chosen."""
    problem = small_problem(tmp_path, engine={"max_num_seqs": "auto", "max_num_batched_tokens": 256})
    assert problem.max_num_seqs_options == (32, 64, 128, 256)
    assert problem.engine.max_num_seqs == 256


def test_a_list_is_sorted_and_its_value_nearest_below_the_default_counts_first(tmp_path: Path) -> None:
    """Of 48, 16 and 300 it is 48; of 300 and 400, which are both above 256, the smaller."""
    below = small_problem(tmp_path, engine={"max_num_seqs": [48, 16, 300]})
    assert (below.max_num_seqs_options, below.engine.max_num_seqs) == ((16, 48, 300), 48)
    above = small_problem(tmp_path, engine={"max_num_seqs": [400, 300]})
    assert above.engine.max_num_seqs == 300


def test_a_number_stays(tmp_path: Path) -> None:
    """Who gives a number keeps it: there is nothing to choose."""
    assert small_problem(tmp_path).max_num_seqs_options == ()
    plan = placer.plan(small_problem(tmp_path), surrogate=fair_surrogate(), workers=1, **WINDOW)
    assert {gpu.engine.max_num_seqs for gpu in plan.gpus} == {16}
    assert plan.configuration.max_num_seqs_options == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one number"),
        ([64, 64], "each once"),
        ([64, 0], "Got a list with 0"),
        ([64, "many"], "Got a list with 'many'"),
        ([64, True], "Got a list with True"),
        ([64, 4096], "at most `max_num_batched_tokens` (2048)"),
        ("many", "a whole number"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, given: object, message: str) -> None:
    """With what must hold, and what was given."""
    with pytest.raises(InputError) as caught:
        small_problem(tmp_path, engine={"max_num_seqs": given})
    assert message in str(caught.value)


def test_the_options_themselves_are_no_field_of_a_file(tmp_path: Path) -> None:
    """There is one way to write them."""
    with pytest.raises(InputError, match="Give the options as `max_num_seqs`"):
        small_problem(tmp_path, engine={"max_num_seqs_options": [8, 16]})


def test_the_schema_has_what_a_file_may_say() -> None:
    """A number, `auto`, or a list; not what is made of them."""
    section = problem_schema()["$defs"]["EngineSection"]["properties"]
    kinds = {entry.get("const", entry["type"]) for entry in section["max_num_seqs"]["anyOf"]}
    assert kinds == {"integer", "auto", "array"}
    assert "max_num_seqs_options" not in section


def test_the_work_bound_holds_for_every_value(tmp_path: Path) -> None:
    """Where it may be chosen, the bound is at most that of each value alone."""
    problem = small_problem(tmp_path, engine=ENGINE | {"max_num_seqs": [4, 16, 2048]}, total_rps=60.0)
    alone = [
        work_bound(replace(problem.with_max_num_seqs(value), max_num_seqs_options=())).value
        for value in problem.max_num_seqs_options
    ]
    assert alone[0] > work_bound(problem).value
    assert work_bound(problem).value <= min(alone)


def test_a_larger_value_saves_gpus_of_the_shipped_profile(tmp_path: Path) -> None:
    """Sixty chatting adapters need three GPUs of 128 sequences; two where more may run at a time."""
    adapters = chat(60, rate_rps=0.6)
    fixed = planned(tmp_path, 128, adapters=adapters)
    chosen = planned(tmp_path, "auto", adapters=adapters)
    assert (fixed.verdict, fixed.num_gpus) == ("accepted", 3)
    assert (chosen.verdict, chosen.num_gpus) == ("accepted", 2)
    assert all(gpu.engine.max_num_seqs > 128 for gpu in chosen.gpus)
    assert chosen.configuration.max_num_seqs_options == (32, 64, 128, 256, 512, 1024, 2048)


def test_a_smaller_value_saves_gpus_under_a_latency_limit(tmp_path: Path) -> None:
    """With 1,024 sequences, steps at the peaks are too long for 40 ms between tokens: a GPU more is needed."""
    changes: dict[str, Any] = {"adapters": chat(60, rate_rps=0.6), "limits": {"itl_p95_ms": 40.0}}
    fixed = planned(tmp_path, 1024, **changes)
    chosen = planned(tmp_path, "auto", **changes)
    assert (fixed.verdict, fixed.num_gpus) == ("accepted", 4)
    assert (chosen.verdict, chosen.num_gpus) == ("accepted", 3)
    assert all(gpu.engine.max_num_seqs < 1024 for gpu in chosen.gpus)


def test_a_plan_can_be_simulated_as_it_is_written(tmp_path: Path) -> None:
    """The plan names the value of each GPU, and a check of the file simulates exactly that."""
    plan = planned(tmp_path, [64, 128], adapters=chat(12, rate_rps=0.6), limits={"itl_p95_ms": 40.0})
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    read = load_plan(path)
    assert read == plan
    _, replica = replica_of(load_problem(tmp_path / "problem.yaml"), read.gpus[0])
    assert replica.engine == plan.gpus[0].engine
    checked = rechecked(read, path)
    assert checked.warnings == ()
    assert [gpu.verification for gpu in checked.gpus] == [gpu.verification for gpu in plan.gpus]


def test_a_gpu_of_a_plan_and_a_replica_of_ones_own_are_simulated_with_the_value(tmp_path: Path) -> None:
    """`placer simulate` takes the plan's, and that of the option instead."""
    plan = planned(tmp_path, [64, 128], adapters=chat(12, rate_rps=0.6))
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    problem = load_problem(tmp_path / "problem.yaml")
    for asked, expected in ((None, plan.gpus[0].engine.max_num_seqs), (32, 32)):
        _, replica = replica_for(problem, plan=path, gpu=None, max_loras=None, max_lora_rank=None, max_num_seqs=asked)
        assert replica.engine.max_num_seqs == expected


def test_the_twin_gives_a_rejected_gpu_another_value(tmp_path: Path) -> None:
    """A surrogate that accepts everything packs one GPU; with 2 sequences it starves, with 64 it serves all."""
    problem = small_problem(tmp_path, engine=ENGINE | {"max_num_seqs": [2, 64]}, total_rps=9.0)
    problem = replace(problem, engine=problem.engine.model_copy(update={"max_num_seqs": 2}))
    gpu = GpuAssignment(0, tuple(range(12)), 12, 16)
    verifier = TwinVerifier(problem, SETTINGS)
    assert not verifier.verify([gpu])[0].is_accepted
    (mended,) = run_searches(verifier, [mend(FeasibilityModel(problem, HopefulSurrogate()), gpu)])
    assert mended.assignment is not None
    assert (mended.given_back, mended.assignment.max_num_seqs) == ((), 64)
    assert verifier.accepts(mended.assignment)


def test_a_gpu_of_its_own_value_is_evaluated_with_it(tmp_path: Path) -> None:
    """Features, memory and the replica are those of the GPU, not of the problem's engine."""
    problem = small_problem(tmp_path, engine=ENGINE | {"max_num_seqs": [16, 2048]})
    own = GpuAssignment(0, tuple(range(12)), 12, 16, max_num_seqs=2048)
    assert replica_of_gpu(problem, own).engine.max_num_seqs == 2048
    model = FeasibilityModel(problem, fair_surrogate())
    column = model.surrogate.schema.index("max_num_seqs")
    rows = problem.aggregates[list(own.adapters)].sum(axis=0)[None]
    settings = model.settings_of([own])
    assert model.features(rows, settings)[0, column] == 2048
    kv_tokens = replica_of_gpu(problem, own).memory().kv_tokens
    assert kv_tokens < replica_of_gpu(problem, replace(own, max_num_seqs=None)).memory().kv_tokens
    evaluated = evaluate(problem, Placement((own,)), fair_surrogate())
    assert (int(settings.kv_tokens[0]), evaluated.gpus[0].kv_tokens) == (kv_tokens, kv_tokens)


def test_a_value_that_is_no_option_is_no_placement(tmp_path: Path) -> None:
    """What the user fixed is kept, and so are the options."""
    own = GpuAssignment(0, tuple(range(12)), 12, 16, max_num_seqs=8)
    with pytest.raises(InputError, match="must be that of `engine`"):
        validate_placement(small_problem(tmp_path), Placement((own,)))
    options = small_problem(tmp_path, engine=ENGINE | {"max_num_seqs": [16, 32]})
    with pytest.raises(InputError, match="must be one of 16, 32"):
        validate_placement(options, Placement((own,)))


def test_values_with_which_a_gpu_does_not_start_are_not_tried(tmp_path: Path) -> None:
    """So many logits leave no KV cache."""
    problem = small_problem(
        tmp_path, engine={"max_num_seqs": [16, 32, 30_000], "max_num_batched_tokens": 30_000, "max_model_len": 4096}
    )
    others = other_sequences(problem, GpuAssignment(0, (0,), 1, 16))
    assert [other.max_num_seqs for other in others] == [16]


def test_the_quickest_accepted_value_is_taken_for_the_lowest_latency(tmp_path: Path) -> None:
    """Of all values, that with the smallest simulated latency of those that the twin accepts."""
    problem = small_problem(
        tmp_path,
        engine=ENGINE | {"max_num_seqs": [2, 16, 64]},
        total_rps=7.0,
        objective="lowest_latency",
        gpu_types=[{"name": "h100-64gb", "memory_gib": 63.43, "max_count": 1}],
    )
    gpu = GpuAssignment(0, tuple(range(12)), 12, 16)
    verifier = TwinVerifier(problem, SETTINGS)
    (chosen,) = quickest(problem, verifier, [gpu])
    every = [gpu, *other_sequences(problem, gpu)]
    verdicts = dict(zip(every, verifier.verify(every), strict=True))
    accepted = {one: verdict.itl_p95_s or 0.0 for one, verdict in verdicts.items() if verdict.is_accepted}
    assert 0 < len(accepted) < 3
    assert accepted[chosen] == min(accepted.values())


def test_a_fleet_for_the_lowest_latency_is_no_slower_than_with_any_one_value(tmp_path: Path) -> None:
    """A value whose fleet the twin makes slower than the surrogate promised gives way to the next one."""
    changes: dict[str, Any] = {
        "adapters": chat(30, rate_rps=0.4),
        "objective": "lowest_latency",
        "gpu_types": [{"name": "h100-64gb", "memory_gib": 63.43, "max_count": 2}],
    }

    def slowest_s(plan: Plan) -> float:
        assert plan.verdict == "accepted"
        return max(gpu.verification.itl_p95_s or 0.0 for gpu in plan.gpus if gpu.verification is not None)

    chosen = slowest_s(planned(tmp_path, [64, 256, 1024], **changes))
    assert chosen <= min(slowest_s(planned(tmp_path, value, **changes)) for value in (64, 256, 1024))


def test_an_adapter_that_needs_more_sequences_alone_is_placed(tmp_path: Path) -> None:
    """With two sequences it fits no GPU; with sixteen it does."""
    lengths = {"prompt_tokens": {"mean": 100}, "output_tokens": {"mean": 100}}
    adapters = [{"name": "hot", "rank": 16, "rate_rps": 5.0, **lengths}]
    problem = small_problem(tmp_path, adapters=adapters, engine=ENGINE | {"max_num_seqs": [2, 16]})
    plan = placer.plan(problem, surrogate="exact", solver="bfd", workers=1, **WINDOW)
    assert (plan.verdict, plan.gpus[0].engine.max_num_seqs) == ("accepted", 16)


def test_the_accepted_plan_of_fewer_gpus_is_the_better_one(tmp_path: Path) -> None:
    """A plan that the twin rejects is worse whatever its size."""
    small = planned(tmp_path, 256, adapters=chat(6, rate_rps=0.4))
    large = planned(tmp_path, 256, adapters=chat(60, rate_rps=0.6))
    assert better_plan(None, large) is large
    assert better_plan(large, small) is small
    rejected = small.gpus[0].verification
    assert rejected is not None
    gpu = small.gpus[0].model_copy(update={"verification": rejected.model_copy(update={"verdict": "rejected"})})
    bad = small.model_copy(update={"verdict": "rejected", "gpus": (gpu,)})
    assert better_plan(bad, large) is large


def test_the_same_choice_is_made_again(tmp_path: Path) -> None:
    """Equal problem, seed and evaluations: the same plan."""
    problem = small_problem(tmp_path, adapters=chat(9, rate_rps=0.6), engine=ENGINE | {"max_num_seqs": "auto"})
    plans = [
        placer.plan(problem, solver="bfd", max_evaluations=50_000, workers=workers, **WINDOW).comparable()
        for workers in (1, 2)
    ]
    assert plans[0] == plans[1]


def test_the_table_shows_the_value_where_it_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And not where it was given: there it is the same everywhere."""
    shown = []
    for given in ([64, 128], 128):
        print_plan(planned(tmp_path, given, adapters=chat(6, rate_rps=0.6)))
        shown.append("seqs" in capsys.readouterr().out)
    assert shown == [True, False]


def test_a_placement_of_a_comparison_keeps_the_value() -> None:
    """Also through its JSON; where there is none, none is written."""
    gpus = (GpuAssignment(0, (0,), 1, 16, max_num_seqs=64), GpuAssignment(0, (1,), 1, 16))
    record = PlacementRecord.model_validate_json(PlacementRecord.of(gpus).model_dump_json())
    assert record.placement().gpus == gpus
    assert PlacementRecord.of(gpus[1:]).max_num_seqs is None


def test_why_not_is_about_the_planned_value_and_says_so(tmp_path: Path) -> None:
    """A proof for one value is none for the others."""
    plan = planned(tmp_path, [64, 128], adapters=chat(60, rate_rps=0.6))
    path = tmp_path / "plan.json"
    save_plan(plan.model_copy(update={"inputs": _beside(plan)}), path)
    value = plan.configuration.engine.max_num_seqs
    for asked, expected in ((path, value), (tmp_path / "problem.yaml", 128)):
        question = question_of(asked, surrogate=None)
        assert (question.problem.engine.max_num_seqs, question.problem.max_num_seqs_options) == (expected, ())
        assert any(f"`max_num_seqs` is {expected} here" in warning for warning in question.warnings)


def _beside(plan: Plan) -> tuple[InputFile, ...]:
    """Return a plan's inputs by their names beside it."""
    return tuple(entry.model_copy(update={"name": Path(entry.name).name}) for entry in plan.inputs)
