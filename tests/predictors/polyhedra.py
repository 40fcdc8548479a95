"""Polyhedra for tests: random ones, sized so that sets of a few adapters are undecided, and files with them."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from predictors.catalog import shipped_surrogate
from predictors.domain import Domain
from predictors.export import export_model
from predictors.features import AGGREGATE_NAMES, FEATURE_SCHEMA
from predictors.neural_file import read_network
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.polyhedra import NUM_AGGREGATES, SETTING_NAMES, Polyhedra
from predictors.polyhedra_model import PolyhedraModel
from predictors.risk import Calibration
from twin.profile import load_profile

PROFILE = "llama-3.1-8b-h100-64gb"
# About what a GPU holds of each aggregate, and the settings around which weights are 1.
_HELD = dict(zip(AGGREGATE_NAMES, (40, 8, 3, 2e3, 1.6e3, 8e5, 1e6, 8, 20, 30, *[40] * 8), strict=True))
_TYPICAL = dict(zip(SETTING_NAMES, (16, 16, 256, 2048, 2e5, 1), strict=True))


def random_polyhedra(seed: int, *, num_pieces: int = 3, planes: int = 2, load: float = 1.0) -> Polyhedra:
    """Return polyhedra that accept about `load` GPUs' worth of adapters, with powers of all settings."""
    generator = np.random.default_rng(seed)
    num_terms, num_planes = 7, 2 + num_pieces * planes
    rates = generator.exponential(size=(NUM_AGGREGATES, num_terms)) / np.array(list(_HELD.values()))[:, np.newaxis]
    rates *= generator.uniform(size=rates.shape) < 0.4
    weights = generator.exponential(size=(num_terms, num_planes)) / (4.0 * num_terms * load)
    arrays = (
        [1.0 / value for value in _TYPICAL.values()],
        generator.uniform(1e-6, 0.1, len(SETTING_NAMES)),
        generator.normal(0.0, 0.4, (len(SETTING_NAMES), num_terms)),
        rates,
        generator.uniform(0.0, 0.2, num_terms),
        weights,
        generator.uniform(1e-3, 1e-2, num_planes),
        generator.uniform(0.5, 9.0, num_planes),
        generator.uniform(-0.5, 0.5, num_planes),
    )
    return Polyhedra.of(
        [np.array(array, dtype=np.float32) for array in arrays], num_pieces=num_pieces, num_ratio_planes=2
    )


def random_rows(seed: int, count: int) -> NDArray[np.float32]:
    """Return features from next to no load to several GPUs' worth, float32 [count, F]."""
    generator = np.random.default_rng(seed)
    held = np.array(list(_HELD.values())) * generator.uniform(0.0, 2.0, (count, NUM_AGGREGATES))
    rows = np.zeros((count, len(FEATURE_SCHEMA.names)), dtype=np.float32)
    rows[:, :NUM_AGGREGATES] = held * np.exp(generator.uniform(-4.0, 1.0, (count, 1)))
    for name, value in _TYPICAL.items():
        rows[:, FEATURE_SCHEMA.index(name)] = np.maximum(np.round(value * np.exp(generator.normal(0.0, 1.0, count))), 1)
    rows[:, FEATURE_SCHEMA.index("reserves_full_sequence")] = generator.integers(0, 2, count)
    return rows


def polyhedra_model(polyhedra: Polyhedra) -> onnx.ModelProto:
    """Return a surrogate with these polyhedra and the shipped network's latencies."""
    profile = load_profile(PROFILE)
    shipped = shipped_surrogate(PROFILE)
    assert shipped is not None
    return export_model(
        PolyhedraModel(polyhedra, read_network(shipped, profile)),
        Calibration(),
        profile=profile,
        domain=Domain.from_rows(random_rows(0, 500)),
        training={"rows": 500, "seed": 0, "errors": {}},
        producer={"numpy": np.__version__},
    )


def polyhedra_file(polyhedra: Polyhedra, folder: Path) -> OnnxSurrogate:
    """Return the surrogate, read back from a file."""
    file = folder / "polyhedra.onnx"
    onnx.save(polyhedra_model(polyhedra), str(file))
    return OnnxSurrogate.load(file)
