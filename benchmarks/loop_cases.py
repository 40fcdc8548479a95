"""What `benchmarks.measured_loop` measures: workloads to calibrate on, and others to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from twin.engine import LoraRank
from twin.lengths import LengthDistribution
from twin.measurement.manifest import Clock
from twin.workload import Adapter, Workload

MAIN_CLOCK: Clock = "steady"
NUM_ADAPTERS = 24
RANKS: tuple[LoraRank, ...] = (8, 16)
# Settings of all cases; vLLM's blocks on a CPU are of multiples of 32 tokens.
ENGINE = {
    "max_loras": 4,
    "max_lora_rank": 16,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "max_model_len": 1024,
    "block_size": 32,
    "gpu_memory_utilization": 0.1,
}


Quantity = Literal["throughput", "ITL", "loads"]
# Largest error, in per cent of what was measured.
TARGETS_PERCENT: dict[Quantity, float] = {"throughput": 3.0, "ITL": 10.0, "loads": 2.0}


@dataclass(frozen=True)
class Case:
    """A workload, and how it is measured.

    Attributes
    ----------
    name, what
        Short name, and what is particular about it.
    role
        ``calibration``; ``prediction``, in process; ``sensitive``, a prediction that is measured twice; ``http``,
        predicted and measured over HTTP.
    rate_rps
        Of all adapters together.
    horizon_s
        On the measurement's clock.
    short_s
        The same where time is short; 0: the case is left out then.
    zipf
        Exponent of the adapters' popularity; 0: all alike.
    adapters
        First adapter of the demo, and how many.
    prompt, output
        Mean, standard deviation and maximum, in tokens.
    engine
        Settings that differ from `ENGINE`.
    """

    name: str
    what: str
    role: Literal["calibration", "prediction", "sensitive", "http"]
    rate_rps: float
    horizon_s: float = 40.0
    short_s: float = 20.0
    zipf: float = 1.0
    adapters: tuple[int, int] = (0, 16)
    prompt: tuple[int, int, int] = (48, 24, 256)
    output: tuple[int, int, int] = (24, 12, 128)
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[Quantity, ...]:
        """What must be met: all of a prediction, nothing on a wall clock, and no loads where chance decides them."""
        if self.role == "prediction":
            return ("throughput", "ITL", "loads")
        return ("throughput", "ITL") if self.role == "sensitive" else ()

    @property
    def workload(self) -> Workload:
        """The adapters with their traffic."""
        first, count = self.adapters
        weights = 1.0 / np.arange(1, count + 1) ** self.zipf
        rates = self.rate_rps * weights / weights.sum()
        return Workload(
            adapters=tuple(
                Adapter(
                    name=adapter_name(first + index),
                    rank=RANKS[(first + index) % len(RANKS)],
                    rate_rps=float(rate),
                    prompt_tokens=_lengths(self.prompt),
                    output_tokens=_lengths(self.output),
                )
                for index, rate in enumerate(rates)
            )
        )


# In the order in which they are measured: what is calibrated on lies between what is predicted, so that a machine that
# changes its pace over minutes changes both alike.
CASES = (
    Case("few", "few requests at a time", "calibration", 4.0),
    Case("rate", "another rate: 7 requests/s", "prediction", 7.0, 60.0, 40.0),
    Case("many", "more requests at a time", "calibration", 9.0),
    Case(
        "slots",
        "12 slots, 20 adapters, half of them others, 10 requests/s",
        "prediction",
        10.0,
        60.0,
        30.0,
        zipf=0.5,
        adapters=(4, 20),
        engine={"max_loras": 12},
    ),
    Case("long", "prompts of 200 tokens", "calibration", 3.0, prompt=(200, 80, 480), output=(16, 8, 64)),
    Case(
        "adapters",
        "16 adapters, half of them others, equally popular, 6 slots",
        "prediction",
        6.0,
        60.0,
        40.0,
        zipf=0.0,
        adapters=(8, 16),
        engine={"max_loras": 6},
    ),
    Case("even", "8 slots, equally popular adapters", "calibration", 6.0, zipf=0.0, engine={"max_loras": 8}),
    Case(
        "little KV",
        "24 KV blocks, outputs of 100 tokens: preemptions",
        "prediction",
        3.0,
        150.0,
        60.0,
        output=(100, 40, 240),
        engine={"num_gpu_blocks_override": 24, "max_model_len": 512},
    ),
    Case("queue", "2 slots, more than the engine serves", "calibration", 40.0, engine={"max_loras": 2}),
    Case(
        "small cache",
        "24 adapters of which 8 stay in CPU memory, prefills in chunks of at most 128 tokens",
        "prediction",
        3.0,
        90.0,
        40.0,
        zipf=0.5,
        adapters=(0, 24),
        prompt=(200, 80, 480),
        engine={"max_cpu_loras": 8, "max_num_batched_tokens": 128},
    ),
    Case("overload", "half as much again as the engine serves: 60 requests/s", "sensitive", 60.0, 80.0, 0.0),
    Case("server", "2 requests/s to vLLM's server, wall clock", "http", 2.0, 60.0, 0.0),
)

# The five predictions and all calibrations in some ten minutes.
SHORT_CASES = tuple(replace(case, horizon_s=case.short_s) for case in CASES if case.short_s > 0)

# A few seconds, to see that the commands work.
SMOKE_CASES = (
    Case("few", "few requests at a time", "calibration", 4.0, 3.0),
    Case("rate", "another rate: 7 requests/s", "prediction", 7.0, 3.0),
)


@dataclass(frozen=True)
class Run:
    """What is measured, on which clock in process, and with which seed."""

    cases: Sequence[Case]
    clock: Clock
    seed: int
    is_short: bool = False

    @property
    def command(self) -> str:
        """Return how to do it again."""
        clock = "" if self.clock == MAIN_CLOCK else f" --clock {self.clock}"
        short = " --short" if self.is_short else ""
        return f"`python -m benchmarks.measured_loop --seed {self.seed}{short}{clock}`"


def again(case: Case) -> str:
    """Return the name of the second measurement of a case."""
    return f"{case.name} again"


def adapter_name(index: int) -> str:
    """Return the name that the demo gives an adapter."""
    return f"demo-{index:03d}"


def _lengths(law: tuple[int, int, int]) -> LengthDistribution:
    mean, std, longest = law
    return LengthDistribution(mean=mean, std=std, max=longest)
