"""What an export leaves to whoever deploys it, and would not work if nobody saw to it: warnings, no errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from placer.export.fleet_table import FleetTable

_CLUSTERS = frozenset({"kubernetes", "aibrix", "gateway"})
_SERVERS = _CLUSTERS | {"vllm", "systemd"}


def doubts(table: FleetTable, formats: Collection[str]) -> tuple[str, ...]:
    """Return, one sentence each, what these formats of an export take for granted."""
    return tuple(_doubts(table, frozenset(formats)))


def _doubts(table: FleetTable, formats: frozenset[str]) -> Iterator[str]:
    options = table.options
    if options.model is None and formats & _SERVERS:
        yield f"vLLM loads {table.model_path!r}, the plan's name of the model: `--model` gives its path or id."
    open_types = {row.gpu_type for row in table.rows if row.name not in options.endpoints}
    if not options.in_cluster and formats - _CLUSTERS and len(open_types) > 1:
        yield (
            f"hosts get replicas of different GPU types ({', '.join(sorted(open_types))}) in the plan's order, "
            "whatever GPUs they have: `endpoints` says where each is."
        )
    if formats & _CLUSTERS:
        yield from _unmounted(table)
        yield from _unselected(table)


def _unmounted(table: FleetTable) -> Iterator[str]:
    """Yield which files no volume of a pod has."""
    options = table.options
    sources = {source: None for row in table.rows for source in row.adapters.values() if source.startswith("/")}
    folder = "" if options.adapters_claim is None else f"{options.adapters_folder}/"
    missing = [source for source in sources if not folder or not source.startswith(folder)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield f"nothing mounts {missing[0]!r}{more} in a pod: give `adapters_claim`, an id, or an image that has it."
    if table.model_path.startswith("/"):
        yield f"nothing mounts {table.model_path!r} in a pod: give an id, or an image that has it."


def _unselected(table: FleetTable) -> Iterator[str]:
    """Yield which GPU types may get nodes of another one, where there is more than one."""
    selectors = table.options.node_selectors
    types = {row.gpu_type for row in table.rows}
    open_types = sorted(name for name in types if not selectors.get(name))
    if open_types and (len(types) > 1 or selectors):
        yield f"pods get nodes of any GPU: {', '.join(open_types)}. `node_selectors` says which nodes have it."
    unknown = sorted(selectors.keys() - types)
    if unknown:
        yield f"`node_selectors` names GPU types of no replica: {', '.join(unknown)}."
