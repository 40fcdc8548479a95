"""Surrogates that users name as ``module:object``: any `Surrogate`, or a function of a set's sums."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from predictors.aggregate_oracle import AggregateOracle
from predictors.features import FEATURE_SCHEMA
from predictors.surrogate import Surrogate
from solvers.problem import Problem
from twin.errors import SurrogateError

# Memory that no number of slots fills, and step times beside which no adapter is work: what an oracle decides itself.
_ENDLESS_GIB = 1e6
_COST_SHARE = 1e-6

_HINT = "name a class without arguments, an object or a function, such as mymodule:Oracle or oracle.py:feasible"


def names_object(choice: str) -> bool:
    """Return whether a choice of surrogate is of the form ``module:object``."""
    module, colon, name = choice.rpartition(":")
    return bool(colon) and bool(module) and name.isidentifier()


def load_object(choice: str) -> Surrogate:
    """Return the surrogate that ``module:object`` names; a module may be the path of a Python file.

    A class is called without arguments. What has `predict` is a surrogate; what has `feasible`, or is a function, is
    asked about sums (`predictors.aggregate_oracle`).

    Raises
    ------
    SurrogateError
        When module or object cannot be loaded, or the object is neither.
    """
    module, _, name = choice.rpartition(":")
    try:
        loaded: Any = getattr(_load_module(module), name)
        if isinstance(loaded, type):
            loaded = loaded()
    except ImportError as error:
        # Without its cause: a library of ours that is missing is another kind of error than a name that is wrong.
        raise _unloadable(choice, error) from None
    except Exception as error:
        raise _unloadable(choice, error) from error
    if hasattr(loaded, "predict"):
        return _with_our_schema(loaded, choice)
    feasible = getattr(loaded, "feasible", loaded)
    if not callable(feasible):
        raise SurrogateError(
            f"a surrogate must have `predict` and `schema`, or `feasible`. {choice!r} is a {type(loaded).__name__}.",
            field="surrogate",
            value=choice,
            hint=_HINT,
        )
    return AggregateOracle(feasible)


def _unloadable(choice: str, error: Exception) -> SurrogateError:
    return SurrogateError(
        f"the surrogate {choice!r} must be an object that can be loaded. {type(error).__name__}: {error}.",
        field="surrogate",
        value=choice,
        hint=_HINT,
    )


def without_physics(problem: Problem) -> Problem:
    """Return the problem for an oracle, which decides about slots and memory itself.

    Memory never binds, and step times are a millionth of themselves: adapters keep their order by work, and the work
    bound, which holds for the twin and not for the oracle, is one GPU.
    """
    gpu_types = tuple(gpu_type.model_copy(update={"memory_gib": _ENDLESS_GIB}) for gpu_type in problem.gpu_types)
    profiles = []
    for profile in problem.profiles:
        terms = profile.step_time
        scaled = {name: getattr(terms, name) * _COST_SHARE for name in type(terms).model_fields}
        memory = profile.memory.model_copy(update={"measured": ()})
        profiles.append(
            profile.model_copy(
                update={
                    "step_time": terms.model_copy(update=scaled),
                    "memory": memory,
                    "gpu_memory_gib": _ENDLESS_GIB,
                }
            )
        )
    return replace(problem, gpu_types=gpu_types, profiles=tuple(profiles))


def _with_our_schema(surrogate: Any, choice: str) -> Surrogate:
    schema = getattr(surrogate, "schema", None)
    if schema != FEATURE_SCHEMA:
        raise SurrogateError(
            f"a surrogate's `schema` must be the features of this version, predictors.features.FEATURE_SCHEMA. "
            f"{choice!r} has another one.",
            field="surrogate",
            value=choice,
            hint="docs/bring-your-own-surrogate.md describes the features",
        )
    checked: Surrogate = surrogate
    return checked


def _load_module(name: str) -> ModuleType:
    """Import a module, also from the current folder, or run a Python file as one."""
    if not name.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(name)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
