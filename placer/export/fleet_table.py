"""The table behind every export: each replica with vLLM's arguments, its adapters and its endpoint, and the routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from placer.export.annotation import Annotation
from placer.export.arguments import (
    carried_settings,
    check_further,
    engine_arguments,
    engine_environment,
    module_arguments,
)
from placer.export.names import resource_names
from placer.export.options import ExportOptions
from placer.plan_document import AdapterShare, Plan
from twin.engine import EngineConfig
from twin.errors import InputError

_RUNTIME_LOADING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


@dataclass(frozen=True)
class ReplicaRow:
    """One replica of the plan, as it is to run.

    Attributes
    ----------
    name, gpu_type, engine, shares
        As in the plan.
    resource
        Name for units, resources, clusters and upstreams; see `resource_names`.
    adapters
        Path or id of each adapter, by name, in the plan's order.
    host, port
        Where routers reach it.
    gpu
        Number of its GPU on its host, in the order of the PCI bus, as ``nvidia-smi`` lists them.
    """

    name: str
    resource: str
    gpu_type: str
    engine: EngineConfig
    adapters: dict[str, str]
    shares: tuple[AdapterShare, ...]
    host: str
    port: int
    gpu: int

    @property
    def url(self) -> str:
        """Where requests go, without a path."""
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Route:
    """Part of an adapter's requests, in (0, 1], and the replica that gets it."""

    replica: ReplicaRow
    share: float


@dataclass(frozen=True)
class FleetTable:
    """A plan as it is to run.

    Attributes
    ----------
    model
        The plan's name of the model.
    options
        What was given beyond the plan.
    rows
        Replicas in the plan's order.
    adapter_resources
        Name of each adapter for resources, by name, in the order of the first replica that serves it.
    """

    model: str
    options: ExportOptions
    rows: tuple[ReplicaRow, ...]
    adapter_resources: dict[str, str]

    @property
    def model_path(self) -> str:
        """What vLLM loads."""
        return self.options.model or self.model

    @property
    def base_name(self) -> str:
        """Name of the base model in requests."""
        return self.options.served_model_name or self.model_path

    def routes(self) -> dict[str, tuple[Route, ...]]:
        """Return which replicas serve each adapter, by name; their shares are 1 in sum."""
        found: dict[str, list[Route]] = {name: [] for name in self.adapter_resources}
        for row in self.rows:
            shares = {entry.adapter: entry.share for entry in row.shares}
            for name in row.adapters:
                found[name].append(Route(replica=row, share=shares.get(name, 1.0)))
        return {name: tuple(routes) for name, routes in found.items()}

    def serve_arguments(self, row: ReplicaRow, *, port: int, has_modules: bool = True) -> tuple[str, ...]:
        """Return what follows ``vllm serve``; without modules, adapters are loaded later."""
        served = self.options.served_model_name
        return (
            self.model_path,
            *(("--served-model-name", served) if served else ()),
            *("--port", str(port)),
            *engine_arguments(row.engine),
            *(module_arguments(row.adapters) if has_modules else ()),
            *self.options.vllm_arguments,
        )

    def environment(self, row: ReplicaRow, *, allows_loading: bool) -> dict[str, str]:
        """Return vLLM's environment variables for a replica."""
        loading = {_RUNTIME_LOADING: "True"} if allows_loading else {}
        return engine_environment(row.engine) | loading

    def host_environment(self, row: ReplicaRow) -> dict[str, str]:
        """Return the variables for a replica on a host, whose GPUs are numbered as the driver lists them."""
        loading = self.environment(row, allows_loading=self.options.allow_runtime_loading)
        return loading | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(row.gpu)}

    def annotation(self, row: ReplicaRow) -> Annotation:
        """Return what arguments do not say about a replica."""
        carried = carried_settings(row.engine)
        rest = {name: value for name, value in row.engine.model_dump().items() if name not in carried}
        return Annotation(model=self.model, replica=row.name, gpu_type=row.gpu_type, shares=row.shares, engine=rest)

    def whole_annotation(self, row: ReplicaRow) -> Annotation:
        """Return all about a replica but its adapters, for targets that say nothing of its engine."""
        return self.annotation(row).model_copy(update={"engine": row.engine.model_dump()})


