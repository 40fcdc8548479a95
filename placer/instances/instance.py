"""A problem to compare solvers on, with what is known about it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placer.verify import TwinSettings
from predictors.surrogate import Surrogate
from solvers.problem import Limits, Problem
from twin.engine import EngineConfig, LoraRank
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.profile import load_profile
from twin.workload import Adapter, Workload

PROFILE = "llama-3.1-8b-h100-64gb"
# The papers' lengths: ShareGPT, prompts of at most 1,024 tokens (twin/validation has the measured moments).
CHAT_PROMPT = LengthDistribution(mean=222.9, std=247.0, max=1024)
CHAT_OUTPUT = LengthDistribution(mean=196.6, std=209.0, max=1024)

_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")

# Of a problem, the problem that a comparison is about (memory and step times may be somebody else's affair) and who is
# asked about it.
SurrogateSource = Callable[[Problem], tuple[Problem, Surrogate]]


@dataclass(frozen=True)
class Judges:
    """Who decides how much a GPU takes, where an instance is made of full ones.

    Attributes
    ----------
    surrogate_of
        Who is asked first, by problem.
    twins
        How the twin simulates, once for each traffic; what it rejects under any of them is too much. Empty: it is not
        asked.
    """

    surrogate_of: SurrogateSource
    twins: tuple[TwinSettings, ...] = ()


@dataclass(frozen=True)
class Instance:
    """A problem with a name and what is known about it.

    Attributes
    ----------
    name
        Unique in a comparison, and the start of file names.
    family
        What it is one of; ``user`` for files.
    what
        One line for people.
    lower_bound
        Fewest GPUs, proven by whoever made the instance; ``None``: nothing is known.
    planted_gpus
        A placement on so many GPUs is known that whoever judges accepts: the surrogate at hand and, where the twin is
        asked, the twin.
    planted
        That placement, where it is kept: for each GPU its adapters, by index.
    replay
        The same adapters with other traffic, on which plans are tried out: what happens after the plan was made.
    rate_belief
        The surrogate is asked as if all rates were this many times as large; below 1 it is an optimist.
    """

    name: str
    family: str
    what: str
    problem: Problem
    lower_bound: int | None = None
    planted_gpus: int | None = None
    planted: tuple[tuple[int, ...], ...] = ()
    replay: Problem | None = None
    rate_belief: float = 1.0

    def fingerprint(self) -> str:
        """Return a SHA-256 (first 16 hex digits) of the problem and what is known; equal ones are the same question."""
        digest = hashlib.sha256()
        facts = [self.lower_bound, self.planted_gpus, self.rate_belief]
        digest.update(json.dumps(facts).encode())
        for problem in (self.problem, self.replay):
            if problem is not None:
                _add_problem(digest, problem)
        return digest.hexdigest()[:16]


def safe_name(text: str) -> str:
    """Return `text` with everything that does not belong into a file name replaced."""
    return _UNSAFE.sub("_", text)


def make_problem(
    adapters: Sequence[Adapter], *, workload: Workload | None = None, engine: EngineConfig | None = None
) -> Problem:
    """Return the problem of placing `adapters` on GPUs as the papers measured them, with vLLM's rules of 0.8.5."""
    profile = load_profile(PROFILE)
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, cost_per_hour=3.0, profile=profile.name)
    return Problem(
        model=load_model(profile.model),
        gpu_types=(gpu,),
        profiles=(profile,),
        engine=engine or EngineConfig(vllm_version="0.8.5", max_model_len=16_384),
        fixed_max_loras=None,
        fixed_max_lora_rank=None,
        objective="fewest_gpus",
        limits=Limits(),
        workload=workload or Workload(tuple(adapters)),
    )


def chat_adapters(ranks: Sequence[LoraRank], rates_rps: NDArray[np.float64]) -> list[Adapter]:
    """Return one adapter with the papers' lengths for each rank and rate."""
    width = len(str(len(ranks) - 1))
    return [
        Adapter(
            name=f"a{index:0{width}d}",
            rank=rank,
            rate_rps=float(rate),
            prompt_tokens=CHAT_PROMPT,
            output_tokens=CHAT_OUTPUT,
        )
        for index, (rank, rate) in enumerate(zip(ranks, rates_rps, strict=True))
    ]


def dealt_ranks(ranks: Sequence[LoraRank], count: int, generator: np.random.Generator) -> list[LoraRank]:
    """Return `ranks` dealt in turn to `count` adapters, then shuffled."""
    order = generator.permutation(count)
    return [ranks[int(position) % len(ranks)] for position in order]


def _add_problem(digest: hashlib._Hash, problem: Problem) -> None:
    digest.update(problem.model.model_dump_json().encode())
    for gpu_type, profile in zip(problem.gpu_types, problem.profiles, strict=True):
        digest.update(gpu_type.model_dump_json().encode())
        digest.update(profile.model_dump_json().encode())
    settings = [problem.fixed_max_loras, problem.fixed_max_lora_rank, problem.objective]
    digest.update(json.dumps(settings).encode())
    digest.update(problem.engine.model_dump_json().encode())
    digest.update(problem.limits.model_dump_json().encode())
    digest.update(problem.ranks.tobytes())
    digest.update(problem.aggregates.tobytes())
    digest.update("\n".join(adapter.name for adapter in problem.adapters).encode())
    trace = problem.workload.trace
    if trace is not None:
        for column in (trace.arrival_ns, trace.adapter, trace.prompt_tokens, trace.output_tokens):
            digest.update(column.tobytes())
