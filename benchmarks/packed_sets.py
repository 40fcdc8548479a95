"""GPUs packed against a surrogate: how many the twin rejects, and how many GPUs a small risk costs.

``python -m benchmarks.packed_sets [--oracle FILE] [--update docs/training.md]``

Best fit packs problems of four families of workloads against a surrogate, as it is and with the threshold that its
file gives for a risk; nothing is repaired. With ``--oracle`` the same problems are packed with the twin itself as
surrogate, over the horizon and with the traffic that plans are verified with, so that it rejects none of them: many
minutes of CPU time. What was counted is kept in the file, and a further run goes on there. Options: ``--profile``,
``--surrogate auto``, ``--risk 0.05``, ``--problems 4`` of each family, ``--gpus 16`` of load in each on average (from
three quarters to five quarters of it, so that rounding up to whole GPUs does not hit all problems of a family alike),
``--seed 0``, ``--smoke``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.document_tables import print_or_update, table
from placer.planning import plan
from placer.surrogates import surrogate_for
from predictors.provenance import profile_fingerprint
from predictors.surrogate import Surrogate
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.problem import Limits, Problem
from twin.atomic_write import write_atomically
from twin.engine import EngineConfig, LoraRank
from twin.hardware import GpuType, load_model
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S
from twin.lengths import LengthDistribution
from twin.parallel import available_cores
from twin.popularity import DirichletPopularity, ZipfPopularity
from twin.profile import PerformanceProfile, load_profile
from twin.workload import Adapter, Workload

DEFAULT_PROFILE = "llama-3.1-8b-h100-64gb"
RANKS: tuple[LoraRank, ...] = (8, 16, 32)

Lengths = tuple[LengthDistribution, LengthDistribution]
CHAT: Lengths = (LengthDistribution(mean=223, std=247, max=1024), LengthDistribution(mean=197, std=209, max=1024))
CONVERSATION: Lengths = (
    LengthDistribution(mean=1155, std=1110, max=8000),
    LengthDistribution(mean=211, std=163, max=1000),
)
CODE: Lengths = (LengthDistribution(mean=2050, std=1930, max=8000), LengthDistribution(mean=28, std=60, max=1000))
SUMMARY: Lengths = (LengthDistribution(mean=4500, std=2200, max=9000), LengthDistribution(mean=280, std=170, max=1000))


@dataclass(frozen=True)
class WorkloadFamily:
    """A kind of workload: the adapters' shares of the load, their lengths, and how bursty they are."""

    name: str
    what: str
    num_adapters: int
    shares: Callable[[int, np.random.Generator], NDArray[np.float64]]
    lengths: Sequence[Lengths]
    gap_cv: float = 1.0


