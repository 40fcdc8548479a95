"""Slots and feasibility: the batched answers are those of the plain definition, and memory is looked up once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.slots import GRID
from predictors.surrogate import InflatedSurrogate, SurrogateOutput, ThresholdSurrogate
from solvers import acceptance
from solvers.feasibility import FeasibilityModel
from solvers.problem import Limits
from solvers.slots import SlotTables
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from twin.errors import SurrogateError


class MemberRecorder(AnalyticSurrogate):
    """A surrogate that looks at the members, and remembers which it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def predict_members(self, members: list[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict by the features, and remember the members."""
        assert len(members) == len(features)
        self.seen += members
        return self.predict(features)


class NotANumber:
    """A surrogate that has no answer."""

    schema: FeatureSchema = FEATURE_SCHEMA

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return NaN everywhere."""
        nothing = np.full(len(features), np.nan, dtype=np.float32)
        return SurrogateOutput(nothing, nothing, nothing, nothing, nothing)


@pytest.mark.parametrize("max_rank", [8, 16, 32, 64, 128, 512])
def test_the_memory_limit_is_where_a_scan_finds_it(max_rank: int) -> None:
    """One scan over all slots is the plain version of the search."""
    problem = make_problem([make_adapter(f"a{index}", rank=8) for index in range(450)])
    tables = SlotTables(problem)
    starts = [problem.replica(0, slots, max_rank, slots).memory().starts for slots in range(1, 451)]
    limit = tables.limit(0, max_rank)
    assert starts[limit - 1]
    assert not any(starts[slots - 1] for slots in (*GRID, limit + 1) if limit < slots <= 450)
    assert tables.kv_tokens(0, limit, max_rank) == problem.replica(0, limit, max_rank, 1).memory().kv_tokens
    assert tables.kv_tokens(0, 5000, max_rank) == 0


def test_slot_options_are_the_grid_below_the_set_and_its_size() -> None:
    """More slots than adapters are of no use; more than memory allows do not start."""
    tables = SlotTables(make_problem([make_adapter(f"a{index}") for index in range(400)]))
    assert tables.options(0, 5, 16) == (5,)
    assert tables.options(0, 8, 16) == (8,)
    assert tables.options(0, 40, 16) == (8, 16, 32, 40)
    limit = tables.limit(0, 16)
    assert tables.options(0, 400, 16) == (*(value for value in GRID if value < limit), limit)


def test_fixed_slots_are_the_only_option() -> None:
    """What the user fixes is not searched."""
    adapters = [make_adapter(f"a{index}") for index in range(40)]
    tables = SlotTables(make_problem(adapters, fixed_max_loras=12, fixed_max_lora_rank=64))
    assert tables.options(0, 40, 16) == (12,)
    assert tables.options(0, 3, 16) == (12,)
    assert tables.rank_of_slots(16) == 64


def test_slots_that_do_not_start_are_no_option() -> None:
    """Without memory for one slot of a rank there is nothing to ask."""
    problem = make_problem([make_adapter("a", rank=512)], fixed_max_loras=300)
    tables = SlotTables(problem)
    assert tables.options(0, 1, 512) == ()
    model = FeasibilityModel(problem, AnalyticSurrogate())
    choices = model.best_choice(model.aggregates, problem.ranks, 0)
    assert not choices.feasible[0]
    assert (choices.max_loras[0], choices.pressure[0]) == (0, np.inf)
    assert model.num_evaluations == 0


@given(seed=st.integers(0, 10_000))
def test_the_batched_choice_is_the_one_of_the_definition(seed: int) -> None:
    """Feasible first, then the largest ratio, the smallest starvation probability, the fewest slots."""
    generator = np.random.default_rng(seed)
    problem = random_problem(seed, 40, load_gpus=2.0)
    model = FeasibilityModel(problem, AnalyticSurrogate())
    sets = [sorted(generator.choice(40, int(generator.integers(1, 41)), replace=False)) for _ in range(5)]
    rows = np.array([model.aggregates[members].sum(axis=0) for members in sets])
    ranks = np.array([problem.ranks[members].max() for members in sets])
    choices = model.best_choice(rows, ranks, 0)
    for index, members in enumerate(sets):
        options = []
        for slots in model.slot_options(0, len(members), int(ranks[index])):
            settings = model.settings(0, slots, int(ranks[index]))
            output = model.predict(rows[[index]], settings)
            accepted = bool(acceptance.accepts(problem.limits, output)[0])
            key = (not accepted, -float(output.throughput_ratio[0]), float(output.starvation_probability[0]), slots)
            options.append((key, accepted))
        (_, _, _, slots), accepted = min(options)
        assert (bool(choices.feasible[index]), int(choices.max_loras[index])) == (accepted, slots)


def test_all_rows_of_a_question_are_one_call() -> None:
    """A call has a fixed price: sets times slot options go together."""
    surrogate = AnalyticSurrogate()
    model = FeasibilityModel(random_problem(0, 60, load_gpus=2.0), surrogate)
    model.best_choice(model.aggregates.cumsum(axis=0), np.maximum.accumulate(model.problem.ranks), 0)
    assert surrogate.num_calls == 1
    assert model.num_evaluations > 60


def test_no_sets_are_no_question() -> None:
    """An empty batch has an empty answer."""
    model = FeasibilityModel(random_problem(0, 3, load_gpus=0.5), AnalyticSurrogate())
    assert len(model.best_choice(model.aggregates[:0], model.problem.ranks[:0], 0)) == 0


def test_nan_is_infeasible() -> None:
    """No comparison with NaN holds, so nothing is accepted by accident."""
    model = FeasibilityModel(random_problem(0, 3, load_gpus=0.1), NotANumber())
    assert not model.best_choice(model.aggregates, model.problem.ranks, 0).feasible.any()


def test_members_are_handed_to_those_who_look_at_them() -> None:
    """The exact surrogate must see the very set, once per slot option."""
    problem = random_problem(0, 20, load_gpus=1.0)
    recorder = MemberRecorder()
    model = FeasibilityModel(problem, recorder)
    assert model.uses_members
    everybody = tuple(range(20))
    model.best_choice(problem.aggregates.sum(axis=0)[None, :], np.array([32]), 0, [everybody])
    assert recorder.seen == [everybody] * len(model.slot_options(0, 20, 32))


@pytest.mark.parametrize(("inner", "expected"), [(AnalyticSurrogate(), False), (MemberRecorder(), True)])
def test_neither_margin_nor_threshold_hides_whether_members_matter(inner: AnalyticSurrogate, *, expected: bool) -> None:
    """The wrappers forward members in any case; listing them costs time."""
    problem = random_problem(0, 3, load_gpus=0.5)
    assert FeasibilityModel(problem, InflatedSurrogate(inner, 1.1)).uses_members is expected
    assert FeasibilityModel(problem, ThresholdSurrogate(inner, 0.1)).uses_members is expected
    assert FeasibilityModel(problem, InflatedSurrogate(ThresholdSurrogate(inner, 0.1), 1.1)).uses_members is expected


def test_each_gpu_type_may_have_its_own_surrogate() -> None:
    """Rows go to the surrogate of their type, and come back in their order."""
    types = (GPU, GPU.model_copy(update={"name": "fast"}))
    problem = with_objective(random_problem(3, 12, load_gpus=6.0), "fewest_gpus", types)
    slow, fast = AnalyticSurrogate(), AnalyticSurrogate(speed=3.0)
    model = FeasibilityModel(problem, SurrogatePerGpuType((slow, fast)))
    gpu_types = np.arange(12) % 2
    mixed = model.best_choice(problem.aggregates, problem.ranks, gpu_types)
    for index, surrogate in enumerate((slow, fast)):
        alone = FeasibilityModel(problem, surrogate).best_choice(problem.aggregates, problem.ranks, index)
        np.testing.assert_array_equal(mixed.pressure[gpu_types == index], alone.pressure[gpu_types == index])


def test_surrogates_of_several_types_must_be_asked_for_one() -> None:
    """Features do not say which GPU they are about."""
    several = SurrogatePerGpuType((AnalyticSurrogate(), AnalyticSurrogate()))
    with pytest.raises(SurrogateError, match="must be asked for one of them"):
        several.predict(np.zeros((1, len(several.schema.names)), dtype=np.float32))
    one = SurrogatePerGpuType((AnalyticSurrogate(),))
    assert len(one.predict(np.ones((1, len(one.schema.names)), dtype=np.float32))) == 1


def output_of(ratio: float, probability: float, itl_s: float, ttft_s: float) -> SurrogateOutput:
    """Return one prediction."""
    values = (ratio, probability, 100.0, itl_s, ttft_s)
    return SurrogateOutput(*(np.array([value], dtype=np.float32) for value in values))


@pytest.mark.parametrize(
    ("output", "words", "nearest"),
    [
        (output_of(1.0, 0.1, 0.05, 1.0), [], 0.5),
        (output_of(0.9, 0.49, 0.1, 2.0), [], 1.0),
        (output_of(0.89, 0.1, 0.05, 1.0), ["throughput / offered load 0.890 must be at least 0.9"], 1.1),
        (output_of(1.0, 0.5, 0.05, 1.0), ["starvation probability 0.50 must be below 0.5"], 1.0),
        (output_of(1.0, 0.1, 0.12, 1.0), ["ITL p95 120.0 ms must be at most 100 ms"], 1.2),
        (output_of(1.0, 0.1, 0.05, 2.5), ["TTFT p95 2500.0 ms must be at most 2000 ms"], 1.25),
    ],
)
def test_limits_are_judged_and_told(output: SurrogateOutput, words: list[str], nearest: float) -> None:
    """Each limit is judged apart, with its number in words; pressure reaches 1 where a limit is reached."""
    limits = Limits(itl_p95_ms=100.0, ttft_p95_ms=2000.0)
    accepted, pressure = acceptance.judge(limits, output)
    assert list(acceptance.violations(limits, output)[0]) == words
    assert bool(accepted[0]) is (not words)
    assert pressure[0] == pytest.approx(nearest, rel=1e-5)


def test_outside_domain_is_false_for_surrogates_without_one() -> None:
    """A formula has no domain; the flag exists for learned models."""
    problem = random_problem(0, 3, load_gpus=0.5)
    model = FeasibilityModel(problem, AnalyticSurrogate())
    settings = model.settings(0, 3, 32)
    assert not model.outside_domain(problem.aggregates[:1], settings)[0]


def test_surrogates_of_one_problem_must_see_the_same_features() -> None:
    """A mixture of schemas would silently read other columns."""

    class OlderSurrogate(AnalyticSurrogate):
        """A surrogate of another schema."""

        schema = FeatureSchema(version=0, names=("load",), units=("tokens/s",))

    with pytest.raises(SurrogateError, match="must have one feature schema"):
        SurrogatePerGpuType((AnalyticSurrogate(), OlderSurrogate()))
