"""What every surrogate must satisfy, as one call: the shipped ones are tested with it, and others can test theirs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from predictors.features import (
    AGGREGATE_NAMES,
    FEATURE_SCHEMA,
    adapter_aggregates,
    build_features,
    engine_row,
    inflate,
    offered_tps,
)
from predictors.surrogate import OUTPUT_NAMES, Surrogate, SurrogateOutput
from twin.engine import EngineConfig
from twin.lengths import LengthDistribution
from twin.workload import Adapter

RELATIVE_TOLERANCE = 1e-5
# Predictions may wobble against the physics by this much (ratio and probability) before they count as clearly wrong.
CLEARLY = 0.05
LOAD_FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)


def check_surrogate(surrogate: Surrogate, *, features: NDArray[np.float32] | None = None) -> None:
    """Raise AssertionError, naming the rule, unless `surrogate` keeps the contract.

    Parameters
    ----------
    surrogate
        Any implementation of the protocol.
    features
        Rows to ask about, float32 [N, F]; by default `probe_features`. An implementation that takes long per row
        wants few.
    """
    rows = probe_features() if features is None else features
    assert surrogate.schema == FEATURE_SCHEMA, "the schema must be FEATURE_SCHEMA"
    batch = surrogate.predict(rows)
    _check_output(batch, len(rows))
    _check_output(surrogate.predict(rows[:0]), 0)
    _assert_close(surrogate.predict(rows), batch, "the same question must get the same answer")
    _assert_close(surrogate.predict(rows[::-1].copy()[:]), _reversed(batch), "the order of the rows must not matter")
    singles = [surrogate.predict(row[np.newaxis]) for row in rows]
    joined = SurrogateOutput(*(np.concatenate([getattr(single, name) for single in singles]) for name in OUTPUT_NAMES))
    _assert_close(joined, batch, "a batch must equal its rows one by one")
    served = batch.throughput_ratio * offered_tps(rows)
    assert np.allclose(batch.throughput_tps, served, rtol=1e-3, atol=1e-2), "throughput must be the ratio x the load"
    unchanged = rows.copy()
    surrogate.predict(unchanged)
    assert np.array_equal(unchanged, rows), "the features must not be written to"


def check_load_monotone(surrogate: Surrogate, *, features: NDArray[np.float32] | None = None) -> None:
    """Raise AssertionError if scaling a set's rates up ever makes it clearly better by more than `CLEARLY`."""
    rows = probe_features() if features is None else features
    answers = [surrogate.predict(inflate(rows, factor)) for factor in LOAD_FACTORS]
    for lighter, heavier in pairwise(answers):
        gain = float(np.max(heavier.throughput_ratio - lighter.throughput_ratio))
        assert gain <= CLEARLY, f"more load must not raise the throughput ratio: it rose by {gain:.3f}"
        relief = float(np.max(lighter.starvation_probability - heavier.starvation_probability))
        assert relief <= CLEARLY, f"more load must not make starvation less likely: it fell by {relief:.3f}"


def probe_features(num_rows: int = 24, *, seed: int = 0) -> NDArray[np.float32]:
    """Return features of random adapter sets, light to overloaded, float32 [num_rows, F]; the last one is idle."""
    generator = np.random.default_rng(seed)
    rows = np.empty((num_rows, len(FEATURE_SCHEMA.names)), dtype=np.float32)
    for index in range(num_rows):
        count = int(generator.integers(1, 200))
        total_rps = float(np.exp(generator.uniform(np.log(0.1), np.log(60.0))))
        shares = generator.dirichlet(np.ones(count))
        prompt = LengthDistribution(mean=float(generator.uniform(100, 1200)))
        output = LengthDistribution(mean=float(generator.uniform(50, 300)))
        adapters = [
            Adapter(name=str(i), rank=8, rate_rps=total_rps * share, prompt_tokens=prompt, output_tokens=output)
            for i, share in enumerate(shares)
        ]
        aggregate = adapter_aggregates(adapters).sum(axis=0)
        slots = min(count, int(generator.choice([8, 16, 32, 64, 96])))
        engine = EngineConfig(max_loras=slots, max_lora_rank=8, max_cpu_loras=count)
        rows[index] = build_features(aggregate, engine_row(engine, kv_tokens=250_000))[0]
    rows[-1, 1 : AGGREGATE_NAMES.index("num_rank_8")] = 0.0
    return rows


def _check_output(output: SurrogateOutput, num_rows: int) -> None:
    for name in OUTPUT_NAMES:
        values = getattr(output, name)
        assert isinstance(values, np.ndarray), f"`{name}` must be a NumPy array"
        assert values.dtype == np.float32, f"`{name}` must be float32, not {values.dtype}"
        assert values.shape == (num_rows,), f"`{name}` must have the shape [{num_rows}], not {list(values.shape)}"
        assert np.isfinite(values).all(), f"`{name}` must be finite"
        assert (values >= 0.0).all(), f"`{name}` must not be negative"
    assert (output.starvation_probability <= 1.0).all(), "`starvation_probability` must be at most 1"


def _reversed(output: SurrogateOutput) -> SurrogateOutput:
    return SurrogateOutput(*(getattr(output, name)[::-1] for name in OUTPUT_NAMES))


def _assert_close(actual: SurrogateOutput, expected: SurrogateOutput, rule: str) -> None:
    for name in OUTPUT_NAMES:
        is_close = np.allclose(getattr(actual, name), getattr(expected, name), rtol=RELATIVE_TOLERANCE, atol=1e-6)
        assert is_close, f"{rule} (`{name}` differs)"
