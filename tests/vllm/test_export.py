"""Exported arguments in vLLM's own parser."""

import json
import subprocess

import pytest

from placer.export.arguments import carried_settings
from placer.export.fleet_table import fleet_table
from placer.export.options import ExportOptions
from tests.placer.exported import AWKWARD, plan_of, planned
from twin.engine import SUPPORTED_RANKS, EngineConfig
from twin.vllm_python import VllmPython

# Reads lists of arguments; prints for each what vLLM understood. Building the parser takes most of the time.
PROGRAM = """
import json, sys, typing
from vllm.config.lora import MaxLoRARanks
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
found = []
for arguments in json.load(sys.stdin):
    given = vars(parser.parse_args(arguments))
    modules = [[module.name, module.path] for module in given.pop("lora_modules") or []]
    plain = {name: value for name, value in given.items() if isinstance(value, (int, float, str, type(None)))}
    found.append({"modules": modules, "arguments": plain})
print(json.dumps({"found": found, "ranks": typing.get_args(MaxLoRARanks)}))
"""


def test_vllm_understands_what_was_meant(python: VllmPython) -> None:
    """Every setting, every adapter of any name, and no other rank than vLLM has."""
    engines = [
        EngineConfig(max_loras=3, max_lora_rank=512, max_num_seqs=64, gpu_memory_utilization=0.87, watermark=0.01),
        EngineConfig(max_loras=3, max_cpu_loras=7, max_model_len=4096, block_size=32, async_scheduling=True),
        EngineConfig(scheduler_reserve_full_isl=False, long_prefill_token_threshold=512, max_num_batched_tokens=4096),
    ]
    plan = plan_of([planned(f"gpu-{number}", AWKWARD, engine=engine) for number, engine in enumerate(engines)])
    table = fleet_table(plan, ExportOptions(model="org/base", served_model_name="base", port=9000))
    given = [table.serve_arguments(row, port=row.port) for row in table.rows]
    command = [python.executable, "-c", PROGRAM]
    run = subprocess.run(
        command,
        input=json.dumps(given),
        env=python.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert tuple(answer["ranks"]) == (1, *SUPPORTED_RANKS)
    for row, found in zip(table.rows, answer["found"], strict=True):
        said = found["arguments"]
        expected = {name: getattr(row.engine, name) for name in carried_settings(row.engine)}
        assert {name: said[name] for name in expected} == expected
        assert (said["model_tag"], said["port"], said["enable_prefix_caching"]) == ("org/base", row.port, False)
        assert found["modules"] == [list(module) for module in row.adapters.items()]


@pytest.mark.parametrize("rank", [1, 12, 1024])
def test_other_ranks_are_refused_before(rank: int) -> None:
    """A plan cannot have a rank that vLLM refuses, but for 1, which plans do without."""
    with pytest.raises(ValueError, match="max_lora_rank"):
        EngineConfig.model_validate({"max_lora_rank": rank})
