"""Plans to export: placements of any names, settings and shares, with nothing simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from placer.plan_document import (
    AdapterShare,
    Plan,
    PlanConfiguration,
    PlannedGpu,
    Prediction,
    RepairSummary,
    SurrogateDescription,
)
from solvers.problem_file import Limits
from twin.engine import SUPPORTED_RANKS, EngineConfig

PREDICTION = Prediction(
    throughput_tps=1.0,
    throughput_ratio=1.0,
    starvation_probability=0.0,
    itl_p95_s=0.01,
    ttft_p95_s=0.1,
    is_outside_domain=False,
)
# Whatever a name may do to a shell, a unit, YAML, a configuration of nginx or a header.
AWKWARD = (
    "plain-1",
    "Plain-1",
    "PLAIN-1",
    "a b",
    " led by a space",
    'it\'s "quoted"',
    "$HOME $(id) `id` ${x}",
    "line\nbreak\r\ttab",
    "exec evil\nexec vllm serve evil",
    "back\\slash\\n\\",
    "100% %n %%i $$",
    "; rm -rf /tmp/x #",
    "{}[]&*!|>@",
    "}",
    ";",
    "~^.*$",
    "default",
    "\\default",
    "include",
    "1e3",
    "no",
    "null",
    "0x1f",
    "2026-01-01",
    "ünïcode-\u2028-\U0001f600",
    "\x07\x1b[31m",
    "name=path",
    "a=b,c",
    "--max-loras",
    "org/adapter",
    '{"name": "x"}',
    "x" * 300,
)
NAMES = st.sampled_from(AWKWARD) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
).filter(lambda name: not name.startswith("/") and not {".", ".."} & set(name.split("/")))
_FLOAT = st.floats(min_value=0.01, max_value=0.99, allow_nan=False)


def planned(name: str, adapters: Sequence[str], **changes: Any) -> PlannedGpu:
    """Return a GPU of a plan with adapters; `changes` replace fields."""
    fields: dict[str, Any] = {
        "name": name,
        "gpu_type": "h100-64gb",
        "adapters": tuple(adapters),
        "ranks": (),
        "engine": EngineConfig().with_slots(4, max_lora_rank=32, num_adapters=len(adapters)),
        "kv_tokens": 100_000,
        "offered_tps": 1000.0,
        "predicted": PREDICTION,
        "headroom": None,
        "verification": None,
    }
    return PlannedGpu(**(fields | changes))


def plan_of(gpus: Sequence[PlannedGpu]) -> Plan:
    """Return a plan of GPUs."""
    configuration = PlanConfiguration(
        model="llama-3.1-8b",
        gpu_types=("h100-64gb",),
        profiles=("llama-3.1-8b-h100-64gb",),
        engine=EngineConfig(),
        fixed_max_loras=None,
        fixed_max_lora_rank=None,
        objective="fewest_gpus",
        limits=Limits(),
        solver="bfd",
        surrogate=SurrogateDescription(name="exact", details=""),
        margin=0.0,
        budget_s=None,
        max_evaluations=None,
        verification_engine="fast",
        horizon_s=600.0,
        warmup_s=100.0,
        max_repair_rounds=0,
        is_improved=False,
    )
    return Plan(
        verdict="unverified",
        solution="feasible",
        termination="completed",
        message="",
        num_gpus=len(gpus),
        cost_per_hour=1.0,
        lower_bound=None,
        gap=None,
        gpus=tuple(gpus),
        repair=RepairSummary(),
        solver_evaluations=0,
        warnings=(),
        seed=0,
        configuration=configuration,
        inputs=(),
        versions={},
    )


def divided_plan() -> Plan:
    """Return a plan of three GPUs with an adapter on two of them, 0.123456789 of it on the first."""
    shares = (0.123456789, 0.876543211)
    divided = [AdapterShare(adapter="big", share=share, replica=number) for number, share in enumerate(shares, start=1)]
    return plan_of(
        [
            planned("gpu-0", ["big", "a"], shares=(divided[0],)),
            planned("gpu-1", ["big", "b"], shares=(divided[1],)),
            planned("gpu-2", ["c", 'it\'s "c" $2\n']),
        ]
    )


@st.composite
def engines(draw: st.DrawFn) -> EngineConfig:
    """Draw settings of either version of vLLM."""
    versions: tuple[Literal["0.32", "0.8.5"], ...] = ("0.32", "0.8.5")
    version = draw(st.sampled_from(versions))
    slots = draw(st.integers(1, 64))
    changes: dict[str, Any] = {
        "max_num_seqs": draw(st.integers(1, 512)),
        "max_num_batched_tokens": draw(st.integers(512, 9999)),
        "max_model_len": draw(st.none() | st.integers(2, 10**6)),
        "gpu_memory_utilization": draw(_FLOAT),
        "max_cpu_loras": draw(st.none() | st.integers(slots, 999)),
        "max_lora_rank": draw(st.sampled_from(SUPPORTED_RANKS)),
        "watermark": draw(st.sampled_from([0.0, 0.01, 1e-7])),
        "lora_load_order": draw(st.sampled_from(["set", "batch"])),
        "use_v2_model_runner": draw(st.booleans()),
        "async_scheduling": version == "0.32" and draw(st.booleans()),
    }
    return EngineConfig(vllm_version=version, max_loras=slots, **changes)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan: some GPUs and adapters of awkward names, some of which are divided."""
    gpus = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    adapters = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    on: dict[str, list[str]] = {name: [] for name in gpus}
    shares: dict[str, list[AdapterShare]] = {name: [] for name in gpus}
    for adapter in adapters:
        homes = draw(st.lists(st.sampled_from(gpus), min_size=1, max_size=3, unique=True))
        sizes = draw(st.lists(_FLOAT, min_size=len(homes), max_size=len(homes)))
        for number, (gpu, size) in enumerate(zip(homes, sizes, strict=True), start=1):
            on[gpu].append(adapter)
            if len(homes) > 1:
                shares[gpu].append(AdapterShare(adapter=adapter, share=size / sum(sizes), replica=number))
    types = st.sampled_from(["h100-64gb", "A big\nGPU's"])
    return plan_of(
        [
            planned(name, on[name], shares=tuple(shares[name]), gpu_type=draw(types), engine=draw(engines()))
            for name in gpus
        ]
    )