def _discrete(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return generator.choice([0.6, 0.3, 0.15, 0.075], size=count)


def _zipf(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    weights = ZipfPopularity(0.9).probabilities(count)
    generator.shuffle(weights)
    return weights


def _log_uniform(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(10.0 ** generator.uniform(0.0, 1.5, size=count))


def _dirichlet(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return np.maximum(DirichletPopularity(0.8).probabilities(count, seed=int(generator.integers(2**31))), 1e-5)


FAMILIES = (
    WorkloadFamily("published", "four rates, chat", 240, _discrete, (CHAT,)),
    WorkloadFamily("conversation", "Zipf 0.9, conversations", 320, _zipf, (CONVERSATION,)),
    WorkloadFamily("code", "log-uniform rates, code", 200, _log_uniform, (CODE,)),
    WorkloadFamily(
        "bursty", "Dirichlet rates, chat and summaries, gaps of CV 2", 240, _dirichlet, (CHAT, SUMMARY), 2.0
    ),
)


@dataclass
class Count:
    """GPUs that were packed, and those of them that the twin rejected."""

    gpus: int = 0
    rejected: int = 0

    def add(self, other: Count) -> None:
        """Add another count."""
        self.gpus += other.gpus
        self.rejected += other.rejected

    @property
    def share(self) -> str:
        """Rejected share, as text."""
        return f"{self.rejected} ({100.0 * self.rejected / max(self.gpus, 1):.1f} %)"


@dataclass(frozen=True)
class Settings:
    """What is asked for."""

    profile: str = DEFAULT_PROFILE
    surrogate: str = "auto"
    risk: float = 0.05
    num_problems: int = 4
    load_gpus: float = 16.0
    seed: int = 0
    oracle: Path | None = None

    def load_of(self, number: int) -> float:
        """Return the load of a problem, in GPUs: the middles of equal parts of the range."""
        return self.load_gpus * (0.75 + 0.5 * (number + 0.5) / self.num_problems)


def make_problem(family: WorkloadFamily, profile: PerformanceProfile, *, load_gpus: float, seed: int) -> Problem:
    """Return a problem whose unavoidable work is that of `load_gpus` GPUs; no adapter needs a quarter of one."""
    generator = np.random.default_rng([seed, FAMILIES.index(family)])
    shares = family.shares(family.num_adapters, generator)
    ranks = generator.choice(len(RANKS), size=family.num_adapters)
    classes = generator.integers(len(family.lengths), size=family.num_adapters)
    weights = shares / shares.sum()

    def with_rates(rates: NDArray[np.float64]) -> Problem:
        adapters = tuple(
            Adapter(
                name=f"{family.name}-{index}",
                rank=RANKS[ranks[index]],
                rate_rps=float(rate),
                prompt_tokens=family.lengths[classes[index]][0],
                output_tokens=family.lengths[classes[index]][1],
                gap_cv=family.gap_cv,
            )
            for index, rate in enumerate(rates)
        )
        gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, cost_per_hour=3.0, profile=profile.name)
        return Problem(
            model=load_model(profile.model),
            gpu_types=(gpu,),
            profiles=(profile,),
            engine=EngineConfig(vllm_version="0.8.5", max_model_len=16_384),
            fixed_max_loras=None,
            fixed_max_lora_rank=None,
            objective="fewest_gpus",
            limits=Limits(),
            workload=Workload(adapters),
        )

    first = with_rates(weights)
    work = adapter_work(first, unavoidable_costs(first, 0))
    rates = np.minimum(weights * load_gpus / work.sum(), 0.25 * weights / work)
    return with_rates(rates)


def pack(problem: Problem, surrogate: str | Surrogate, *, risk: float | None, seed: int) -> Count:
    """Pack a problem with best fit, and ask the twin about every GPU; nothing is repaired or improved."""
    made = plan(
        problem,
        solver="bfd",
        surrogate=surrogate,
        risk=risk,
        budget=None,
        seed=seed,
        improve=False,
        repair_rounds=0,
    )
    return Count(len(made.gpus), made.repair.rejected_at_first)


def pack_with_twin(problem: Problem, kept: Path, *, key: str, seed: int) -> Count:
    """Pack a problem with the twin itself as surrogate, or read from `kept` what was counted once."""
    counts = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if key not in counts:
        twin = surrogate_for(
            problem,
            "exact",
            horizon_s=DEFAULT_HORIZON_S,
            warmup_s=DEFAULT_WARMUP_S,
            seed=seed,
            workers=available_cores(),
        )
        count = pack(problem, twin, risk=None, seed=seed)
        counts[key] = {"gpus": count.gpus, "rejected": count.rejected}
        write_atomically(kept, json.dumps(counts, indent=2) + "\n")
    return Count(**counts[key])


def run(settings: Settings) -> list[tuple[str, ...]]:
    """Return the rows of the table, a total last."""
    profile = load_profile(settings.profile)
    totals = [Count(), Count(), Count()]
    rows = []
    for family in FAMILIES:
        counts = [Count(), Count(), Count()]
        for number in range(settings.num_problems):
            seed = settings.seed + number
            load_gpus = settings.load_of(number)
            problem = make_problem(family, profile, load_gpus=load_gpus, seed=seed)
            print(f"{family.name}, problem {number + 1} of {settings.num_problems}", file=sys.stderr)
            counts[0].add(pack(problem, settings.surrogate, risk=None, seed=seed))
            counts[1].add(pack(problem, settings.surrogate, risk=settings.risk, seed=seed))
            if settings.oracle is not None:
                key = f"{profile_fingerprint(profile)} {family.name} {load_gpus:g} {seed}"
                counts[2].add(pack_with_twin(problem, settings.oracle, key=key, seed=seed))
        for total, count in zip(totals, counts, strict=True):
            total.add(count)
        rows.append(_cells(f"**{family.name}**: {family.what}", counts))
    return [*rows, _cells("all", totals)]


def _cells(name: str, counts: Sequence[Count]) -> tuple[str, ...]:
    plain, careful, oracle = counts
    cells = (name, str(plain.gpus), plain.share, str(careful.gpus), careful.share)
    if not oracle.gpus:
        return (*cells, "-", "-", "-")
    return (*cells, str(oracle.gpus), oracle.share, f"{100.0 * (careful.gpus / oracle.gpus - 1.0):+.1f} %")


def tables(settings: Settings) -> Mapping[str, list[str]]:
    """Return the table of the document under its name."""
    header = (
        "workloads",
        "GPUs, surrogate as it is",
        "rejected",
        f"GPUs at risk {settings.risk:g}",
        "rejected",
        "GPUs, twin as oracle",
        "rejected",
        "GPUs more than the oracle's",
    )
    oracle = " --oracle FILE" if settings.oracle is not None else ""
    command = (
        f"`python -m benchmarks.packed_sets --profile {settings.profile} --problems {settings.num_problems} "
        f"--gpus {settings.load_gpus:g} --risk {settings.risk:g} --seed {settings.seed}{oracle}`"
    )
    return {f"packed sets, {settings.profile}": [*table(header, run(settings)), "", f"{command}."]}


def main() -> None:
    """Pack, simulate, and print the table or put it into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="shipped profile or JSON file")
    parser.add_argument("--surrogate", default="auto", help="auto or an ONNX file")
    parser.add_argument("--risk", type=float, default=0.05, help="share of packed GPUs that may be rejected")
    parser.add_argument("--problems", type=int, default=4, help="of each family")
    parser.add_argument("--gpus", type=float, default=16.0, help="load of a problem on average, in GPUs")
    parser.add_argument("--seed", type=int, default=0, help="of problems and simulations")
    parser.add_argument("--oracle", type=Path, help="JSON file of what was counted with the twin as surrogate")
    parser.add_argument("--smoke", action="store_true", help="one small problem of each family")
    parser.add_argument("--update", type=Path, help="document to put the table into")
    options = parser.parse_args()
    settings = Settings(
        options.profile,
        options.surrogate,
        options.risk,
        options.problems,
        options.gpus,
        options.seed,
        options.oracle,
    )
    if options.smoke:
        settings = replace(settings, num_problems=1, load_gpus=2.0)
    print_or_update(tables(settings), options.update)


if __name__ == "__main__":
    main()
