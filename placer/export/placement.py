"""What a plan places, apart from what it predicts: what exports carry, and what is read back from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.plan_document import AdapterShare, Plan
from twin.engine import EngineConfig


class _Document(BaseModel):
    """Part of a placement: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlacedReplica(_Document):
    """One replica.

    Attributes
    ----------
    name, gpu_type, engine, shares
        As in the plan.
    adapters
        Names, sorted: their order means nothing to vLLM.
    """

    name: str
    gpu_type: str
    adapters: tuple[str, ...]
    shares: tuple[AdapterShare, ...]
    engine: EngineConfig


class Placement(_Document):
    """Replicas with their adapters, shares and settings; equal for plans that place the same.

    Attributes
    ----------
    model
        The plan's name of the model.
    replicas
        Sorted by name.
    """

    schema_version: Literal[1] = 1
    model: str
    replicas: tuple[PlacedReplica, ...]

    def differences(self, other: Placement) -> list[str]:
        """Say where another placement differs from this one, one sentence for each replica; empty: nowhere."""
        found = [] if self.model == other.model else [f"the model is {other.model}, not {self.model}"]
        own = {replica.name: replica for replica in self.replicas}
        others = {replica.name: replica for replica in other.replicas}
        found += [f"{name} is missing" for name in own.keys() - others.keys()]
        found += [f"{name} is new" for name in others.keys() - own.keys()]
        for name in own.keys() & others.keys():
            found += [f"{name}: {text}" for text in _replica_differences(own[name], others[name])]
        return sorted(found)


def placement_of(plan: Plan) -> Placement:
    """Return what a plan places."""
    return placement(
        plan.configuration.model,
        (
            PlacedReplica(
                name=gpu.name, gpu_type=gpu.gpu_type, adapters=gpu.adapters, shares=gpu.shares, engine=gpu.engine
            )
            for gpu in plan.gpus
        ),
    )


def placement(model: str, replicas: Iterable[PlacedReplica]) -> Placement:
    """Return replicas in the order, and with their adapters in the order, in which placements are compared."""
    ordered = (
        replica.model_copy(
            update={
                "adapters": tuple(sorted(replica.adapters)),
                "shares": tuple(sorted(replica.shares, key=lambda entry: entry.adapter)),
            }
        )
        for replica in sorted(replicas, key=lambda replica: replica.name)
    )
    return Placement(model=model, replicas=tuple(ordered))


def placement_schema() -> dict[str, Any]:
    """Return the JSON Schema of a placement."""
    schema = Placement.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer placement"
    return schema


def _replica_differences(one: PlacedReplica, other: PlacedReplica) -> list[str]:
    found = []
    if one.gpu_type != other.gpu_type:
        found.append(f"the GPU type is {other.gpu_type}, not {one.gpu_type}")
    lost = sorted(set(one.adapters) - set(other.adapters))
    more = sorted(set(other.adapters) - set(one.adapters))
    found += [f"lacks {_some(lost)}"] if lost else []
    found += [f"has {_some(more)}, too"] if more else []
    before, after = one.engine.model_dump(), other.engine.model_dump()
    found += [f"{name} is {after[name]}, not {before[name]}" for name in before if before[name] != after[name]]
    own, others = _by_adapter(one), _by_adapter(other)
    changed = sorted(name for name in own.keys() | others.keys() if own.get(name) != others.get(name))
    return [*found, *([f"other shares of {_some(changed)}"] if changed else [])]


def _by_adapter(replica: PlacedReplica) -> Mapping[str, AdapterShare]:
    return {entry.adapter: entry for entry in replica.shares}


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
