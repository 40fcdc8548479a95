"""Read a network back from the surrogate's file that it was exported to, so that a fit can go on from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from predictors.domain import Domain
from predictors.neural import NeuralNetwork
from predictors.physics import PhysicsLayer, smooth_physics_layer
from predictors.surrogate_file import SurrogateFile
from twin.bounded_read import MOST_MODEL_BYTES, read_bounded
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile

# What a file says of the rows and the settings that made it: enough to make it again.
_MADE_OF = ("rows", "scenarios", "seed", "time_limit_s", "datasets", "kin", "recorded", "start")


@dataclass(frozen=True)
class Start:
    """A surrogate that a fit goes on from.

    Attributes
    ----------
    network
        Its network.
    domain
        Where it was fitted, and so may be asked still.
    facts
        Name and SHA-256 of the file, and under `training` what it was made of.
    """

    network: NeuralNetwork
    domain: Domain
    facts: dict[str, Any]


def read_start(path: str | Path, profile: PerformanceProfile) -> Start:
    """Return the surrogate in a file as the start of a fit; see `read_network` for the errors."""
    network, file = read_network(path, profile), SurrogateFile.open(path)
    training = file.parsed("training") or {}
    made_of = {name: training[name] for name in _MADE_OF if name in training}
    try:
        families = [{"name": family["name"], "trials": family["trials"]} for family in training.get("families", [])]
    except (LookupError, TypeError) as error:
        raise SurrogateError(
            f"the metadata key `training` must name each of its `families` and their `trials`. {path} does not: "
            f"{error!r}.",
            file=str(path),
            field="training.families",
            hint="leave --start out, or make the surrogate again",
        ) from error
    made_of["families"] = families
    content = Path(path).read_bytes()
    facts = {"file": Path(path).name, "sha256": hashlib.sha256(content).hexdigest(), "training": made_of}
    return Start(network, file.domain(), facts)


def read_network(path: str | Path, profile: PerformanceProfile) -> NeuralNetwork:
    """Return the network of an ONNX file that `placer train` wrote; its log-odds are calibrated ones.

    Raises
    ------
    SurrogateError
        When the file is no surrogate, its model is no network of ours, or one behind the physics of other step times
        than the profile's.
    """
    SurrogateFile.open(path).require_rules()
    graph = onnx.load_model_from_string(read_bounded(path, most_bytes=MOST_MODEL_BYTES)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layer = smooth_physics_layer(profile)
    products = [
        [arrays[name] for name in node.input if name in arrays]
        for node in graph.node
        if node.op_type in {"Gemm", "MatMul"}
    ]
    expected = _physics_products(layer)
    given, layers = products[: len(expected)], products[len(expected) :]
    shapes = [[array.shape for array in product] for product in expected]
    is_behind_physics = [[array.shape for array in product] for product in given] == shapes
    if not is_behind_physics or len(layers) < 2 or any(len(product) != 2 for product in layers):
        raise SurrogateError(
            f"a fit can go on only from a network that `placer train` wrote. {path} holds another model.",
            file=str(path),
            field="start",
            hint="leave --start out, or name a surrogate of the family `neural`",
        )
    pairs = [pair for products in zip(expected, given, strict=True) for pair in zip(*products, strict=True)]
    if not all(np.allclose(array, other, rtol=1e-5) for array, other in pairs):
        raise SurrogateError(
            f"a fit can go on only from a network behind the step times of its own profile. Those in {path} are not "
            f"the ones of {profile.name}.",
            file=str(path),
            field="start",
            value=profile.name,
            hint="leave --start out: the profile is another one, or has been refitted since",
        )
    weights, biases = zip(*layers, strict=True)
    return NeuralNetwork(layer, tuple(weights), tuple(biases))


def _physics_products(layer: PhysicsLayer) -> list[list[NDArray[np.float32]]]:
    """Return the constants of the matrix products that the physics takes in a graph, in order."""
    return [[layer.sums, layer.offsets], [layer.powers], [layer.coefficients]]
