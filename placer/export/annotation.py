"""What a target has no field for, as one line of JSON beside what it has: a comment, an annotation, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from placer.export.placement import PlacedReplica
from placer.plan_document import AdapterShare
from twin.engine import EngineConfig
from twin.errors import InputError

# Annotation, label and metadata keys; a prefix of their own keeps them apart from those of others.
DOMAIN = "lora-placer"
ANNOTATION = f"{DOMAIN}/plan"
# The adapter that a resource is about: names of resources cannot be any names.
ADAPTER_ANNOTATION = f"{DOMAIN}/adapter"
# In text files: what follows in the line is an annotation.
COMMENT = "# placer: "


class Annotation(BaseModel):
    """About one replica.

    Attributes
    ----------
    model
        The plan's name of the model.
    replica, gpu_type, shares
        As in the plan.
    adapters
        ``None``: the target says them itself.
    engine
        Settings that the target does not say itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    replica: str
    gpu_type: str
    shares: tuple[AdapterShare, ...] = ()
    adapters: tuple[str, ...] | None = None
    engine: dict[str, Any] = {}

    def text(self) -> str:
        """Return it as one line of ASCII."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True)

    def replica_with(self, *, adapters: tuple[str, ...], engine: Mapping[str, Any], where: str) -> PlacedReplica:
        """Return the replica with what the target says itself, which counts before what is noted here.

        Shares are kept of adapters that the target has.

        Raises
        ------
        InputError
            When the settings are none of an engine.
        """
        try:
            settings = EngineConfig.model_validate({**self.engine, **engine})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise InputError(
                f"{where} must have settings of vLLM. {first['loc']}: {first['msg']}.", file=where
            ) from error
        shares = tuple(entry for entry in self.shares if entry.adapter in adapters)
        return PlacedReplica(
            name=self.replica, gpu_type=self.gpu_type, adapters=adapters, shares=shares, engine=settings
        )


def read_annotation(text: str | None, *, where: str) -> Annotation:
    """Return an annotation.

    Raises
    ------
    InputError
        When there is none, or it was damaged.
    """
    if text is None:
        raise InputError(
            f"{where} must have placer's annotation: it says what the format has no field for.",
            file=where,
            hint="import what `placer export` wrote",
        )
    try:
        return Annotation.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"placer's annotation must be as `placer export` wrote it. {where}: {first['loc']}: {first['msg']}.",
            file=where,
        ) from error


def annotations_in(text: str) -> list[str]:
    """Return the annotations in the comments of a text file, in their order."""
    return [line.removeprefix(COMMENT) for line in text.split("\n") if line.startswith(COMMENT)]
