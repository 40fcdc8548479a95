"""Surrogates that users name as ``module:object``: any `Surrogate`, or a function of a set's sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from predictors.aggregate_oracle import AggregateOracle, CertifiesSums
from predictors.features import FEATURE_SCHEMA
from predictors.surrogate import Surrogate
from solvers.named_object import load_named_object
from solvers.problem import Problem
from twin.errors import SurrogateError

# Memory that no number of slots fills, and step times beside which no adapter is work: what an oracle decides itself.
_ENDLESS_GIB = 1e6
_COST_SHARE = 1e-6

_HINT = "name a class without arguments, an object or a function, such as mymodule:Oracle or oracle.py:feasible"


def load_object(choice: str) -> Surrogate:
    """Return the surrogate that ``module:object`` names; a module may be the path of a Python file.

    A class is called without arguments. What has `predict` is a surrogate; what has `feasible`, or is a function, is
    asked about sums (`predictors.aggregate_oracle`).

    Raises
    ------
    SurrogateError
        When module or object cannot be loaded, or the object is neither.
    """
    try:
        loaded = load_named_object(choice)
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
    return AggregateOracle(feasible, certificates=loaded if isinstance(loaded, CertifiesSums) else None)


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
