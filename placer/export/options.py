"""What an export has to know beyond the plan: where the model and the adapters are, and where replicas run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from twin.errors import InputError

Program = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./][A-Za-z0-9_./+-]*$")]
Word = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20\x7f]+$")]
# What names of resources begin with leaves room for the rest of them; namespaces are labels, the others subdomains.
Prefix = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Subdomain = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$", max_length=253),
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]

_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_NAME = "{name}"
# A folder that can be mounted: an absolute path with a part of its own before that of the name.
_MOUNTABLE = re.compile(r"/[^/{:][^{:]*/")


class Endpoint(BaseModel):
    """Where a replica runs already: host, port and the number of its GPU there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Host
    port: Port
    gpu: int = Field(default=0, ge=0)


class ExportOptions(BaseModel):
    """Options of an export; each has a default that works for a first look.

    Attributes
    ----------
    model
        What vLLM loads: a path or a Hugging Face id; ``None``: the plan's name of the model.
    served_model_name
        Name of the base model in requests; ``None``: `model`.
    adapter_path
        Path or Hugging Face id of each adapter, with ``{name}`` for its name.
    adapter_sources
        Of single adapters, by name, instead of `adapter_path`.
    vllm
        Program that is started.
    vllm_arguments
        Further arguments of ``vllm serve``; none of those that the plan decides.
    allow_runtime_loading
        Whether adapters may be loaded and unloaded while a replica serves. vLLM then lets everybody who reaches its
        port do so.
    hosts, gpus_per_host, port
        Replicas take the GPUs of these hosts in the order of the plan; those of one host listen on `port` and the
        numbers after it. Without `gpus_per_host`, a single host has all replicas, and of several each has one.
    endpoints
        Of single replicas, by name: where they are already. Another replica that stays keeps its place only if those
        before it in the plan do. None of the others gets such a GPU or port.
    in_cluster
        Whether routers reach replicas by the Kubernetes Services instead, all on `port`.
    name_prefix
        What names of units and resources begin with.
    namespace, image, gpu_resource, node_selectors, labels, adapters_claim, hf_token_secret
        Of Kubernetes: image ``None``: vLLM's own of the plan's version; node labels by GPU type; labels of every
        resource; a persistent volume claim that is mounted at the folder of `adapter_path`, which is then below the
        root; a secret with the key ``token``.
    header, router_port
        HTTP header that names the adapter for routers which do not read bodies, and where those listen.
    model_header
        The same for a Gateway whose body-based router fills it in.
    gateway
        Name of the Gateway that routes are attached to.
    endpoint_picker
        Service that picks endpoints of a pool, with ``{name}`` for the pool's name.
    priority
        Of an InferenceObjective for each pool; ``None``: none is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Word | None = None
    served_model_name: Word | None = None
    adapter_path: Word = "/adapters/{name}"
    adapter_sources: dict[str, str] = {}
    vllm: Program = "vllm"
    vllm_arguments: tuple[str, ...] = ()
    allow_runtime_loading: bool = False
    hosts: tuple[Host, ...] = ("127.0.0.1",)
    gpus_per_host: int | None = Field(default=None, ge=1)
    port: Port = 8000
    endpoints: dict[str, Endpoint] = {}
    in_cluster: bool = False
    name_prefix: Prefix = "vllm"
    namespace: DnsLabel = "default"
    image: Word | None = None
    gpu_resource: Word = "nvidia.com/gpu"
    node_selectors: dict[str, dict[str, str]] = {}
    labels: dict[str, str] = {}
    adapters_claim: Subdomain | None = None
    hf_token_secret: Subdomain | None = None
    header: HeaderName = "X-Model"
    router_port: Port = 8080
    model_header: HeaderName = "X-Gateway-Model-Name"
    gateway: Subdomain = "inference-gateway"
    endpoint_picker: Word = "{name}-epp"
    priority: int | None = None

    @model_validator(mode="after")
    def _check_words(self) -> ExportOptions:
        if _NAME not in self.adapter_path:
            raise ValueError(f"`adapter_path` must have {_NAME}: adapters differ. Got {self.adapter_path!r}.")
        if self.model is not None and self.model.startswith("-"):
            raise ValueError(f"`model` must be a path or an id, not an option. Got {self.model!r}.")
        if self.adapters_claim is not None and not _MOUNTABLE.match(self.adapter_path):
            raise ValueError(
                f"`adapter_path` must be in a folder below the root for `adapters_claim`. Got {self.adapter_path!r}."
            )
        if not self.hosts or len(set(self.hosts)) < len(self.hosts):
            raise ValueError(f"`hosts` must name each host once. Got {list(self.hosts)}.")
        for labels in (self.labels, *self.node_selectors.values()):
            for key, value in labels.items():
                if not (_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)):
                    raise ValueError(f"labels must be what Kubernetes allows as such. Got {key!r}: {value!r}.")
        return self

    @property
    def adapters_folder(self) -> str:
        """The folder that has all adapters of `adapter_path`; of an id, no folder."""
        return self.adapter_path.partition(_NAME)[0].rpartition("/")[0]

    def source_of(self, adapter: str) -> str:
        """Return the path or id of an adapter.

        Raises
        ------
        InputError
            When its name makes a path that leaves the folder of `adapter_path`.
        """
        if adapter in self.adapter_sources:
            return self.adapter_sources[adapter]
        if adapter.startswith("/") or {".", ".."} & set(adapter.split("/")):
            raise InputError(
                f"a name must not lead out of the folder of `adapter_path` ({self.adapter_path}). Got {adapter!r}.",
                field="adapter_path",
                value=adapter,
                hint="name its path in `adapter_sources`",
            )
        return self.adapter_path.replace(_NAME, adapter)


def export_options(given: dict[str, Any], *, file: Path | None = None) -> ExportOptions:
    """Return options: those of a YAML or JSON file, and over them what was given apart.

    Raises
    ------
    InputError
        When the file is unreadable, or an option is unknown or invalid.
    """
    read = {} if file is None else read_mapping(file, what="export options")
    try:
        return ExportOptions.model_validate(read | given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
        raise InputError(
            f"export options must be valid. {f'`{field}`: ' if field else ''}{reason}.",
            file=None if file is None else str(file),
            field=field or None,
            value=first.get("input"),
            hint="see `placer schema export-options`",
        ) from error


def read_mapping(file: Path, *, what: str) -> dict[str, Any]:
    """Return the mapping that a YAML or JSON file is.

    Raises
    ------
    InputError
        When it is unreadable, or none.
    """
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{what} must be a YAML or JSON file. {file}: {error}.", file=str(file)) from error
    if not isinstance(data, dict):
        raise InputError(f"{what} must be a mapping. {file} is none.", file=str(file))
    return data


def options_schema() -> dict[str, Any]:
    """Return the JSON Schema of the options' file."""
    schema = ExportOptions.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer export options"
    return schema
