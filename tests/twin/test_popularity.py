"""Popularity models, the assignment of requests to adapters, and ranks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.popularity import (
    CountedPopularity,
    DirichletPopularity,
    Popularity,
    UniformPopularity,
    ZipfPopularity,
    assign_as_labelled,
    assign_by_popularity,
    assign_ranks,
    parse_popularity,
    read_popularity,
)
from twin.trace import Trace

MODELS: tuple[Popularity, ...] = (
    UniformPopularity(),
    ZipfPopularity(0.9),
    ZipfPopularity(50.0),
    DirichletPopularity(0.5),
    DirichletPopularity(1e-3),
    CountedPopularity(tuple(float(count) for count in range(600, 0, -1)), "counts.csv"),
)


def _trace(num_requests: int, labels: list[str] | None = None) -> Trace:
    ones = np.ones(num_requests, dtype=np.int64)
    times = np.arange(num_requests, dtype=np.float64)
    adapter = None if labels is None else np.array(labels, dtype=np.object_)
    return Trace(times, ones, ones, float(num_requests), adapter)


@pytest.mark.parametrize("model", MODELS)
@given(num_adapters=st.integers(1, 600), seed=st.integers(0, 2**40))
def test_shares_are_a_descending_distribution(model: Popularity, num_adapters: int, seed: int) -> None:
    """Whatever the model: one share per adapter, largest first, summing to 1, the same under the same seed."""
    shares = model.probabilities(num_adapters, seed=seed)
    assert shares.shape == (num_adapters,)
    assert np.all(np.isfinite(shares))
    assert np.all(shares >= 0)
    assert np.all(np.diff(shares) <= 0)
    assert shares.sum() == pytest.approx(1.0)
    assert np.array_equal(shares, model.probabilities(num_adapters, seed=seed))


@pytest.mark.parametrize("model", MODELS)
def test_no_adapters_are_refused(model: Popularity) -> None:
    """A distribution over nothing does not exist."""
    with pytest.raises(InputError, match=r"at least 1\. Got 0"):
        model.probabilities(0)


def test_zipf_shares_fall_with_the_power_of_the_place() -> None:
    """Exponent 1: the first is asked for twice as often as the second, three times as often as the third."""
    assert ZipfPopularity(1.0).probabilities(3) == pytest.approx(np.array([6, 3, 2]) / 11)
    assert ZipfPopularity(0.0).probabilities(4) == pytest.approx(np.full(4, 0.25))


def test_dirichlet_shares_have_the_laws_spread() -> None:
    """The second moment of a share is (a + 1) / (n (n a + 1)); smaller concentrations gather the requests."""
    num_adapters, concentration = 10, 0.5
    draws = [DirichletPopularity(concentration).probabilities(num_adapters, seed=seed) for seed in range(2000)]
    expected = (concentration + 1) / (num_adapters * (num_adapters * concentration + 1))
    assert np.mean(np.square(draws)) == pytest.approx(expected, rel=0.03)


def test_counted_shares_are_those_of_the_most_popular(tmp_path: Path) -> None:
    """Rows in any order; what is left out does not dilute the rest."""
    path = tmp_path / "counts.csv"
    path.write_text("lora_id,requests\na,10\nb,30\nc,60\nd,1\n", encoding="utf-8")
    assert read_popularity(path).probabilities(3) == pytest.approx([0.6, 0.3, 0.1])


def test_more_adapters_than_were_counted_are_refused() -> None:
    """Inventing a tail would no longer be the measured curve; the message says how many there are."""
    with pytest.raises(InputError, match="It counts 2, and 3 are asked for") as caught:
        CountedPopularity((2.0, 1.0), "counts.csv").probabilities(3)
    assert caught.value.file == "counts.csv"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,request\na,1\n", "did you mean 'request'"),
        ("id,requests\na,many\n", "Got 'many' in row 1"),
        ("id,requests\na,1\nb,-2\n", "Got '-2' in row 2"),
        ("id,requests\na,0\nb,0\n", "at least one request"),
        ("id,requests\n", "at least one row"),
    ],
)
def test_a_bad_counts_file_says_why(tmp_path: Path, content: str, message: str) -> None:
    """Column, row and value, as for traces."""
    path = tmp_path / "counts.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_popularity(path)
    assert message in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.file == str(path)


def test_the_forms_of_the_command_line_are_understood(tmp_path: Path) -> None:
    """Each form names its model; a path may stand with or without its prefix."""
    (tmp_path / "counts.csv").write_text("id,requests\na,3\n", encoding="utf-8")
    assert parse_popularity("uniform") == UniformPopularity()
    assert parse_popularity("zipf:0.9") == ZipfPopularity(0.9)
    assert parse_popularity("dirichlet:0.5") == DirichletPopularity(0.5)
    counted = CountedPopularity((3.0,), str(tmp_path / "counts.csv"))
    assert parse_popularity("file:counts.csv", base_directory=tmp_path) == counted
    assert parse_popularity("counts.csv", base_directory=tmp_path) == counted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zipff:0.9", "did you mean 'zipf:0.9'?"),
        ("zipf", "did you mean 'zipf:0.9'?"),
        ("unifrom", "did you mean 'uniform'?"),
        ("file:", "did you mean 'file:requests.csv'?"),
        ("zipf:steep", "must be a number"),
        ("zipf:-1", "not negative"),
        ("zipf:nan", "finite"),
        ("dirichlet:0", "above 0"),
        ("dirichlet:inf", "finite"),
        ("file:absent.csv", "No such file"),
        ("", "must be uniform, zipf:EXPONENT, dirichlet:CONCENTRATION or file:PATH"),
    ],
)
def test_an_unknown_form_is_answered_with_the_forms(text: str, said: str) -> None:
    """What was typed, and what can be typed instead."""
    with pytest.raises(InputError) as caught:
        parse_popularity(text)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_requests_follow_the_shares() -> None:
    """Every adapter gets its expected requests within five standard deviations."""
    num_requests, num_adapters = 100_000, 50
    popularity = ZipfPopularity(0.9)
    assignment = assign_by_popularity(_trace(num_requests), num_adapters=num_adapters, popularity=popularity, seed=1)
    expected = popularity.probabilities(num_adapters) * num_requests
    counts = np.bincount(assignment.adapter, minlength=num_adapters)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    assert assignment.names[0] == "adapter-00"
    assert assignment.names[-1] == "adapter-49"


@given(num_adapters=st.integers(1, 30), num_requests=st.integers(1, 50), seed=st.integers(0, 1000))
def test_no_request_falls_outside_the_adapters(num_adapters: int, num_requests: int, seed: int) -> None:
    """Also when shares underflow to zero, as at a steep Zipf."""
    assignment = assign_by_popularity(
        _trace(num_requests), num_adapters=num_adapters, popularity=ZipfPopularity(2000.0), seed=seed
    )
    assert len(assignment.names) == num_adapters
    assert assignment.adapter.tolist() == [0] * num_requests


def test_assignment_repeats_under_its_seed() -> None:
    """Same seed, same adapters; another seed, others."""
    first, same, other = (
        assign_by_popularity(_trace(100), num_adapters=5, popularity=UniformPopularity(), seed=seed).adapter
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_labels_of_the_trace_keep_their_requests() -> None:
    """The most requested first, ties by name: the numbering does not depend on who comes first."""
    labels = ["x", "b", "x", "a", "x", "b", "a"]
    assignment = assign_as_labelled(_trace(7, labels))
    assert assignment.names == ("x", "a", "b")
    assert [assignment.names[index] for index in assignment.adapter] == labels


def test_labels_that_are_not_there_cannot_be_used() -> None:
    """The message offers both ways out."""
    with pytest.raises(InputError, match="needs a column") as caught:
        assign_as_labelled(_trace(2))
    assert caught.value.hint is not None
    assert "popularity" in caught.value.hint


@given(
    num_adapters=st.integers(1, 100),
    ranks=st.lists(st.sampled_from(SUPPORTED_RANKS), min_size=1, max_size=5, unique=True),
)
def test_dealt_ranks_differ_in_number_by_one_at_most(num_adapters: int, ranks: list[int]) -> None:
    """Cycling gives each rank its equal part; earlier ranks get what is left over."""
    dealt = assign_ranks(num_adapters, ranks, seed=3)
    counts = [dealt.count(rank) for rank in ranks]
    assert sum(counts) == len(dealt) == num_adapters
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1


def test_ranks_are_shuffled() -> None:
    """Dealt in turn along the popularity, the first rank would always get the most popular adapter."""
    dealt = assign_ranks(300, [8, 16, 32], seed=0)
    assert dealt != tuple([8, 16, 32] * 100)
    assert dealt == assign_ranks(300, [8, 16, 32], seed=0)
    assert dealt != assign_ranks(300, [8, 16, 32], seed=1)


@given(num_adapters=st.integers(1, 200), weights=st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3).filter(any))
def test_weighted_ranks_are_within_one_of_their_share(num_adapters: int, weights: list[float]) -> None:
    """Largest remainders: no rank is off by a whole adapter."""
    dealt = assign_ranks(num_adapters, [8, 16, 32], weights=weights)
    shares = np.array(weights) / sum(weights) * num_adapters
    counts = np.array([dealt.count(rank) for rank in (8, 16, 32)])
    assert counts.sum() == num_adapters
    assert np.all(np.abs(counts - shares) < 1 + 1e-9)


@pytest.mark.parametrize("ranks", [[], [12], [8, 24]])
def test_ranks_that_vllm_does_not_have_are_refused(ranks: list[int]) -> None:
    """The message lists those it has."""
    with pytest.raises(InputError, match="one or more of 8, 16, 32, 64, 128"):
        assign_ranks(3, ranks)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_must_fit_the_ranks(weights: list[float]) -> None:
    """One finite share per rank."""
    with pytest.raises(InputError, match="rank weights must be"):
        assign_ranks(3, [8, 16], weights=weights)


def test_the_public_popularity_curve_is_read(data_dir: Path) -> None:
    """874 LoRAs, the ten most popular with 28 % of the requests."""
    popularity = read_popularity(data_dir / "workloads" / "alibaba_genai2026_lora_popularity.csv")
    assert len(popularity.requests) == 874
    assert popularity.probabilities(874)[:10].sum() == pytest.approx(0.28, abs=0.005)
