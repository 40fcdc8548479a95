"""A surrogate that is no approximation: it asks the twin, and remembers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import joblib
import numpy as np
from numpy.typing import NDArray

from predictors.canonical import canonical_adapters
from predictors.features import AGGREGATE_NAMES, ENGINE_NAMES, FEATURE_SCHEMA, FeatureSchema, offered_tps
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput
from twin.engine import EngineConfig
from twin.hardware import GpuType, ModelArchitecture
from twin.memory import check_memory
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import simulate
from twin.workload import Workload

_NUM_AGGREGATES = len(AGGREGATE_NAMES)
_SUM_RATE = AGGREGATE_NAMES.index("sum_rate_rps")

# One prediction: the five outputs in the order of OUTPUT_NAMES.
_Row = tuple[float, float, float, float, float]


class ExactSurrogate:
    """The twin behind the interface of a surrogate.

    `predict_members` simulates that very set of adapters; `predict` knows only the features and simulates a
    canonical population that has them. Both take the engine settings from the row. A replica that does not start, or
    whose slots are smaller than a rank in the set, gets ratio 0 and probability 1. Where no request completed,
    latencies are the horizon: a lower bound. `throughput_ratio` is the report's `served_ratio`: 1 while nothing is
    overdue, however much of a light load is in service when the simulation ends.

    Parameters
    ----------
    workload
        The adapters that members refer to.
    model, gpu, profile
        What the replicas are made of.
    engine_template
        Settings that are no features (block size, rule set, ...).
    horizon_s, warmup_s
        Simulated time, and its part that is not counted, in seconds.
    seed
        Of the traffic.
    cache_size
        Predictions remembered; the least recently used one is dropped first.
    workers
        Threads that simulate.

    Attributes
    ----------
    num_lookups, num_simulations
        Rows asked for, and those among them that were simulated, since the surrogate was made.
    """

    def __init__(
        self,
        workload: Workload,
        model: ModelArchitecture,
        gpu: GpuType,
        engine_template: EngineConfig,
        profile: PerformanceProfile,
        *,
        horizon_s: float = 900.0,
        warmup_s: float = 150.0,
        seed: int = 0,
        starvation_tolerance: float = 0.1,
        cache_size: int = 4096,
        workers: int = 1,
    ) -> None:
        self.workload = workload
        self.model = model
        self.gpu = gpu
        self.engine_template = engine_template
        self.profile = profile
        self.horizon_s = horizon_s
        self.warmup_s = warmup_s
        self.seed = seed
        self.starvation_tolerance = starvation_tolerance
        self.cache_size = cache_size
        self.workers = workers
        self.num_lookups = 0
        self.num_simulations = 0
        self._memory: OrderedDict[object, _Row] = OrderedDict()

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return FEATURE_SCHEMA

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the twin does with a canonical population of each row's features."""
        rows = np.ascontiguousarray(features, dtype=np.float32)
        return self._answer([row.tobytes() for row in rows], [None] * len(rows), rows)

    def predict_members(self, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the twin does with each set of adapters under its row's engine settings.

        When the row's `sum_rate_rps` differs from the set's own (a planning margin), all rates are scaled to it; a
        trace is replayed faster, and the simulation then ends with the same request.
        """
        rows = np.ascontiguousarray(features, dtype=np.float32)
        assert len(members) == len(rows), (len(members), len(rows))
        sets = [tuple(sorted(indices)) for indices in members]
        keys = [
            (indices, self._scale(indices, row), row[_NUM_AGGREGATES:].tobytes())
            for indices, row in zip(sets, rows, strict=True)
        ]
        return self._answer(keys, sets, rows)

    def _answer(
        self, keys: Sequence[object], sets: Sequence[tuple[int, ...] | None], rows: NDArray[np.float32]
    ) -> SurrogateOutput:
        """Return the remembered predictions and simulate, each once, those that are not."""
        self.num_lookups += len(keys)
        answers: dict[object, _Row] = {}
        missing: dict[object, int] = {}
        for index, key in enumerate(keys):
            if key in self._memory:
                self._memory.move_to_end(key)
                answers[key] = self._memory[key]
            else:
                missing.setdefault(key, index)
        if missing:
            jobs = (joblib.delayed(self._simulate_row)(sets[index], rows[index]) for index in missing.values())
            # Threads: the compiled engine releases the interpreter lock.
            results: list[_Row] = joblib.Parallel(n_jobs=self.workers, backend="threading")(jobs)
            self.num_simulations += len(missing)
            for key, result in zip(missing, results, strict=True):
                answers[key] = result
                self._memory[key] = result
            while len(self._memory) > self.cache_size:
                self._memory.popitem(last=False)
        table = np.array([answers[key] for key in keys], dtype=np.float32).reshape(len(keys), len(OUTPUT_NAMES))
        output = SurrogateOutput(*np.ascontiguousarray(table.T))
        # Relative to the load of the row, so that the output is consistent with the features it was asked with.
        return replace(output, throughput_tps=output.throughput_ratio * offered_tps(rows))

    def _scale(self, indices: tuple[int, ...], row: NDArray[np.float32]) -> float:
        """Return the factor on the set's rates that the row asks for; 1.0 within the rounding of float32."""
        own = sum(self.workload.adapters[index].rate_rps for index in indices)
        asked = float(row[_SUM_RATE])
        if own <= 0.0 or abs(asked - own) <= 1e-4 * own:
            return 1.0
        return round(asked / own, 4)

    def _simulate_row(self, indices: tuple[int, ...] | None, row: NDArray[np.float32]) -> _Row:
        num_adapters = len(indices) if indices is not None else round(float(row[0]))
        if num_adapters == 0:
            return (1.0, 0.0, 0.0, 0.0, 0.0)
        replica = self._replica(row)
        if replica is None:
            return self._refusal()
        horizon_s, warmup_s = self.horizon_s, self.warmup_s
        if indices is None:
            max_model_len = replica.engine.max_model_len or self.model.max_model_len
            adapters = canonical_adapters(row[:_NUM_AGGREGATES].astype(np.float64), max_model_len=max_model_len)
            workload = Workload(adapters=adapters)
        else:
            scale = self._scale(indices, row)
            workload = self.workload.subset(list(indices)).scaled(scale)
            longest_s = workload.longest_horizon_s
            if longest_s < horizon_s:
                # A trace that is over before the horizon would leave time in which queues drain.
                horizon_s, warmup_s = longest_s, warmup_s * longest_s / horizon_s
        if max(adapter.rank for adapter in workload.adapters) > replica.engine.max_lora_rank:
            return self._refusal()
        report = simulate(
            workload,
            replica,
            horizon_s=horizon_s,
            warmup_s=warmup_s,
            seed=self.seed,
            starvation_tolerance=self.starvation_tolerance,
        )
        return _row_of(report, self.horizon_s)

    def _replica(self, row: NDArray[np.float32]) -> Replica | None:
        """Return the replica with the row's engine settings, or None if it does not start."""
        columns = dict(zip(ENGINE_NAMES, (round(float(value)) for value in row[_NUM_AGGREGATES:]), strict=True))
        settings = self.engine_template.model_dump() | {
            "max_loras": columns["max_loras"],
            "max_lora_rank": columns["max_lora_rank"],
            "max_cpu_loras": max(columns["max_cpu_loras"], columns["max_loras"]),
            "max_num_seqs": columns["max_num_seqs"],
            "max_num_batched_tokens": columns["max_num_batched_tokens"],
            "scheduler_reserve_full_isl": bool(columns["reserves_full_sequence"]),
        }
        engine = EngineConfig.model_validate(settings)
        if not check_memory(self.model, self.gpu, engine, self.profile).starts:
            return None
        return Replica(model=self.model, gpu=self.gpu, engine=engine, profile=self.profile)

    def _refusal(self) -> _Row:
        return (0.0, 1.0, 0.0, self.horizon_s, self.horizon_s)


def _row_of(report: SimulationReport, horizon_s: float) -> _Row:
    def or_horizon(value: float | None) -> float:
        if value is not None:
            return value
        return 0.0 if report.offered_tps == 0.0 else horizon_s

    return (
        report.served_ratio,
        float(report.has_starvation),
        report.throughput_tps,
        or_horizon(report.itl.p95_s),
        or_horizon(report.ttft.p95_s),
    )
