"""`placer export` and `placer import`: a plan as what runs it, and the placement read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placer.cli.exits import OK, REJECTED, print_note, print_warning, print_written, reports_errors
from placer.cli.options import JsonOption, VerboseOption

if TYPE_CHECKING:
    from placer.export.options import ExportOptions

_DEFAULT_FORMATS = "vllm,routes"


@reports_errors
def export(
    plan: Annotated[Path, typer.Argument(help="plan.json of `placer solve`.", show_default=False)],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)],
    formats: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="By commas: vllm, systemd, kubernetes, aibrix, gateway, routes, envoy, nginx."
        ),
    ] = _DEFAULT_FORMATS,
    options: Annotated[
        Path | None,
        typer.Option("--options", help="YAML file of options (placer schema export-options).", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Path or Hugging Face id of the model.", show_default=False)
    ] = None,
    adapter_path: Annotated[
        str | None,
        typer.Option(
            "--adapter-path", help="Path or id of adapters, with {name}: /adapters/{name}.", show_default=False
        ),
    ] = None,
    adapter_sources: Annotated[
        Path | None,
        typer.Option(
            "--adapter-sources", help="YAML file: name to path or id, of single adapters.", show_default=False
        ),
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Host with GPUs; repeat it for several.", show_default=False)
    ] = None,
    gpus_per_host: Annotated[
        int | None, typer.Option("--gpus-per-host", min=1, help="GPUs of each host.", show_default=False)
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="First port of a host: 8000.", show_default=False)] = None,
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="Routers reach replicas by their Kubernetes Services.")
    ] = False,
    image: Annotated[str | None, typer.Option("--image", help="Container image.", show_default=False)] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Of Kubernetes.", show_default=False)] = None,
    header: Annotated[
        str | None, typer.Option("--header", help="HTTP header that names the adapter: X-Model.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="KEY=VALUE for every resource; repeat it.", show_default=False)
    ] = None,
    vllm_arg: Annotated[
        list[str] | None, typer.Option("--vllm-arg", help="Further argument of vLLM; repeat it.", show_default=False)
    ] = None,
    runtime_loading: Annotated[
        bool, typer.Option("--runtime-loading", help="Let adapters be loaded while replicas serve.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also over a folder of something else, which is kept beside it.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Write PLAN as commands, units, cluster resources and routes that run it."""
    del verbose
    from placer.export.doubts import doubts
    from placer.export.exporting import export_plan
    from placer.export.fleet_table import fleet_table
    from placer.export.folder import check_folder, write_folder
    from placer.files import load_plan

    check_folder(output, is_forced=force)
    given: dict[str, Any] = {
        "model": model,
        "adapter_path": adapter_path,
        "hosts": host or None,
        "gpus_per_host": gpus_per_host,
        "port": port,
        "in_cluster": in_cluster or None,
        "image": image,
        "namespace": namespace,
        "header": header,
        "vllm_arguments": vllm_arg or None,
        "allow_runtime_loading": runtime_loading or None,
    }
    chosen = _options(given, options, adapter_sources, label or [])
    document = load_plan(plan)
    contents = export_plan(document, formats=[name.strip() for name in formats.split(",")], options=chosen)
    kept = write_folder(output, contents, is_forced=force)
    for sentence in doubts(fleet_table(document, chosen), contents.keys()):
        print_warning(sentence)
    if document.verdict != "accepted":
        print_warning(f"the plan is {document.verdict}: the twin does not approve of all of its GPUs.")
    if kept is not None:
        print_warning(f"what was in {output} is now in {kept}.")
    if as_json:
        summary = {
            "schema_version": 1,
            "folder": str(output),
            "replicas": len(document.gpus),
            "adapters": len({name for gpu in document.gpus for name in gpu.adapters}),
            "files": {name: sorted(files) for name, files in contents.items()},
        }
        typer.echo(json.dumps(summary, indent=2, sort_keys=True))
        return OK
    for name, files in contents.items():
        typer.echo(f"{name}: {len(files)} {'file' if len(files) == 1 else 'files'}, {output / name}")
    return OK


@reports_errors
def import_export(
    folder: Annotated[Path, typer.Argument(help="Folder that `placer export` wrote.", show_default=False)],
    *,
    formats: Annotated[
        str | None, typer.Option("--format", "-f", help="By commas; default: all of the folder.", show_default=False)
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="plan.json that it must be the same as.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Placement to write, as JSON.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Read the placement back from what `placer export` wrote, and say where formats differ from the plan."""
    del verbose
    from placer.export.exporting import import_folder
    from placer.files import load_plan
    from placer.output_paths import check_outputs
    from twin.atomic_write import write_atomically

    check_outputs({"--output": output}, inputs={"--plan": plan, "FOLDER": folder}, prints_json=as_json)
    names = [name.strip() for name in formats.split(",")] if formats else []
    summary = import_folder(folder, formats=names, plan=None if plan is None else load_plan(plan))
    if output is not None:
        write_atomically(output, summary.placement.model_dump_json(indent=2) + "\n")
        print_written(output)
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        replicas = summary.placement.replicas
        adapters = {name for replica in replicas for name in replica.adapters}
        typer.echo(f"{len(replicas)} replicas, {len(adapters)} adapters, model {summary.placement.model}")
        for entry in summary.formats:
            other = "the plan" if summary.compared_with == "plan" else summary.compared_with
            typer.echo(f"{entry.name}: {'differs from' if entry.differences else 'the same as'} {other}")
            for difference in entry.differences:
                typer.echo(f"  {difference}")
            print_note(f"{entry.name}: {entry.annotated}.")
    return OK if summary.is_same else REJECTED


def _options(given: dict[str, Any], file: Path | None, sources: Path | None, labels: list[str]) -> ExportOptions:
    from placer.export.options import export_options, read_mapping
    from twin.errors import InputError

    chosen = {name: value for name, value in given.items() if value is not None}
    if sources is not None:
        chosen["adapter_sources"] = read_mapping(sources, what="adapter sources")
    for text in labels:
        key, found, value = text.partition("=")
        if not found:
            raise InputError(f"`--label` must be KEY=VALUE. Got {text!r}.", field="label", value=text)
        chosen.setdefault("labels", {})[key] = value
    return export_options(chosen, file=file)
