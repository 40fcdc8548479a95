"""What measurements do not say: regimes without data, coefficients that the data do not tell apart."""

import numpy as np

from tests.twin.random_steps import EVERY_COEFFICIENT, as_values, observed, random_steps
from twin.calibration.coverage import (
    LEAST_RUN_SHARE,
    RunCoverage,
    coverage_warnings,
    identification_warnings,
    step_kinds,
)
from twin.calibration.observations import StepObservations
from twin.calibration.step_fit import relative_design
from twin.calibration.step_table import no_steps
from twin.step_time import COEFFICIENT_NAMES


def test_regimes_without_data_are_named() -> None:
    """Each kind of step that does not occur has its sentence; a full set of steps has none."""
    full = observed(random_steps(3000, seed=4))
    assert [text for text in coverage_warnings(full) if "slots without" in text or text.startswith("No")] == []
    decodes = full.select((full.steps.prefill == 0) & (full.steps.slots == 100) & (full.steps.max_rank == 8))
    text = " ".join(coverage_warnings(decodes.select(decodes.steps.tokens < 128)))
    for part in (
        "No steps without LoRA",
        "No steps with a prefill",
        "No mixed steps",
        "more than 512 tokens",
        "128 tokens or more",
        "One number of slots only (100)",
        "rank 16, 32 are extrapolated from those of rank 8",
    ):
        assert part in text
    dense = full.select(full.steps.slots == 0)
    assert "No steps with LoRA" in " ".join(coverage_warnings(dense))
    assert coverage_warnings(no_steps()) == ("No step was measured: all step times are extrapolated.",)
    queueless = full.select(full.steps.waiting == 0)
    assert "with a queue" in " ".join(coverage_warnings(queueless))
    assert "with a queue" not in " ".join(coverage_warnings(queueless, fixed=["blocked_waiting_ms"]))


def test_coefficients_that_the_data_do_not_identify_are_named() -> None:
    """Decodes of one token per request cannot tell tokens from requests, nor see a prefill."""
    full = observed(random_steps(2000, seed=5))
    decodes = full.select((full.steps.tokens == full.steps.requests) & (full.steps.slots == 0))
    values = as_values(EVERY_COEFFICIENT) | {"request_ms": 0.01}
    bounds = dict.fromkeys(values, (0.001, 20.0)) | {"context_token_ms": (0.0, 1e-3), "base_ms": (11.9, 12.1)}
    text = " ".join(identification_warnings(relative_design(decodes), values, bounds))
    assert "`token_ms` and `request_ms` apart" in text
    assert "`context_token_ms` (per KV token read) may as well be 0: its 95 % interval is " in text
    assert "adapter_ms" in text.partition("No step has what these coefficients stand for:")[2]
    assert "`base_ms` may" not in text
    assert identification_warnings(relative_design(no_steps()), values, bounds) == ()


def _dense() -> StepObservations:
    full = observed(random_steps(3000, seed=6))
    return full.select(full.steps.slots == 0)


def _coverage(**shares: float) -> RunCoverage:
    """Return runs of slots (8, 32) and rank 16, in which the kinds of steps have the given shares of the time."""
    return RunCoverage(dict.fromkeys(step_kinds(no_steps().steps), 0.0) | shares, (8, 32), (16,))


def test_kinds_of_steps_that_only_runs_have_are_named_as_such() -> None:
    """They are in a mean: neither measured by themselves, nor without any data."""
    shares = {"with LoRA": 1.0, "with an adapter in the batch": 0.9, "with LoRA below 128 tokens": 0.8}
    warnings = coverage_warnings(_dense(), runs=_coverage(**shares))
    (means,) = (text for text in warnings if text.startswith("Only serving runs"))
    assert [name for name in step_kinds(no_steps().steps) if f" {name}" in means] == list(shares)
    text = " ".join(warnings)
    assert "every LoRA cost is extrapolated" not in text
    assert "No steps with slots but no adapter" in text
    assert "No LoRA steps of 128 tokens or more" in text
    assert "with a queue while adapters take all slots" in text
    assert "Slots of rank 8, 32 are extrapolated from those of rank 16" in text


