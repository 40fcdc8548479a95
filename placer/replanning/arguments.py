"""What `replan` is given, checked before anything is done."""

from __future__ import annotations

import math
from typing import Literal, get_args

from placer.replan_document import ReplanLimits
from twin.errors import InputError

Strategy = Literal["near", "repair", "scratch"]
# Of a start, and of a simulated handover: a day.
LONGEST_S = 86_400.0


def limits_of(max_moves: int | None, max_loads: int | None, max_restarts: int | None) -> ReplanLimits:
    """Return limits of at least 0; InputError for others."""
    given = {"max_moves": max_moves, "max_loads": max_loads, "max_restarts": max_restarts}
    for name, value in given.items():
        if value is not None and value < 0:
            raise InputError(f"`{name}` must be at least 0. Got {value}.", field=name, value=value)
    return ReplanLimits(max_moves=max_moves, max_loads=max_loads, max_restarts=max_restarts)


def check_numbers(
    spare_gpus: int, restarts_at_once: int, restart_s: float | None, handover_horizon_s: float, strategy: str
) -> None:
    """Raise InputError unless what decides about the migration is in its ranges."""
    for name, value, least, most in (
        ("spare_gpus", spare_gpus, 0, math.inf),
        ("restarts_at_once", restarts_at_once, 1, math.inf),
        ("restart_s", restart_s or 0.0, 0, LONGEST_S),
        ("handover_horizon_s", handover_horizon_s, 0, LONGEST_S),
    ):
        # Not a number is not between anything.
        if not least <= value <= most:
            upper = "" if math.isinf(most) else f" and at most {most:,.0f}"
            raise InputError(f"`{name}` must be at least {least}{upper}. Got {value}.", field=name, value=value)
    if strategy not in get_args(Strategy):
        raise InputError(
            f"`strategy` must be one of {', '.join(get_args(Strategy))}. Got {strategy!r}.",
            field="strategy",
            value=strategy,
        )


def check_worth(moves_per_gpu: float | Literal["auto"]) -> None:
    """Raise InputError unless a GPU is worth something."""
    # Not a number is not above anything.
    if moves_per_gpu != "auto" and not moves_per_gpu > 0:
        raise InputError(
            f"`moves_per_gpu` must be above 0, or 'auto'. Got {moves_per_gpu}.",
            field="moves_per_gpu",
            value=moves_per_gpu,
            hint="strategy `repair` gives no GPU up",
        )
