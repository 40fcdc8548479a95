"""Small problems for tests of the solvers' floor."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solvers.problem import Limits, ObjectiveName, Problem
from twin.engine import EngineConfig, LoraRank
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.profile import load_profile
from twin.workload import Adapter, Workload

PROFILE = "llama-3.1-8b-h100-64gb"
GPU = GpuType(name="h100-64gb", memory_gib=63.43, cost_per_hour=3.0, profile=PROFILE)


def make_adapter(
    name: str, *, rank: LoraRank = 16, rate_rps: float = 0.5, prompt: float = 220.0, output: float = 200.0
) -> Adapter:
    """Return an adapter with constant lengths."""
    return Adapter(
        name=name,
        rank=rank,
        rate_rps=rate_rps,
        prompt_tokens=LengthDistribution(mean=prompt),
        output_tokens=LengthDistribution(mean=output),
    )


def make_problem(
    adapters: Sequence[Adapter],
    *,
    gpu_types: tuple[GpuType, ...] = (GPU,),
    objective: ObjectiveName = "fewest_gpus",
    limits: Limits | None = None,
    fixed_max_loras: int | None = None,
    fixed_max_lora_rank: LoraRank | None = None,
    max_num_seqs: int = 256,
) -> Problem:
    """Return a problem on the shipped Llama profile."""
    return Problem(
        model=load_model("llama-3.1-8b"),
        gpu_types=gpu_types,
        profiles=tuple(load_profile(PROFILE) for _ in gpu_types),
        engine=EngineConfig(
            gpu_memory_utilization=0.9,
            max_num_seqs=max_num_seqs,
            max_loras=fixed_max_loras or 1,
            max_lora_rank=fixed_max_lora_rank or 16,
        ),
        fixed_max_loras=fixed_max_loras,
        fixed_max_lora_rank=fixed_max_lora_rank,
        objective=objective,
        limits=limits or Limits(),
        workload=Workload(tuple(adapters)),
    )


def random_problem(seed: int, num_adapters: int, *, load_gpus: float) -> Problem:
    """Return a problem of random ranks, rates and lengths for about `load_gpus` analytic GPUs; no adapter needs one."""
    generator = np.random.default_rng(seed)
    ranks: list[LoraRank] = [8, 16, 32]
    weights = generator.lognormal(0.0, 1.0, num_adapters)
    # 3e-4 GPU-seconds per output token are what the analytic surrogate's GPUs have to give.
    output_tps = np.minimum(weights / weights.sum() * load_gpus, 0.6) / 3.6e-4
    adapters = []
    for index in range(num_adapters):
        output = float(generator.uniform(50, 400))
        rank = ranks[int(generator.integers(3))]
        prompt = float(generator.uniform(50, 800))
        # Prompts need 3e-5 GPU-seconds per token: short outputs after long prompts would ask for more than a GPU.
        largest_rps = 0.9 / (3e-5 * prompt + 3e-4 * output)
        rate_rps = min(float(output_tps[index] / output), largest_rps)
        adapters.append(make_adapter(f"a{index}", rank=rank, rate_rps=rate_rps, prompt=prompt, output=output))
    return make_problem(adapters)


def with_objective(problem: Problem, objective: ObjectiveName, gpu_types: tuple[GpuType, ...]) -> Problem:
    """Return the problem on other GPU types and with another objective."""
    profiles = tuple(load_profile(PROFILE) for _ in gpu_types)
    return replace(problem, objective=objective, gpu_types=gpu_types, profiles=profiles)
