"""What each target has in common: files made of the table, and replicas read back from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from placer.export.annotation import Annotation
from placer.export.arguments import carried_settings, read_arguments
from placer.export.fleet_table import FleetTable
from placer.export.placement import PlacedReplica, Placement, placement
from placer.plan_document import AdapterShare
from twin.errors import InputError

Files = Mapping[str, str]


@dataclass(frozen=True)
class Imported:
    """What files of a target say.

    Attributes
    ----------
    annotated
        What the target has no field for, and was taken from: one sentence.
    """

    placement: Placement
    annotated: str


@dataclass(frozen=True)
class Target:
    """A kind of files.

    Attributes
    ----------
    name
        As users ask for it; its folder.
    write
        Returns the content of the files, by path below the folder.
    read
        Returns what such files say; raises InputError where they are none.
    """

    name: str
    write: Callable[[FleetTable], dict[str, str]]
    read: Callable[[Files], Imported]


def replica_of_arguments(arguments: list[str], annotation: Annotation, *, where: str) -> PlacedReplica:
    """Return the replica that runs with the arguments after ``vllm serve``."""
    said = read_arguments(arguments, where=where)
    adapters = tuple(said.modules) if annotation.adapters is None else annotation.adapters
    return annotation.replica_with(adapters=adapters, engine=said.engine, where=where)


def imported(
    annotations: Mapping[str, Annotation], replicas: Mapping[str, PlacedReplica], *, annotated: str
) -> Imported:
    """Return replicas, each with its annotation, as an import.

    Parameters
    ----------
    annotations, replicas
        By file, or by another name of the place.

    Raises
    ------
    InputError
        When there are none, they are of different models, two have one name, or shares are not 1 in sum.
    """
    models = {annotation.model: where for where, annotation in annotations.items()}
    if len(models) != 1:
        raise InputError(f"an import must be of replicas of one model. Got {', '.join(sorted(models)) or 'none'}.")
    names: dict[str, str] = {}
    for where, replica in replicas.items():
        if replica.name in names:
            raise InputError(
                f"replicas must have different names. {where} and {names[replica.name]} are {replica.name!r}."
            )
        names[replica.name] = where
    _check_shares(list(replicas.values()))
    return Imported(placement=placement(next(iter(models)), replicas.values()), annotated=annotated)


def missing_settings(table: FleetTable) -> str:
    """Return the settings that arguments cannot say, in words, for messages."""
    names = {name for row in table.rows for name in row.engine.model_dump().keys() - carried_settings(row.engine)}
    return ", ".join(sorted(names))


def _check_shares(replicas: list[PlacedReplica]) -> None:
    on: dict[str, list[AdapterShare | None]] = {}
    for replica in replicas:
        own = {entry.adapter: entry for entry in replica.shares}
        for name in replica.adapters:
            on.setdefault(name, []).append(own.get(name))
    for name, shares in on.items():
        total = sum(1.0 if entry is None else entry.share for entry in shares)
        if abs(total - 1.0) > 1e-6:
            raise InputError(
                f"the shares of an adapter must be 1 in sum. Got {total:g} for {name!r} on {len(shares)} replicas.",
                field="shares",
                value=name,
                hint="export again, or give every replica of it a share",
            )
