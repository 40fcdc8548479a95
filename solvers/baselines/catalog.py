"""All baselines, by name; the registry lists them."""

from __future__ import annotations

from solvers.baselines import (
    aibrix_binpack,
    alpaserve,
    dlora,
    dlora_ilp,
    dynamo_mcf,
    latency,
    loraserve,
    max_backbone,
    punica,
    random_placement,
)
from solvers.baselines.fleet import one_slot_per_adapter, one_slot_per_two_adapters
from solvers.baselines.least_fleet import Baseline

BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="aibrix_binpack",
        summary="baseline: the fullest GPU below a fixed number of adapters (AIBrix)",
        place=aibrix_binpack.place,
    ),
    Baseline(
        name="alpaserve",
        summary="baseline: help the adapter with the most unserved requests (AlpaServe)",
        place=alpaserve.place,
    ),
    Baseline(
        name="dlora",
        summary="baseline: the largest minimum burst tolerance (dLoRA, proactive)",
        place=dlora.place,
    ),
    Baseline(
        name="dlora_ilp",
        summary="baseline: an integer program that evens out the GPUs (dLoRA, reactive)",
        place=dlora_ilp.place,
        requires=("pulp", "highspy"),
        extra="milp",
    ),
    Baseline(
        name="dynamo_mcf",
        summary="baseline: min-cost flow over rendezvous hashes (NVIDIA Dynamo)",
        place=dynamo_mcf.place,
        requires=("ortools",),
        extra="cpsat",
    ),
    Baseline(
        name="latency",
        summary="baseline: each adapter to the least loaded GPU, a slot for each (arXiv 2602.24044)",
        place=latency.place,
        choose_slots=one_slot_per_adapter,
    ),
    Baseline(
        name="loraserve",
        summary="baseline: GPUs for each rank in proportion to its utilisation (LoRAServe)",
        place=loraserve.place,
    ),
    Baseline(
        name="max_backbone",
        summary="baseline: first fit by the backbone's throughput, a slot for each adapter",
        place=max_backbone.place,
        choose_slots=one_slot_per_adapter,
        decides_fleet_size=True,
    ),
    Baseline(
        name="max_backbone_half",
        summary="baseline: first fit by the backbone's throughput, a slot for two adapters",
        place=max_backbone.place,
        choose_slots=one_slot_per_two_adapters,
        decides_fleet_size=True,
    ),
    Baseline(
        name="punica",
        summary="baseline: the most loaded GPU with room (Punica)",
        place=punica.place,
    ),
    Baseline(
        name="random",
        summary="baseline: random GPUs and slots",
        place=random_placement.place,
        choose_slots=random_placement.choose_slots,
        is_randomised=True,
    ),
)
