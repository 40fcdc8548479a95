"""How many adapters of a GPU stay in CPU memory: all, what the user says, or what the memory of the host holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placer
from placer.simulation import replica_for
from placer.surrogates import surrogate_for
from placer.verify import TwinSettings, TwinVerifier
from predictors.features import FEATURE_SCHEMA
from solvers.adapter_types import single_types
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.patterns.boxes import feature_corners, root_boxes
from solvers.placement import GpuAssignment, Placement, replica_of_gpu, validate_placement
from solvers.registry import get_solver
from tests.placer.small_fleets import PROFILE, fair_surrogate, small_problem
from twin.errors import InputError
from twin.memory import GIB, StartFailure, adapters_in_cpu_memory, slot_bytes

WINDOW: dict[str, Any] = {"horizon_s": 400.0, "warmup_s": 100.0}
SETTINGS = TwinSettings(horizon_s=400.0, warmup_s=100.0, workers=1)
ENGINE = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
CPU_LORAS = FEATURE_SCHEMA.index("max_cpu_loras")


def gpu_types(cpu_memory_gib: float | None) -> list[dict[str, Any]]:
    """Return the GPU type of a shipped profile on a host with so much memory for it."""
    return [{"name": "h100-64gb", "memory_gib": 63.43, "profile": PROFILE, "cpu_memory_gib": cpu_memory_gib}]


def many_adapters(count: int, *, rate_rps: float, rank: int = 32) -> list[dict[str, Any]]:
    """Return adapters of one rank and rate with short requests."""
    lengths = {"prompt_tokens": {"mean": 100}, "output_tokens": {"mean": 50}}
    return [{"name": f"a{index}", "rank": rank, "rate_rps": rate_rps, **lengths} for index in range(count)]


def test_a_plan_names_as_many_as_it_places(tmp_path: Path) -> None:
    """Where nothing limits them, no adapter of a GPU is read from disk twice."""
    plan = placer.plan(small_problem(tmp_path), surrogate=fair_surrogate(), workers=1, **WINDOW)
    for gpu in plan.gpus:
        assert gpu.engine.max_cpu_loras == max(len(gpu.adapters), gpu.engine.max_loras)


@pytest.mark.parametrize("rank", [8, 64])
@pytest.mark.parametrize("cpu_memory_gib", [0.01, 0.5, 3.7, 64.0])
def test_what_fits_is_the_most_that_does(tmp_path: Path, rank: int, cpu_memory_gib: float) -> None:
    """One more would not."""
    problem = small_problem(tmp_path)
    gpu = problem.gpu_types[0].model_copy(update={"cpu_memory_gib": cpu_memory_gib})
    most = adapters_in_cpu_memory(problem.model, gpu, rank)
    assert most is not None
    size = slot_bytes(problem.model, rank)
    assert most * size <= cpu_memory_gib * GIB < (most + 1) * size


def test_a_number_that_the_user_gives_stays(tmp_path: Path) -> None:
    """On every GPU of the plan, and no GPU has more slots than it."""
    problem = small_problem(tmp_path, engine=ENGINE | {"max_cpu_loras": 5})
    plan = placer.plan(problem, surrogate=fair_surrogate(), workers=1, **WINDOW)
    assert plan.verdict == "accepted"
    assert {gpu.engine.max_cpu_loras for gpu in plan.gpus} == {5}
    assert all(gpu.engine.max_loras <= 5 for gpu in plan.gpus)
    assert any(len(gpu.adapters) > 5 for gpu in plan.gpus)


def test_the_memory_of_the_host_limits_slots_and_cache(tmp_path: Path) -> None:
    """At rank 32 an adapter has 176 MiB: two GiB hold eleven, also where a GPU has more adapters."""
    problem = small_problem(tmp_path, gpu_types=gpu_types(2.0), adapters=many_adapters(20, rate_rps=0.05))
    assert problem.most_cpu_loras(0, 32) == 11
    model = FeasibilityModel(problem, fair_surrogate())
    assert model.slots.limit(0, 32) == 11
    assert problem.replica(0, 4, 32, 20).engine.max_cpu_loras == 11
    assert problem.replica(0, 4, 32, 6).engine.max_cpu_loras == 6
    refused = problem.replica(0, 12, 32, 20).memory()
    assert refused.failure is StartFailure.CPU_CACHE_TOO_SMALL
    assert "max_cpu_loras (11) must be >= max_loras (12)" in refused.message
    with pytest.raises(InputError, match="max_cpu_loras"):
        validate_placement(problem, Placement((GpuAssignment(0, tuple(range(20)), 12, 32),)))


def test_surrogates_are_asked_about_the_cache_that_the_replica_has(tmp_path: Path) -> None:
    """Features and the replica that is simulated agree, with and without a limit."""
    for limit in (2.0, None):
        problem = small_problem(tmp_path, gpu_types=gpu_types(limit), adapters=many_adapters(20, rate_rps=0.05))
        gpus = [GpuAssignment(0, tuple(range(count)), min(count, 4), 32) for count in (1, 5, 11, 12, 20)]
        model = FeasibilityModel(problem, fair_surrogate())
        rows = np.array([problem.aggregates[list(gpu.adapters)].sum(axis=0) for gpu in gpus])
        asked = model.features(rows, model.settings_of(gpus))[:, CPU_LORAS]
        assert asked.tolist() == [replica_of_gpu(problem, gpu).engine.max_cpu_loras for gpu in gpus]


def test_boxes_of_the_certified_bound_hold_the_features_of_their_sets(tmp_path: Path) -> None:
    """With a limit on CPU memory, too: each set that may be on a GPU is between the corners of some box."""
    problem = small_problem(tmp_path, gpu_types=gpu_types(2.0), adapters=many_adapters(20, rate_rps=0.05))
    model = FeasibilityModel(problem, fair_surrogate())
    boxes = root_boxes(model, single_types(problem), 0)
    lower, upper = feature_corners(model, boxes)
    for count in (1, 3, 11, 12, 20):
        for slots in model.slot_options(0, count, 32):
            gpu = GpuAssignment(0, tuple(range(count)), slots, 32)
            row = model.features(problem.aggregates[list(gpu.adapters)].sum(axis=0)[None], model.settings_of([gpu]))[0]
            inside = (lower <= row * (1 + 1e-6)).all(axis=1) & (row <= upper * (1 + 1e-6)).all(axis=1)
            assert inside.any(), (count, slots)


def test_adapters_that_are_read_from_disk_cost_gpus(tmp_path: Path) -> None:
    """Ninety adapters that one GPU serves from CPU memory; with room for eleven, it waits for the disk."""
    adapters = many_adapters(90, rate_rps=0.2)
    verdicts = {}
    for limit in (None, 2.0):
        problem = small_problem(tmp_path, gpu_types=gpu_types(limit), adapters=adapters, engine=ENGINE)
        gpu = GpuAssignment(0, tuple(range(90)), 11, 32)
        (verdicts[limit],) = TwinVerifier(problem, SETTINGS).verify([gpu])
    assert verdicts[None].is_accepted
    assert not verdicts[2.0].is_accepted
    limited = small_problem(tmp_path, gpu_types=gpu_types(2.0), adapters=adapters, engine=ENGINE)
    plan = placer.plan(limited, solver="bfd", workers=1, **WINDOW)
    assert (plan.verdict, plan.num_gpus) == ("accepted", 2)
    assert all((gpu.engine.max_cpu_loras or 0) <= 11 for gpu in plan.gpus)


def test_the_certified_bound_is_no_more_than_what_was_found(tmp_path: Path) -> None:
    """Patterns prove it of the shipped network, whose question has a smaller CPU cache than adapters."""
    adapters = many_adapters(90, rate_rps=0.2)
    problem = small_problem(tmp_path, gpu_types=gpu_types(2.0), adapters=adapters, engine=ENGINE)
    surrogate = surrogate_for(problem, "auto", horizon_s=400.0, warmup_s=100.0, seed=0, workers=1)
    result = get_solver("patterns").solve(problem, surrogate, budget=Budget(None, 20_000))
    assert result.bound is not None
    assert result.placement is not None
    assert 1 <= result.bound.value <= result.placement.num_gpus


def test_a_single_replica_is_simulated_with_the_limit(tmp_path: Path) -> None:
    """`placer simulate` without a plan: all adapters on one GPU, of which so many stay in CPU memory."""
    problem = small_problem(tmp_path, gpu_types=gpu_types(2.0), adapters=many_adapters(20, rate_rps=0.05))
    _, replica = replica_for(problem, plan=None, gpu=None, max_loras=None, max_lora_rank=None)
    assert (replica.engine.max_loras, replica.engine.max_cpu_loras) == (11, 11)


def test_the_number_follows_from_the_memory_or_is_given(tmp_path: Path) -> None:
    """Not both."""
    with pytest.raises(InputError, match="must be left out where a GPU type has `cpu_memory_gib`"):
        small_problem(tmp_path, gpu_types=gpu_types(2.0), engine=ENGINE | {"max_cpu_loras": 8})


def test_memory_for_no_adapter_is_refused(tmp_path: Path) -> None:
    """Nothing could be served."""
    with pytest.raises(InputError, match=r"max_cpu_loras \(0\) must be >= max_loras \(1\)"):
        small_problem(tmp_path, gpu_types=gpu_types(0.001))
