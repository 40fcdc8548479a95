"""Small problems and surrogates for tests of the product: GPUs of sixteen sequences, simulated in milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from placer.events import ignore
from placer.files import ProblemFromFile, load_problem
from placer.plan_document import Plan
from placer.recheck import Recheck, recheck_plan
from predictors.features import FEATURE_SCHEMA, FeatureSchema, offered_tps
from predictors.surrogate import SurrogateOutput
from tests.solvers.analytic import AnalyticSurrogate

PROFILE = "llama-3.1-8b-h100-64gb"
# About 9 requests/s of 100 + 100 tokens fill a GPU of sixteen sequences.
GPU_RPS = 9.0
LENGTHS = {"prompt_tokens": {"mean": 100}, "output_tokens": {"mean": 100}}


def small_data(*, num_adapters: int = 12, total_rps: float = 16.0, **changes: Any) -> dict[str, Any]:
    """Return the content of a problem file: adapters of ranks 8 and 16 with falling rates; `changes` replace fields."""
    weights = 1.0 / np.arange(1, num_adapters + 1)
    rates = total_rps * weights / weights.sum()
    adapters = [
        {"name": f"a{index}", "rank": 16 if index % 3 else 8, "rate_rps": round(float(rate), 4), **LENGTHS}
        for index, rate in enumerate(rates)
    ]
    data: dict[str, Any] = {
        "schema_version": 1,
        "model": "llama-3.1-8b",
        "gpu_types": [{"name": "h100-64gb", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE}],
        "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9},
        "limits": {"starvation_tolerance": 0.1},
        "adapters": adapters,
    }
    return data | changes


def write_problem(folder: Path, data: dict[str, Any], name: str = "problem.yaml") -> Path:
    """Write a problem file and return its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def small_problem(folder: Path, **changes: Any) -> ProblemFromFile:
    """Return the problem of `small_data`, read from a file."""
    return load_problem(write_problem(folder, small_data(**changes)))


def rechecked(plan: Plan, path: Path) -> Recheck:
    """Return what a check of a plan says that was read from `path`, with the problem of `small_problem` beside it."""
    return recheck_plan(
        plan,
        plan_path=path,
        problem_path=path.parent / "problem.yaml",
        names=(),
        engine="fast",
        horizon_s=None,
        seed=None,
        workers=1,
        compares=False,
        observer=ignore,
    )


def fair_surrogate() -> AnalyticSurrogate:
    """Return a surrogate that is about right for the small problems: a GPU is full at `GPU_RPS`."""
    return AnalyticSurrogate(speed=0.3)


class HopefulSurrogate:
    """A surrogate that accepts whatever it is asked: what packing does with an optimistic error."""

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return FEATURE_SCHEMA

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return that all is served, at once."""
        ones, zeros = np.ones(len(features), dtype=np.float32), np.zeros(len(features), dtype=np.float32)
        return SurrogateOutput(ones, zeros, offered_tps(features), zeros, zeros)

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return True for every row: it was never fitted."""
        return np.ones(len(features), dtype=np.bool_)