def fleet_table(plan: Plan, options: ExportOptions) -> FleetTable:
    """Return the table of a plan.

    Raises
    ------
    InputError
        When the plan has no placement, GPUs have equal names, there are too few hosts or ports, or an option or a name
        cannot be used.
    """
    _check(plan, options)
    resources = resource_names((gpu.name for gpu in plan.gpus), prefix=options.name_prefix)
    endpoints = _endpoints([gpu.name for gpu in plan.gpus], [resources[gpu.name] for gpu in plan.gpus], options)
    rows = tuple(
        ReplicaRow(
            name=gpu.name,
            resource=resources[gpu.name],
            gpu_type=gpu.gpu_type,
            engine=gpu.engine,
            adapters={name: options.source_of(name) for name in gpu.adapters},
            shares=gpu.shares,
            host=host,
            port=port,
            gpu=number,
        )
        for gpu, (host, port, number) in zip(plan.gpus, endpoints, strict=True)
    )
    adapters = dict.fromkeys(name for gpu in plan.gpus for name in gpu.adapters)
    names = resource_names(adapters)
    return FleetTable(
        model=plan.configuration.model,
        options=options,
        rows=rows,
        adapter_resources={name: names[name] for name in adapters},
    )


def _check(plan: Plan, options: ExportOptions) -> None:
    if not plan.gpus:
        raise InputError(
            f"a plan must have a placement to be exported. This one has none: {plan.message or plan.termination}.",
            field="gpus",
            hint="plan again with a larger --budget, or ask `placer solve --why-not`",
        )
    names = [gpu.name for gpu in plan.gpus]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"GPUs of a plan must have different names. Got {repeated[0]!r} again.", field="gpus")
    check_further(options.vllm_arguments)
    unknown = options.adapter_sources.keys() - {name for gpu in plan.gpus for name in gpu.adapters}
    words = [*names, *options.adapter_sources.values(), *(name for gpu in plan.gpus for name in gpu.adapters)]
    broken = next((word for word in words if "\0" in word), None)
    if broken is not None:
        raise InputError(f"names and paths must be without NUL characters. Got {broken!r}.", value=broken)
    if unknown:
        raise InputError(
            f"`adapter_sources` must be about adapters of the plan. Got {min(unknown)!r}.",
            field="adapter_sources",
            value=min(unknown),
        )


def _endpoints(names: list[str], resources: list[str], options: ExportOptions) -> list[tuple[str, int, int]]:
    """Return host, port and number of the GPU of each replica."""
    if options.in_cluster:
        return [(f"{resource}.{options.namespace}.svc", options.port, 0) for resource in resources]
    fixed = {name: (end.host, end.port, end.gpu) for name, end in options.endpoints.items()}
    _check_endpoints(fixed, options, names)
    hosts, num_open = options.hosts, len(names) - len(fixed)
    per_host = options.gpus_per_host or (len(names) if len(hosts) == 1 else 1)
    if options.port + per_host - 1 > 65535:
        raise InputError(
            f"ports must be below 65536. Got {options.port} and the {per_host - 1} after it.", field="port"
        )
    ports = {(host, port) for host, port, _ in fixed.values()}
    gpus = {(host, gpu) for host, _, gpu in fixed.values()}
    free = [
        (host, options.port + gpu, gpu)
        for host in hosts
        for gpu in range(per_host)
        if (host, gpu) not in gpus and (host, options.port + gpu) not in ports
    ]
    if len(free) < num_open:
        raise InputError(
            f"hosts must have a GPU for each of the {num_open} replicas without an endpoint. Got {len(hosts)} with "
            f"{per_host} each, and {len(free)} of those free.",
            field="hosts",
            value=list(hosts),
            hint="name further hosts, or raise `gpus_per_host`",
        )
    places = iter(free)
    return [fixed[name] if name in fixed else next(places) for name in names]


def _check_endpoints(fixed: Mapping[str, tuple[str, int, int]], options: ExportOptions, names: list[str]) -> None:
    unknown = options.endpoints.keys() - set(names)
    if unknown:
        raise InputError(
            f"`endpoints` must be about GPUs of the plan. Got {min(unknown)!r}.", field="endpoints", value=min(unknown)
        )
    for places in ([end[:2] for end in fixed.values()], [(host, gpu) for host, _, gpu in fixed.values()]):
        if len(set(places)) < len(places):
            raise InputError(
                "`endpoints` must differ in port and GPU on a host. Two of them do not.", field="endpoints"
            )
