"""The search for the best configuration against trying everything, with oracles that are functions."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.configuration_search import TIE, Configuration, Verdict, best_of, search_configurations

MOST = 40
OPTIONS = (1, 2, 4, 8, 16, 32)
Probe = Callable[[int, int], Verdict]


def _oracle(loads: list[float], served: dict[int, int], capacities: dict[int, float]) -> Probe:
    """Return an oracle: `slots` serve `served[slots]` adapters, and complete `capacities[slots]` tokens/s at most."""

    def probe(count: int, slots: int) -> Verdict:
        return Verdict(count > served[slots], min(sum(loads[:count]), capacities[slots]))

    return probe


def _tried(probe: Probe, options: tuple[int, ...]) -> Configuration | None:
    """Return the best of all configurations, each asked about."""
    per_slots = []
    for slots in options:
        verdicts = {count: probe(count, slots) for count in range(1, MOST + 1)}
        served = {count: verdict.throughput_tps for count, verdict in verdicts.items() if not verdict.starves}
        if served:
            enough = (1.0 - TIE) * max(served.values())
            count = max(count for count, throughput_tps in served.items() if throughput_tps >= enough)
            per_slots.append(Configuration(count, slots, served[count]))
    return best_of(per_slots)


@given(
    loads=st.lists(st.floats(0.0, 100.0), min_size=MOST, max_size=MOST),
    served=st.lists(st.integers(0, MOST), min_size=len(OPTIONS), max_size=len(OPTIONS)),
    shares=st.lists(st.floats(0.9, 1.0), min_size=len(OPTIONS), max_size=len(OPTIONS)),
    order=st.permutations(OPTIONS),
    guess=st.integers(1, MOST),
)
def test_the_search_finds_what_trying_everything_finds(
    loads: list[float], served: list[int], shares: list[float], order: list[int], guess: int
) -> None:
    """Whatever is served, whatever the guess, and in whatever order slots are looked at."""
    counts = dict(zip(OPTIONS, served, strict=True))
    capacities = {slots: share * sum(loads[: counts[slots]]) for slots, share in zip(OPTIONS, shares, strict=True)}
    probe = _oracle(loads, counts, capacities)
    found = search_configurations(
        probe,
        load_tps=lambda count: sum(loads[:count]),
        slot_options=order,
        most_adapters=MOST,
        first_guess=guess,
        resolution=0.0,
    )
    assert best_of(found) == _tried(probe, OPTIONS)


@given(
    served=st.lists(st.integers(0, 1_000), min_size=len(OPTIONS), max_size=len(OPTIONS)),
    guess=st.integers(1, 1_000),
)
def test_few_questions_are_asked(served: list[int], guess: int) -> None:
    """A bisection for the slots that may be the best, one question for each other one; no question twice."""
    probe = _oracle([1.0] * 1_000, dict(zip(OPTIONS, served, strict=True)), dict.fromkeys(OPTIONS, 1e9))
    asked: list[tuple[int, int]] = []

    def counting(count: int, slots: int) -> Verdict:
        asked.append((count, slots))
        return probe(count, slots)

    search_configurations(counting, load_tps=float, slot_options=OPTIONS, most_adapters=1_000, first_guess=guess)
    assert len(asked) == len(set(asked))
    assert max(sum(1 for _, slots in asked if slots == option) for option in OPTIONS) <= 20


def test_equally_good_configurations_go_to_the_fewest_slots() -> None:
    """Within the tie, slots that do not pay are not taken; beyond it they are."""
    few, many = Configuration(10, 8, 995.0), Configuration(11, 16, 1_000.0)
    assert best_of([many, few]) == few
    assert best_of([many, Configuration(10, 8, 985.0)]) == many
    assert best_of([]) is None


def test_a_replica_past_its_best_is_given_fewer_adapters() -> None:
    """Where one more adapter costs more throughput than the tie, it is not served, though nobody starves."""

    def probe(count: int, slots: int) -> Verdict:
        assert slots == 8
        return Verdict(count > 20, 100.0 * count if count <= 10 else 1_000.0 - 30.0 * (count - 10))

    found = search_configurations(
        probe, load_tps=lambda count: 100.0 * count, slot_options=(8,), most_adapters=40, first_guess=10, resolution=0.0
    )
    assert found == [Configuration(10, 8, 1_000.0)]


@pytest.mark.parametrize("served", [0, 1, 2, 39, 40])
def test_the_ends_of_the_range_are_found(served: int) -> None:
    """None, one, and all that may be tried."""
    probe = _oracle([1.0] * MOST, {4: served}, {4: 1e9})
    found = search_configurations(
        probe, load_tps=float, slot_options=(4,), most_adapters=MOST, first_guess=7, resolution=0.0
    )
    assert [configuration.num_adapters for configuration in found] == ([served] if served else [])
