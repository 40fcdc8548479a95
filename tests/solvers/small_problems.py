"""Small random problems with an optimum by brute force that keeps `max_count`, for the exact methods."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.surrogate import Surrogate, SurrogateOutput
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_problem, random_problem, with_objective
from twin.engine import LoraRank
from twin.workload import Adapter

# A second GPU type with less memory for the KV cache at a lower price.
SMALL_GPU = GPU.model_copy(update={"name": "small", "cost_per_hour": 1.25})
TYPES = (GPU, SMALL_GPU)


class FickleSurrogate(AnalyticSurrogate):
    """A surrogate that is not monotone: it also refuses sets of two adapters, and some by the parity of their load."""

    @property
    def is_monotone(self) -> bool:
        """Whether more load never helps."""
        return False

    @property
    def feature_signs(self) -> Mapping[str, int]:
        """Of which feature it is known that more never helps: of none."""
        return {}

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict, and starve what is not liked."""
        output = super().predict(features)
        adapters = features[:, FEATURE_SCHEMA.index("num_adapters")]
        odd = np.floor(features[:, FEATURE_SCHEMA.index("sum_output_tps")] / 64.0) % 3 == 1
        disliked = (adapters > 1) & ((adapters == 2) | odd)
        return replace(
            output, starvation_probability=np.where(disliked, np.float32(1.0), output.starvation_probability)
        )


class FeaturesOnly:
    """A surrogate that declares nothing."""

    def __init__(self, inner: Surrogate) -> None:
        self.inner = inner

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return self.inner.schema

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict as the inner surrogate does."""
        return self.inner.predict(features)


def small_problem(seed: int) -> Problem:
    """Return a problem of 4 to 6 adapters, on one GPU type or two, of which one may be scarce; both objectives."""
    generator = np.random.default_rng(seed)
    load = float(generator.uniform(0.5, 2.2))
    drawn = random_problem(seed, int(generator.integers(4, 7)), load_gpus=load)
    problem = make_problem([at_most_one_gpu(adapter) for adapter in drawn.adapters])
    if seed % 3 == 2:
        # Few kinds of adapters, so that types have several members.
        problem = repeated(problem, 2)
    if seed % 2:
        limit = [None, 1, 2][seed // 2 % 3]
        small = SMALL_GPU.model_copy(update={"max_count": limit})
        return with_objective(problem, "least_cost" if seed % 4 == 1 else "fewest_gpus", (GPU, small))
    return problem


def at_most_one_gpu(adapter: Adapter) -> Adapter:
    """Return the adapter with no more load than an analytic GPU can take."""
    assert adapter.prompt_tokens.mean is not None
    assert adapter.output_tokens.mean is not None
    per_request = 3e-5 * adapter.prompt_tokens.mean + 3e-4 * adapter.output_tokens.mean
    return adapter.model_copy(update={"rate_rps": min(adapter.rate_rps, 0.8 / per_request)})


def repeated(problem: Problem, kinds: int) -> Problem:
    """Return a problem of as many adapters, of which only `kinds` differ in more than the name."""
    adapters = problem.adapters
    ranks: list[LoraRank] = [16, 8]
    return make_problem(
        [
            adapters[index % kinds].model_copy(update={"name": f"a{index}", "rank": ranks[index % kinds]})
            for index in range(len(adapters))
        ]
    )


def best_objective(problem: Problem, surrogate: Surrogate) -> tuple[float, float] | None:
    """Return the best (objective, tie-break) over all divisions and GPU types; None: no placement exists."""
    model = FeasibilityModel(problem, surrogate)
    prices = [gpu_type.cost_per_hour for gpu_type in problem.gpu_types]
    known: dict[tuple[int, ...], list[int]] = {}

    def hosts(block: tuple[int, ...]) -> list[int]:
        if block not in known:
            rows = problem.aggregates[list(block)].sum(axis=0)[None]
            ranks = problem.ranks[list(block)].max()[None]
            known[block] = [
                index for index in range(len(prices)) if model.best_choice(rows, ranks, index, [block]).feasible[0]
            ]
        return known[block]

    best: tuple[float, float] | None = None
    for division in divisions(tuple(range(len(problem.adapters)))):
        for chosen in product(*(hosts(block) for block in division)):
            limits = [gpu_type.max_count for gpu_type in problem.gpu_types]
            if any(limit is not None and chosen.count(index) > limit for index, limit in enumerate(limits)):
                continue
            cost, count = sum(prices[index] for index in chosen), float(len(chosen))
            value = (cost, count) if problem.objective == "least_cost" else (count, cost)
            best = value if best is None else min(best, value)
    return best


def divisions(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every division of `items` into blocks."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in divisions(rest):
        yield [(first,), *smaller]
        for index, block in enumerate(smaller):
            yield [*smaller[:index], (first, *block), *smaller[index + 1 :]]
