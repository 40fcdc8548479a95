"""What an export needs to work where it is deployed, beyond being well-formed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from placer.cli.application import app
from placer.export.doubts import doubts
from placer.export.exporting import export_plan, import_files
from placer.export.fleet_table import fleet_table
from placer.export.options import ExportOptions, export_options
from placer.files import save_plan
from tests.placer.exported import divided_plan, plan_of, planned
from twin.errors import InputError

MIXED = plan_of([planned("gpu-0", ["a"]), planned("gpu-1", ["b"], gpu_type="l4-24gb")])


def _pod(options: ExportOptions) -> dict[str, Any]:
    files = export_plan(divided_plan(), formats=["kubernetes"], options=options)["kubernetes"]
    deployment = next(iter(yaml.safe_load_all(files["vllm-gpu-0.yaml"])))
    return dict(deployment["spec"]["template"]["spec"])


@pytest.mark.parametrize(
    ("adapter_path", "folder"),
    [
        ("/adapters/{name}", "/adapters"),
        ("/adapters/{name}/final", "/adapters"),
        ("/adapters/team/lora-{name}", "/adapters/team"),
        ("/data/{name}/{name}", "/data"),
    ],
)
def test_the_claim_is_mounted_above_all_adapters(adapter_path: str, folder: str) -> None:
    """Also where the adapter's name is not the last part of its path."""
    pod = _pod(ExportOptions(adapters_claim="adapters", adapter_path=adapter_path))
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["adapters"] == folder


@pytest.mark.parametrize("adapter_path", ["{name}", "acme/{name}-lora", "/{name}", "s3://bucket/{name}"])
def test_a_claim_that_can_be_mounted_nowhere_is_refused(adapter_path: str) -> None:
    """An id is no folder, and the container's own root must stay."""
    with pytest.raises(InputError, match="folder below the root"):
        export_options({"adapters_claim": "adapters", "adapter_path": adapter_path})


@pytest.mark.parametrize("target", ["vllm", "systemd", "kubernetes"])
@pytest.mark.parametrize("further", [("-O3",), ("-O", "3"), ("--seed", "-1"), ("-cc.level=3", "--dtype=half")])
def test_short_arguments_of_vllm_are_read_back(target: str, further: tuple[str, ...]) -> None:
    """They are no adapters, though they follow those."""
    plan = divided_plan()
    files = export_plan(plan, formats=[target], options=ExportOptions(vllm_arguments=further))[target]
    adapters = [replica.adapters for replica in import_files(target, files).placement.replicas]
    assert adapters == [tuple(sorted(gpu.adapters)) for gpu in plan.gpus]


def test_names_of_a_cluster_are_those_that_kubernetes_allows() -> None:
    """A namespace is a label of 63 characters, and may begin with a digit; the others are names of subdomains."""
    options = export_options(
        {
            "namespace": "1-inference-production-eu-west-1-tenants",
            "adapters_claim": "adapters.of.tenants-in-production-with-a-long-name",
            "hf_token_secret": "hugging.face-" + "x" * 60,
            "gateway": "gateway-of-the-inference-platform-v2.internal",
        }
    )
    assert _pod(options)["volumes"][1]["persistentVolumeClaim"]["claimName"] == options.adapters_claim
    for wrong in ({"namespace": "a.b"}, {"namespace": "x" * 64}, {"gateway": "A"}, {"hf_token_secret": "a..b"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            export_options(wrong)


def test_numbers_of_gpus_are_those_that_the_driver_lists() -> None:
    """CUDA counts from the fastest on, which on hosts with different GPUs are others than `nvidia-smi` shows."""
    row = fleet_table(divided_plan(), ExportOptions()).rows[1]
    files = export_plan(divided_plan(), formats=["vllm", "systemd"])
    script = files["vllm"]["vllm-gpu-1.sh"]
    unit = files["systemd"]["127.0.0.1/vllm-gpu-1.service"]
    assert f"export CUDA_DEVICE_ORDER=PCI_BUS_ID\nexport CUDA_VISIBLE_DEVICES={row.gpu}\n" in script
    assert f'Environment="CUDA_DEVICE_ORDER=PCI_BUS_ID"\nEnvironment="CUDA_VISIBLE_DEVICES={row.gpu}"\n' in unit


def test_kubernetes_waits_as_long_as_a_start_may_take() -> None:
    """A Deployment counts as failed no sooner than its probe gives up, and a busy server has time to answer."""
    files = export_plan(divided_plan(), formats=["kubernetes"])["kubernetes"]
    deployment = next(iter(yaml.safe_load_all(files["vllm-gpu-0.yaml"])))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    startup = container["startupProbe"]
    assert deployment["spec"]["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]
    assert all(container[probe]["timeoutSeconds"] > 1 for probe in ("startupProbe", "readinessProbe", "livenessProbe"))


def test_no_router_ends_a_long_generation() -> None:
    """Envoy's idle time of five minutes and a Gateway's own limits are for short answers."""
    files = export_plan(divided_plan(), formats=["envoy", "gateway"])
    (document,) = yaml.safe_load_all(files["envoy"]["envoy.yaml"])
    manager = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = [route["route"] for route in manager["route_config"]["virtual_hosts"][0]["routes"] if "route" in route]
    assert {(route["timeout"], route["idle_timeout"]) for route in routes} == {("0s", "3600s")}
    documents = list(yaml.safe_load_all(files["gateway"]["http-routes.yaml"]))
    assert all(part["spec"]["rules"][0]["timeouts"] == {"request": "0s", "backendRequest": "0s"} for part in documents)


@pytest.mark.parametrize(
    ("formats", "options", "expected"),
    [
        (("vllm",), {}, ["vLLM loads 'llama-3.1-8b'", "replicas of different GPU types"]),
        (("vllm",), {"model": "org/base", "endpoints": {"gpu-1": {"host": "b", "port": 1}}}, []),
        (("routes", "nginx"), {"in_cluster": True}, []),
        (
            ("kubernetes",),
            {"model": "org/base", "in_cluster": True, "adapter_path": "acme/{name}"},
            ["nodes of any GPU: h100-64gb, l4-24gb"],
        ),
        (
            ("gateway",),
            {
                "model": "org/base",
                "in_cluster": True,
                "node_selectors": {"h100-64gb": {"a": "b"}, "l4": {"a": "c"}},
                "adapters_claim": "adapters",
            },
            ["nodes of any GPU: l4-24gb", "no replica: l4"],
        ),
        (
            ("aibrix",),
            {"model": "/models/base", "in_cluster": True, "node_selectors": {"h100-64gb": {}, "l4-24gb": {}}},
            ["nothing mounts '/models/base'", "nothing mounts '/adapters/a'", "nodes of any GPU"],
        ),
    ],
)
def test_what_may_not_work_is_said(formats: tuple[str, ...], options: dict[str, Any], expected: list[str]) -> None:
    """Nothing else is: a plan whose options are complete gives no warning."""
    found = doubts(fleet_table(MIXED, export_options(options)), formats)
    assert len(found) == len(expected), found
    for text in expected:
        assert any(text in sentence for sentence in found), found


def test_the_command_warns_of_a_model_that_nobody_named(tmp_path: Path) -> None:
    """On standard error, so that JSON stays JSON."""
    save_plan(divided_plan(), tmp_path / "plan.json")
    arguments = ["export", str(tmp_path / "plan.json"), "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments, prog_name="placer")
    assert "vLLM loads 'llama-3.1-8b'" in result.stderr
    assert json.loads(result.stdout)["replicas"] == 3
