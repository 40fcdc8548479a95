"""Transfers of one adapter from a GPU to another one, and perhaps of one back: what the two GPUs become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.secondary.search import Change, accepted_gpus


@dataclass(frozen=True)
class Transfer:
    """An adapter that leaves one GPU for another one.

    Attributes
    ----------
    source, target
        Positions of GPUs.
    adapter
        Who leaves the source.
    returned
        Who takes its place; ``None``: nobody.
    """

    source: int
    target: int
    adapter: int
    returned: int | None = None


def ask_transfers(
    model: FeasibilityModel, gpus: Sequence[GpuAssignment], transfers: Sequence[Transfer]
) -> list[Change | None]:
    """Return for each transfer what the two GPUs become, or ``None`` where the surrogate refuses one of them.

    The sources are only asked about where the targets are accepted: they have mostly less than before.
    """
    grown = accepted_gpus(
        model, [(gpus[it.target].gpu_type, _after(gpus[it.target], it, joins=True)) for it in transfers]
    )
    left = [_after(gpus[it.source], it, joins=False) for it in transfers]
    asked = [index for index, target in enumerate(grown) if target is not None and left[index]]
    shrunk = dict(
        zip(
            asked,
            accepted_gpus(model, [(gpus[transfers[index].source].gpu_type, left[index]) for index in asked]),
            strict=True,
        )
    )
    changes: list[Change | None] = []
    for index, transfer in enumerate(transfers):
        target, source = grown[index], shrunk.get(index)
        is_refused = target is None or (source is None and bool(left[index]))
        changes.append(None if is_refused else {transfer.source: source, transfer.target: target})
    return changes


def _after(gpu: GpuAssignment, transfer: Transfer, *, joins: bool) -> list[int]:
    """Return the adapters of the target (`joins`) or of the source after a transfer."""
    gone, come = (transfer.returned, transfer.adapter) if joins else (transfer.adapter, transfer.returned)
    kept = [adapter for adapter in gpu.adapters if adapter != gone]
    return kept if come is None else [*kept, come]
