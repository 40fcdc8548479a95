"""What to say about the windows in which GPUs were simulated, and about ratios that look wrong without that."""

from __future__ import annotations

from collections.abc import Sequence

from placer.plan_document import Verification
from placer.wording import counted
from twin.judging_window import MIN_EXPECTED_REQUESTS
from twin.report import WAITING_GRACE_S

# From here on, tenths of a second say enough.
LONG_S = 10.0

Verdicts = Sequence[tuple[str, Verification]]


def window_notes(gpus: Verdicts, *, asked_s: float) -> list[str]:
    """Return a line about the windows of GPUs that are as asked for, one about longer, and one about shorter ones.

    Parameters
    ----------
    gpus
        Names and verdicts; all have the same warm-up.
    asked_s
        The horizon that was asked for, in seconds.
    """
    longer = (
        f" instead of {_seconds(asked_s)} s, so that {MIN_EXPECTED_REQUESTS:g} requests are expected in it: "
        "of fewer, those still being served at its end would decide"
    )
    groups = (
        ([gpu for gpu in gpus if gpu[1].horizon_s == asked_s], ""),
        ([gpu for gpu in gpus if gpu[1].horizon_s > asked_s], longer),
        (
            [gpu for gpu in gpus if gpu[1].horizon_s < asked_s],
            f" instead of {_seconds(asked_s)} s: its trace ends then",
        ),
    )
    return [_window(group, of_all=len(group) == len(gpus) and not why) + why for group, why in groups if group]


def ratio_notes(gpus: Verdicts, *, starvation_tolerance: float) -> list[str]:
    """Return a line about accepted GPUs of which less was completed than the tolerance allows; none without them."""
    least = 1.0 - starvation_tolerance
    low = [gpu for gpu in gpus if gpu[1].is_accepted and gpu[1].throughput_ratio < least]
    if not low:
        return []
    why = (
        f"no request waited for longer than {WAITING_GRACE_S:g} s at the end. The ratio counts completed requests "
        "only, and what is missing was still being served: much of it in a window that is not many times as long as a "
        "request"
    )
    return [f"ratio of {_named(low)}: below {least:g}, and accepted: {why}"]


def _window(gpus: Verdicts, *, of_all: bool) -> str:
    lengths = sorted(
        {_seconds(verdict.horizon_s): verdict.horizon_s for _, verdict in gpus}.items(), key=lambda e: e[1]
    )
    shown = " to ".join(dict.fromkeys((lengths[0][0], lengths[-1][0])))
    subject = "window" if of_all else f"window of {_named(gpus)}"
    return f"{subject}: {shown} s ({_seconds(gpus[0][1].warmup_s)} s of it warm-up)"


def _named(gpus: Verdicts) -> str:
    return gpus[0][0] if len(gpus) == 1 else counted(len(gpus), "GPU")


def _seconds(value_s: float) -> str:
    return f"{round(value_s, 1):.8g}" if value_s >= LONG_S else f"{value_s:.3g}"