def test_kinds_that_are_rare_in_the_runs_do_not_count() -> None:
    """A mean that is known to a percent says nothing about a few percent of its time."""
    large = "of more than 512 tokens"
    full = observed(random_steps(3000, seed=7))
    small = full.select(full.steps.tokens <= 512)
    for share, expected in ((0.5 * LEAST_RUN_SHARE, "are extrapolated"), (2.0 * LEAST_RUN_SHARE, "Only serving runs")):
        warnings = coverage_warnings(small, runs=_coverage(**{large: share}))
        assert [expected in text for text in warnings if large in text] == [True]


def test_measured_kinds_are_not_repeated_for_the_runs() -> None:
    """Rows of a table say more than a mean."""
    full = observed(random_steps(3000, seed=8))
    everything = _coverage(**dict.fromkeys(step_kinds(no_steps().steps), 0.5))
    assert coverage_warnings(full, runs=everything) == coverage_warnings(full) == ()


def test_slots_and_ranks_of_the_runs_are_measured_ones() -> None:
    """They are settings, and known: one number of slots in the table and two others in the runs are three."""
    full = observed(random_steps(3000, seed=9))
    one = full.select((full.steps.slots == 100) & (full.steps.max_rank == 8))
    alone, joint = (" ".join(coverage_warnings(one, runs=runs)) for runs in (None, _coverage(**{"with LoRA": 1.0})))
    assert "One number of slots only (100)" in alone
    assert "Slots of rank 16, 32 are extrapolated from those of rank 8" in alone
    assert "One number of slots" not in joint
    assert "Slots of rank 32 are extrapolated from those of rank 8, 16" in joint


def test_runs_alone_are_named_as_all_there_is() -> None:
    """Without a table of steps every kind of step is in a mean, or nowhere."""
    warnings = coverage_warnings(no_steps(), runs=_coverage(**{"with LoRA": 1.0, "without a prefill": 0.7}))
    assert warnings[0] == "No step was measured: step times rest on the mean times per token of serving runs."
    text = " ".join(warnings)
    assert "all step times are extrapolated" not in text
    assert "show steps with LoRA; without a prefill." in text
    assert "No steps with a prefill" in text


def test_kinds_of_steps_are_told_from_their_counts() -> None:
    """Each row of a few handmade steps is of the kinds that its counts say, and every kind occurs in many."""
    many = random_steps(3000, seed=10)
    assert [name for name, occurs in step_kinds(many).items() if not occurs.any()] == []
    kinds = step_kinds(many)
    assert not (kinds["with LoRA"] & kinds["without LoRA"]).any()
    assert (kinds["with a prefill"] | kinds["without a prefill"]).all()
    assert (kinds["with a queue while adapters take all slots"] <= kinds["with an adapter in the batch"]).all()


def test_rows_of_runs_show_and_tell_apart_what_steps_do_not() -> None:
    """A further row with tokens but no requests: what it adds is neither unseen nor one sum any more."""
    full = observed(random_steps(2000, seed=5))
    decodes = relative_design(full.select((full.steps.tokens == full.steps.requests) & (full.steps.slots == 0)))
    values = as_values(EVERY_COEFFICIENT)
    bounds = {name: (0.9 * value, 1.1 * value) for name, value in values.items()}
    row = np.zeros((1, len(COEFFICIENT_NAMES)))
    row[0, COEFFICIENT_NAMES.index("token_ms")] = 10.0 * np.abs(decodes).max()
    row[0, COEFFICIENT_NAMES.index("lora_base_ms")] = 1.0
    alone, joint = (
        " ".join(identification_warnings(rows, values, bounds)) for rows in (decodes, np.vstack([decodes, row]))
    )
    assert "`token_ms` and `request_ms` apart" in alone
    assert "`token_ms` and `request_ms` apart" not in joint
    unseen = [
        text.partition("No step has what these coefficients stand for:")[2].split(".")[0] for text in (alone, joint)
    ]
    assert ["lora_base_ms" in names for names in unseen] == [True, False]
    assert ["adapter_ms" in names for names in unseen] == [True, True]
