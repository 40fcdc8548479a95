"""What limited a measured run, and in which range of slots it lies: the groups in which errors are read."""

from __future__ import annotations

from typing import Literal

from twin.validation.runs import MeasuredRun

Regime = Literal["unsaturated", "slots-bound", "KV-bound", "collapsed", "not started", "not measured"]

# Fewer waiting requests than this, on average: whoever arrives is admitted at once.
LEAST_WAITING = 1.0
# Use of the KV cache from which it is what requests wait for.
FULL_KV_USAGE = 0.9

REGIME_RULES: dict[Regime, str] = {
    "unsaturated": f"fewer than {LEAST_WAITING:g} request waits on average",
    "slots-bound": f"requests wait, KV use is below {FULL_KV_USAGE:g}, and more adapters are served than there are "
    "slots",
    "KV-bound": f"requests wait, and KV use is at least {FULL_KV_USAGE:g} or every adapter has a slot",
    "collapsed": "the load generator was saturated: only starvation is scored",
    "not started": "the server did not start for lack of memory: only that is scored",
    "not measured": "the table lacks the number of waiting requests or the KV use",
}

# Upper ends of the ranges of slots.
SLOT_RANGE_ENDS = (7, 16, 64, 128, 192)


def regime_of(run: MeasuredRun) -> Regime:
    """Return what limited a run, by what was measured (`REGIME_RULES`)."""
    if run.status == "oom":
        return "not started"
    if run.has_client_collapsed:
        return "collapsed"
    waiting, kv_usage = run.measured.waiting_mean, run.measured.kv_usage_mean
    if waiting is None or kv_usage is None:
        return "not measured"
    if waiting < LEAST_WAITING:
        return "unsaturated"
    # With a slot for every adapter, nobody waits for a slot.
    is_kv_bound = kv_usage >= FULL_KV_USAGE or run.num_adapters <= run.engine.max_loras
    return "KV-bound" if is_kv_bound else "slots-bound"


def slot_range_of(max_loras: int) -> str:
    """Return the range of slots as text, such as ``17-64``."""
    lower = 1
    for upper in SLOT_RANGE_ENDS:
        if max_loras <= upper:
            return f"{lower}-{upper}"
        lower = upper + 1
    return f">{SLOT_RANGE_ENDS[-1]}"
