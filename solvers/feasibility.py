"""Which slots a set of adapters gets on a GPU, and whether the surrogate accepts it: the hot path of every solver.

All questions of one call go to the surrogate as one batch of (sets x slot options) rows. What memory allows is
arithmetic, kept in
`solvers.slots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from predictors.aggregate_oracle import AggregateOracle
from predictors.features import AGGREGATE_NAMES, inflate, planned_features
from predictors.slots import best_options
from predictors.surrogate import (
    OUTPUT_NAMES,
    MemberSurrogate,
    Surrogate,
    SurrogateOutput,
    declares_monotone,
    empty_output,
    outside_domain,
    unwrapped,
)
from solvers import acceptance
from solvers.choices import Choices, Settings, joined, no_choices
from solvers.limits import Limits, RowLimits
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.scenario_checks import require_scenarios
from solvers.slots import SlotTables
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType

_OFFERED_COLUMNS = [AGGREGATE_NAMES.index("sum_prompt_tps"), AGGREGATE_NAMES.index("sum_output_tps")]
NUM_ADAPTERS_COLUMN = AGGREGATE_NAMES.index("num_adapters")
# Ranks are below it, so that one number stands for (type, rank).
RANK_FACTOR = 4096
# Adapters in CPU memory where nothing limits them.
UNLIMITED = np.iinfo(np.int64).max
Members = Sequence[tuple[int, ...]]
_NOBODY = np.empty(0, dtype=np.int64)


class FeasibilityModel:
    """The surrogate's view of a problem, with the memory's verdicts.

    Parameters
    ----------
    problem, surrogate
        What is placed, and who is asked.

    Attributes
    ----------
    slots
        What memory allows.
    uses_members
        Whether the surrogate can use which adapters are in a set; if not, callers need not list them.
    is_monotone
        Whether more load never helps, as the surrogate (of every GPU type) declares; see `DeclaresMonotone`.
    num_evaluations, num_calls
        Rows that the surrogate was asked for so far, and in how many batches.
    """

    def __init__(self, problem: Problem, surrogate: Surrogate) -> None:
        self.problem = problem
        self.surrogate = surrogate
        self.slots = SlotTables(problem)
        self.num_evaluations = 0
        self.num_calls = 0
        self.uses_members = _uses_members(self.surrogate_of(0))
        types = range(len(problem.gpu_types))
        # What a refusal says of larger loads holds for one set of rates.
        self.is_monotone = (
            problem.scenarios is None
            and not self.uses_members
            and all(declares_monotone(self.surrogate_of(index)) for index in types)
        )
        require_scenarios(problem.scenarios, surrogate, uses_members=self.uses_members)

    @property
    def aggregates(self) -> NDArray[np.float64]:
        """Each adapter's contribution to its set's features, float64 [A, K]; sums are exact; see `Problem`."""
        return self.problem.aggregates

    def slot_options(self, gpu_type: int, num_adapters: int, max_rank: int) -> tuple[int, ...]:
        """Return the slots to try for `num_adapters` adapters of rank `max_rank` and below; see `SlotTables`."""
        return self.slots.options(gpu_type, num_adapters, max_rank)

    def best_choice(
        self,
        rows: NDArray[np.float64],
        max_ranks: NDArray[np.int64],
        gpu_type: int | NDArray[np.int64],
        members: Members | None = None,
    ) -> Choices:
        """Choose the slots of N sets: feasible, then largest ratio, smallest starvation probability, fewest slots.

        Parameters
        ----------
        rows
            Aggregates of the sets, float64 [N, K].
        max_ranks
            Largest adapter rank of each set, int64 [N].
        gpu_type
            Index of the GPU type, for all sets or int64 [N].
        members
            Sorted adapter indices of each set, for surrogates that can use them.

        Sets that the problem's constraints do not allow are as those for which memory allows no slots.
        """
        types = np.broadcast_to(np.asarray(gpu_type), len(rows))
        oracle = self.oracle
        if oracle is not None:
            return self._keep_allowed(self._choices_of(oracle, rows, max_ranks), rows, types)
        allowed = self.allowed(rows, types)
        if allowed is not None and not allowed.all():
            asked = np.flatnonzero(allowed)
            owner, settings = self._expand(rows[asked], max_ranks[asked], types[asked])
            owner = asked[owner]
        else:
            owner, settings = self._expand(rows, max_ranks, types)
        return self._choices(rows, owner, settings, members)

    def allowed(self, rows: NDArray[np.float64], gpu_types: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return whether the constraints allow N sets on these types, bool [N]; ``None``: there are no constraints."""
        table = self.problem.constraint_table
        return None if table is None else table.allows(rows, gpu_types)

    def limits_of(self, rows: NDArray[np.float64], *, repeats: int = 1) -> Limits | RowLimits:
        """Return what GPUs that serve N sets must keep: the problem's limits, or those of each one's strictest.

        With `repeats`, each set's that many times in a row.
        """
        table = self.problem.constraint_table
        if table is None or not table.levels:
            return self.problem.limits
        limits = table.limits_of(rows, self.problem.limits)
        return limits if repeats == 1 else limits.take(np.repeat(np.arange(len(rows)), repeats))

    def _keep_allowed(self, choices: Choices, rows: NDArray[np.float64], gpu_types: NDArray[np.int64]) -> Choices:
        """Return the choices for N sets, with nothing for those that the constraints do not allow."""
        allowed = self.allowed(rows, gpu_types)
        if allowed is not None:
            nothing = no_choices(len(rows))
            for name in Choices.__dataclass_fields__:
                getattr(choices, name)[~allowed] = getattr(nothing, name)[~allowed]
        return choices

    def choice_with_slots(
        self,
        rows: NDArray[np.float64],
        max_ranks: NDArray[np.int64],
        gpu_types: NDArray[np.int64],
        max_loras: NDArray[np.int64],
        members: Members | None = None,
    ) -> Choices:
        """Judge N sets, each with the slots that it is given: one row each, where `best_choice` asks for every option.

        Parameters
        ----------
        rows, max_ranks, members
            As `best_choice` takes them.
        gpu_types, max_loras
            Of each set, int64 [N]; slots that memory does not allow are not feasible, and an oracle, which decides
            about slots itself, gives its own.
        """
        oracle = self.oracle
        if oracle is not None:
            return self._keep_allowed(self._choices_of(oracle, rows, max_ranks), rows, gpu_types)
        kv_tokens = np.zeros(len(rows), dtype=np.int64)
        kinds = gpu_types * RANK_FACTOR + max_ranks
        for kind in np.unique(kinds):
            gpu_type, max_rank = divmod(int(kind), RANK_FACTOR)
            mine = kinds == kind
            kv_tokens[mine] = self.slots.capacities(gpu_type, max_rank, max_loras[mine])
        allowed = self.allowed(rows, gpu_types)
        owner = np.flatnonzero(kv_tokens if allowed is None else (kv_tokens > 0) & allowed)
        fixed = self.problem.fixed_max_lora_rank
        ranks = max_ranks if fixed is None else np.full_like(max_ranks, fixed)
        settings = Settings(gpu_types[owner], max_loras[owner], ranks[owner], kv_tokens[owner])
        return self._choices(rows, owner, settings, members)

    def _choices(
        self, rows: NDArray[np.float64], owner: NDArray[np.int64], settings: Settings, members: Members | None
    ) -> Choices:
        """Ask about options, each of the set that `owner` names, int64 [R], and return the best one of each set."""
        repeated = None if members is None else [members[int(index)] for index in owner]
        output = self.predict(rows[owner], settings, members=repeated)
        accepted, pressure = acceptance.judge(self.limits_of(rows[owner]), output)
        chosen = best_options(owner, settings.max_loras, accepted, output)
        choices = no_choices(len(rows))
        sets = owner[chosen]
        choices.feasible[sets] = accepted[chosen]
        choices.max_loras[sets] = settings.max_loras[chosen]
        choices.max_lora_rank[sets] = settings.max_lora_rank[chosen]
        choices.throughput_ratio[sets] = output.throughput_ratio[chosen]
        choices.starvation_probability[sets] = output.starvation_probability[chosen]
        choices.itl_s[sets] = output.itl_s[chosen]
        choices.ttft_s[sets] = output.ttft_s[chosen]
        choices.pressure[sets] = pressure[chosen]
        return choices

    def predict(
        self,
        rows: NDArray[np.float64],
        settings: Settings,
        *,
        members: Members | None = None,
        load: NDArray[np.float64] | None = None,
    ) -> SurrogateOutput:
        """Ask for N sets under given settings: in one batch, unless GPU types have surrogates of their own.

        Where the problem has scenarios, each set is asked about under all of them; see `RateScenarios.worst`.

        Parameters
        ----------
        rows, members
            As `best_choice` takes them.
        settings
            Of each set.
        load
            Factor on the rates of each set, float64 [N]; ``None``: 1.
        """
        scenarios = self.problem.scenarios
        if scenarios is None:
            return self._predict(rows, settings, members, load)
        num = len(scenarios.cases)
        output = self._predict(
            self.problem.scenario_rows(rows),
            settings.take(np.tile(np.arange(len(rows)), num)),
            None if members is None else list(members) * num,
            None if load is None else np.tile(load, num),
        )
        return scenarios.worst(output, self.limits_of(rows), rows[:, _OFFERED_COLUMNS].sum(axis=1))

    def _predict(
        self,
        rows: NDArray[np.float64],
        settings: Settings,
        members: Members | None,
        load: NDArray[np.float64] | None,
    ) -> SurrogateOutput:
        """Ask for N sets with the aggregates that are given."""
        oracle = self.oracle
        if oracle is not None and load is None:
            self.count(len(rows))
            return oracle.output(rows, settings.max_lora_rank)
        features = self.features(rows, settings)
        if load is not None:
            features = inflate(features, load)
        if not len(features):
            return empty_output()
        types = np.unique(settings.gpu_type) if isinstance(self.surrogate, SurrogatePerGpuType) else [0]
        if len(types) == 1:
            return self.ask(int(types[0]), features, members)
        columns = {name: np.empty(len(rows), dtype=np.float32) for name in OUTPUT_NAMES}
        for gpu_type in types:
            mine = np.flatnonzero(settings.gpu_type == gpu_type)
            chosen = None if members is None else [members[int(index)] for index in mine]
            output = self.ask(int(gpu_type), features[mine], chosen)
            for name, column in columns.items():
                column[mine] = getattr(output, name)
        return SurrogateOutput(**columns)

    def ask(self, gpu_type: int, features: NDArray[np.float32], members: Members | None = None) -> SurrogateOutput:
        """Ask the surrogate of a GPU type for N rows of features, in one batch; counts N evaluations."""
        self.count(len(features))
        surrogate = self.surrogate_of(gpu_type)
        if members is not None and self.uses_members and isinstance(surrogate, MemberSurrogate):
            if self.problem.merging is not None:
                members = [self.problem.members_of(chosen) for chosen in members]
            return surrogate.predict_members(members, features)
        return surrogate.predict(features)

    def features(self, rows: NDArray[np.float64], settings: Settings) -> NDArray[np.float32]:
        """Return the features of N sets under given settings, float32 [N, F]."""
        return planned_features(
            rows[:, : len(AGGREGATE_NAMES)],
            self.problem.engine,
            max_loras=settings.max_loras,
            max_lora_rank=settings.max_lora_rank,
            kv_tokens=settings.kv_tokens,
            max_num_seqs=settings.max_num_seqs,
            most_cpu_loras=self._most_cpu_loras(settings),
        )

    def _most_cpu_loras(self, settings: Settings) -> NDArray[np.int64] | None:
        """Return how many adapters stay in CPU memory at most under each of N settings, int64 [N]; ``None``: all."""
        problem = self.problem
        if not problem.limits_cpu_memory:
            return None
        kinds, inverse = np.unique(settings.gpu_type * RANK_FACTOR + settings.max_lora_rank, return_inverse=True)
        most = [problem.most_cpu_loras(*divmod(int(kind), RANK_FACTOR)) for kind in kinds]
        limits: NDArray[np.int64] = np.array([UNLIMITED if value is None else value for value in most], dtype=np.int64)
        return limits[inverse]

    def outside_domain(self, rows: NDArray[np.float64], settings: Settings) -> NDArray[np.bool_]:
        """Return for each of N sets whether the surrogate is asked outside of what it was fitted on, bool [N]."""
        if self.problem.scenarios is not None:
            of_each = np.split(self.problem.scenario_rows(rows), len(self.problem.scenarios.cases))
            outside = np.array([self._outside(own, settings) for own in of_each])
            return np.asarray(outside.any(axis=0), dtype=np.bool_)
        return self._outside(rows, settings)

    def _outside(self, rows: NDArray[np.float64], settings: Settings) -> NDArray[np.bool_]:
        features = self.features(rows, settings)
        outside = np.zeros(len(rows), dtype=np.bool_)
        for gpu_type in np.unique(settings.gpu_type):
            mine = settings.gpu_type == gpu_type
            outside[mine] = outside_domain(self.surrogate_of(int(gpu_type)), features[mine])
        return outside

    def settings(self, gpu_type: int, max_loras: int, max_lora_rank: int) -> Settings:
        """Return the settings of one GPU as a batch of one."""
        kv_tokens = self.slots.kv_tokens(gpu_type, max_loras, max_lora_rank)
        return Settings(*(np.array([value]) for value in (gpu_type, max_loras, max_lora_rank, kv_tokens)))

    def settings_of(self, gpus: Sequence[GpuAssignment]) -> Settings:
        """Return the settings of GPUs as a batch."""
        own = self.problem.engine.max_num_seqs

        def column(values: Iterable[int]) -> NDArray[np.int64]:
            return np.fromiter(values, dtype=np.int64, count=len(gpus))

        return Settings(
            gpu_type=column(gpu.gpu_type for gpu in gpus),
            max_loras=column(gpu.max_loras for gpu in gpus),
            max_lora_rank=column(gpu.max_lora_rank for gpu in gpus),
            kv_tokens=column(self.slots.kv_tokens_of(gpu) for gpu in gpus),
            max_num_seqs=column(gpu.max_num_seqs or own for gpu in gpus),
        )

    def count(self, num_rows: int) -> None:
        """Count a question of so many rows."""
        self.num_evaluations += num_rows
        self.num_calls += 1

    @property
    def oracle(self) -> AggregateOracle | None:
        """The surrogate, if it decides about slots itself and is asked with exact sums instead of features."""
        return self.surrogate if isinstance(self.surrogate, AggregateOracle) else None

    def _choices_of(self, oracle: AggregateOracle, rows: NDArray[np.float64], max_ranks: NDArray[np.int64]) -> Choices:
        """Return what an oracle says about N sets; it knows no pressure between none and too much."""
        self.count(len(rows))
        fixed = self.problem.fixed_max_lora_rank
        ranks = max_ranks if fixed is None else np.full_like(max_ranks, fixed)
        feasible, slots = oracle.decide(rows, ranks)
        sizes = np.maximum(rows[:, NUM_ADAPTERS_COLUMN].astype(np.int64), 1)
        served = feasible.astype(np.float64)
        return Choices(
            feasible=feasible,
            max_loras=np.where(feasible, slots, sizes),
            max_lora_rank=ranks,
            throughput_ratio=served,
            starvation_probability=1.0 - served,
            itl_s=np.zeros(len(rows)),
            ttft_s=np.zeros(len(rows)),
            pressure=np.where(feasible, 0.0, np.inf),
        )

    def surrogate_of(self, gpu_type: int) -> Surrogate:
        """Return who is asked about GPUs of a type."""
        surrogate = self.surrogate
        return surrogate.for_gpu_type(gpu_type) if isinstance(surrogate, SurrogatePerGpuType) else surrogate

    def _expand(
        self, rows: NDArray[np.float64], max_ranks: NDArray[np.int64], gpu_types: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Settings]:
        """Return every (set, slot option): the position of the set, int64 [R], and the settings [R]."""
        sizes = rows[:, NUM_ADAPTERS_COLUMN].astype(np.int64)
        owners: list[NDArray[np.int64]] = []
        settings: list[Settings] = []
        kinds = gpu_types * RANK_FACTOR + max_ranks
        distinct = sorted(set(kinds.tolist()))
        for kind in distinct:
            gpu_type, max_rank = divmod(kind, RANK_FACTOR)
            sets = np.flatnonzero(kinds == kind) if len(distinct) > 1 else np.arange(len(kinds))
            owner, slots, kv_tokens = self.slots.all_options(gpu_type, max_rank, sizes[sets])
            owners.append(sets[owner])
            rank = self.slots.rank_of_slots(max_rank)
            settings.append(Settings(np.full_like(slots, gpu_type), slots, np.full_like(slots, rank), kv_tokens))
        if len(distinct) == 1:
            return owners[0], settings[0]
        return np.concatenate([_NOBODY, *owners]), joined(settings)


def _uses_members(surrogate: Surrogate) -> bool:
    """Return whether members matter: a margin or threshold forwards them also to a surrogate that ignores them."""
    return isinstance(unwrapped(surrogate), MemberSurrogate)
