"""Export a plan to some targets, and import what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.export import aibrix, commands, envoy, gateway, kubernetes, nginx, routing_table, systemd
from placer.export.fleet_table import fleet_table
from placer.export.folder import read_folder
from placer.export.options import ExportOptions
from placer.export.placement import Placement, placement_of
from placer.export.target import Files, Imported, Target
from placer.plan_document import Plan
from twin.errors import InputError

TARGETS: Mapping[str, Target] = {
    module.TARGET.name: module.TARGET
    for module in (commands, systemd, kubernetes, aibrix, gateway, routing_table, envoy, nginx)
}


class ImportedFormat(BaseModel):
    """What the files of one format say.

    Attributes
    ----------
    annotated
        What the format has no field for, and where it was taken from.
    differences
        From the plan, or from the first format where no plan was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    annotated: str
    differences: tuple[str, ...]


class ImportSummary(BaseModel):
    """What an import found.

    Attributes
    ----------
    placement
        That of the first format.
    compared_with
        ``plan``, or the name of the first format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    placement: Placement
    compared_with: str
    formats: tuple[ImportedFormat, ...]

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not any(entry.differences for entry in self.formats)


def export_plan(
    plan: Plan, *, formats: Sequence[str], options: ExportOptions | None = None
) -> dict[str, dict[str, str]]:
    """Return the files of an export, by format and path: the same plan and options give the same files.

    Parameters
    ----------
    formats
        Names of `TARGETS`.

    Raises
    ------
    InputError
        When a format is unknown, the plan has no placement, or an option does not fit it.
    """
    unknown = [name for name in formats if name not in TARGETS]
    if unknown or not formats:
        raise InputError(
            f"formats must be of {', '.join(TARGETS)}. Got {', '.join(unknown) or 'none'}.",
            field="format",
            value=list(formats),
        )
    table = fleet_table(plan, options or ExportOptions())
    return {name: TARGETS[name].write(table) for name in dict.fromkeys(formats)}


def import_files(name: str, files: Files) -> Imported:
    """Return what the files of a format say.

    Raises
    ------
    InputError
        When they are not of that format.
    """
    if name not in TARGETS:
        raise InputError(f"a format must be one of {', '.join(TARGETS)}. Got {name!r}.", field="format", value=name)
    return TARGETS[name].read(files)


def import_folder(folder: Path, *, formats: Sequence[str] = (), plan: Plan | None = None) -> ImportSummary:
    """Return what an export says now, and where its formats differ from a plan or from each other.

    Parameters
    ----------
    formats
        Which of those in the folder; none: all.

    Raises
    ------
    InputError
        When the folder is no export, lacks a format, or files of it cannot be understood.
    """
    contents = read_folder(folder)
    missing = [name for name in formats if name not in contents]
    if missing:
        raise InputError(
            f"the export must have the format that is asked for. {folder} has {', '.join(contents)}. Got {missing[0]}.",
            field="format",
            value=missing[0],
        )
    found = {name: import_files(name, contents[name]) for name in formats or contents}
    first = next(iter(found))
    expected = found[first].placement if plan is None else placement_of(plan)
    return ImportSummary(
        placement=found[first].placement,
        compared_with=first if plan is None else "plan",
        formats=tuple(
            ImportedFormat(
                name=name,
                annotated=entry.annotated,
                differences=tuple(expected.differences(entry.placement)),
            )
            for name, entry in found.items()
        ),
    )


def import_schema() -> dict[str, Any]:
    """Return the JSON Schema of what an import prints."""
    schema = ImportSummary.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer import"
    return schema
