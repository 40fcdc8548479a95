"""Search for the best configuration of a GPU with any oracle: how many adapters it serves, and with how many slots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Configurations whose throughputs differ by less than this share are equally good: the fewest slots win.
TIE = 0.01
# The number of adapters is found to this share of it (and to one adapter where that is more).
RESOLUTION = 0.01
# First step away from the guess, by which the border is bracketed; each step is the square of the one before.
_FIRST_FACTOR = 1.15


@dataclass(frozen=True)
class Verdict:
    """What an oracle says about a number of adapters with a number of slots.

    Attributes
    ----------
    starves
        Whether the configuration is ruled out.
    throughput_tps
        Prompt + output tokens/s of completed requests; at most the load of so many adapters.
    """

    starves: bool
    throughput_tps: float


@dataclass(frozen=True)
class Configuration:
    """A number of adapters to serve with a number of slots (`max_loras`), and the tokens/s that this completes."""

    num_adapters: int
    max_loras: int
    throughput_tps: float


Probe = Callable[[int, int], Verdict]


def search_configurations(
    probe: Probe,
    *,
    load_tps: Callable[[int], float],
    slot_options: Sequence[int],
    most_adapters: int,
    first_guess: int,
    resolution: float = RESOLUTION,
) -> list[Configuration]:
    """Return the best configuration of each number of slots that can be the best of all, slots ascending.

    Every other number of slots is ruled out by one question: whether it serves as many adapters as it would need to
    come within `TIE` of the best so far. No better one is missed as far as the oracle is monotone (who serves n
    adapters serves fewer) and no more is completed than is offered.

    Parameters
    ----------
    probe
        The oracle: the verdict on (adapters, slots).
    load_tps
        Offered load of the first n adapters in tokens/s; it must not fall with n.
    slot_options
        Numbers of slots; they are looked at in this order, and fewer questions are asked if the best comes early.
    most_adapters
        No more are tried, >= 1.
    first_guess
        Adapters that are tried first, in ``[1, most_adapters]``.
    resolution
        The number of adapters is found to this share of it; 0: exactly.
    """
    found: list[Configuration] = []
    guess = first_guess
    for slots in slot_options:
        best_tps = max((configuration.throughput_tps for configuration in found), default=0.0)
        needed = _fewest_with_load(load_tps, (1.0 - TIE) * best_tps, most_adapters)
        configuration = _most_served(
            probe, slots, fewest=needed, most=most_adapters, guess=guess, resolution=resolution
        )
        if configuration is not None:
            found.append(configuration)
            guess = configuration.num_adapters
    return sorted(found, key=lambda configuration: configuration.max_loras)


def best_of(configurations: Sequence[Configuration]) -> Configuration | None:
    """Return the one with most throughput; of those within `TIE` of it the one with fewest slots; None of none."""
    if not configurations:
        return None
    least_tps = (1.0 - TIE) * max(configuration.throughput_tps for configuration in configurations)
    good = [configuration for configuration in configurations if configuration.throughput_tps >= least_tps]
    return min(good, key=lambda configuration: (configuration.max_loras, -configuration.num_adapters))


def _most_served(
    probe: Probe, slots: int, *, fewest: int, most: int, guess: int, resolution: float
) -> Configuration | None:
    """Return the most adapters, from `fewest` to `most`, that are served with so many slots; None if `fewest` starve.

    Bracketed from the guess, then bisected. Where a replica that is nearly overloaded completes less than one with
    fewer adapters by more than `TIE`, it is the latter.
    """
    served: dict[int, float] = {}

    def is_served(count: int) -> bool:
        verdict = probe(count, slots)
        if not verdict.starves:
            served[count] = verdict.throughput_tps
        return not verdict.starves

    if fewest > most or not is_served(fewest):
        return None
    low, high, factor, candidate = fewest, most + 1, _FIRST_FACTOR, guess
    while high - low > max(1.0, resolution * low):
        candidate = min(max(candidate, low + 1), high - 1)
        if is_served(candidate):
            low = candidate
        else:
            high = candidate
        if high > most:
            candidate, factor = math.ceil(low * factor), factor**2
        elif low == fewest and high / factor > low:
            candidate, factor = math.floor(high / factor), factor**2
        else:
            candidate = round(math.sqrt(low * high))
    enough_tps = (1.0 - TIE) * max(served.values())
    count = max(count for count, throughput_tps in served.items() if throughput_tps >= enough_tps)
    return Configuration(count, slots, served[count])


def _fewest_with_load(load_tps: Callable[[int], float], wanted_tps: float, most: int) -> int:
    """Return the fewest adapters, at least 1, that offer so much; `most` + 1 if none do."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if load_tps(middle) >= wanted_tps:
            high = middle
        else:
            low = middle
    return high
