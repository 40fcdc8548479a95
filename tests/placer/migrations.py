"""Replay the steps of a migration as a cluster would, and find what must never be."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from placer.plan_document import Plan
from placer.replan_document import MigrationStep, Replan


@dataclass
class Replica:
    """What runs: adapters that are loaded, and those whose requests it gets."""

    max_lora_rank: int
    max_loras: int
    loaded: set[str] = field(default_factory=set)
    routed: set[str] = field(default_factory=set)


def share_names(plan: Plan) -> dict[str, set[str]]:
    """Return whom each GPU serves, as the steps name them: an equal share of an adapter as ``a [1/3]``."""
    return {
        gpu.name: {
            *({*gpu.adapters} - {entry.adapter for entry in gpu.shares}),
            *(f"{entry.adapter} [{entry.replica}/{round(1.0 / entry.share)}]" for entry in gpu.shares),
        }
        for gpu in plan.gpus
    }


def replay(before: Plan, made: Replan) -> Iterator[dict[str, Replica]]:
    """Yield the fleet before the first step and after each; AssertionError where a step cannot be made."""
    served = share_names(before)
    live = {
        gpu.name: Replica(gpu.engine.max_lora_rank, gpu.engine.max_loras, set(served[gpu.name]), set(served[gpu.name]))
        for gpu in before.gpus
        if gpu.name not in made.before.lost_gpus
    }
    for replica in live.values():
        replica.routed -= set(made.before.gone_adapters)
    yield live
    for step in made.migration.steps:
        _make(step, live)
        yield live


def _make(step: MigrationStep, live: dict[str, Replica]) -> None:
    if step.kind == "start":
        assert step.engine is not None
        assert step.replica not in live
        live[step.replica] = Replica(step.engine.max_lora_rank, step.engine.max_loras, set(step.adapters))
    elif step.kind == "load":
        assert not set(step.adapters) & live[step.replica].loaded
        live[step.replica].loaded |= set(step.adapters)
    elif step.kind == "shift":
        for shift in step.shifts:
            moving = set(shift.adapters)
            assert moving <= live[shift.target].loaded
            holders = {name for name, replica in live.items() if replica.routed & moving}
            assert holders == ({shift.source} if shift.source else set())
            if shift.source is not None:
                live[shift.source].routed -= moving
            live[shift.target].routed |= moving
    elif step.kind == "unload":
        assert set(step.adapters) <= live[step.replica].loaded
        assert not set(step.adapters) & live[step.replica].routed
        live[step.replica].loaded -= set(step.adapters)
    elif step.kind == "restart":
        assert step.engine is not None
        assert not live[step.replica].routed or not step.check.is_safe
        live[step.replica] = Replica(step.engine.max_lora_rank, step.engine.max_loras, set(step.adapters))
    else:
        assert not live[step.replica].routed
        del live[step.replica]
        if f"{step.replica}+next" in live:
            live[step.replica] = live.pop(f"{step.replica}+next")
    assert len(live) == step.gpus_in_use


def _adapter(name: str) -> str:
    return name.split(" [", maxsplit=1)[0]


def check_migration(before: Plan, made: Replan, ranks: dict[str, int]) -> None:
    """Assert that a safe migration can be made, serves everybody on the way, and ends at the plan.

    Parameters
    ----------
    before, made
        The plan in place, and what was made of it.
    ranks
        Of the adapters of the workload.
    """
    lost = set(made.before.lost_gpus)
    present = {name for own in share_names(before).values() for name in own if _adapter(name) in ranks}
    served = {name for gpu, own in share_names(before).items() if gpu not in lost for name in own} & present
    live: dict[str, Replica] = {}
    for live in replay(before, made):
        routed = [name for replica in live.values() for name in replica.routed]
        assert len(routed) == len(set(routed))
        assert served <= set(routed)
        served = set(routed)
        for replica in live.values():
            assert replica.routed <= replica.loaded
            assert all(ranks[_adapter(name)] <= replica.max_lora_rank for name in replica.routed)
    assert share_names(made.plan) == {name: replica.routed for name, replica in live.items()}
    assert all(replica.loaded == replica.routed for replica in live.values())
    assert all(
        (live[gpu.name].max_loras, live[gpu.name].max_lora_rank) == (gpu.engine.max_loras, gpu.engine.max_lora_rank)
        for gpu in made.plan.gpus
    )
