"""Fit the step-time coefficients to measured steps: non-negative least squares of relative errors.

`twin.step_time.step_time_ms` is linear in its coefficients, so a measurement is a row of term values and a time. A
measurement may also be a mean over many steps (an inter-token latency); its row is then the same mean of the steps'
rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.calibration.observations import StepObservations, Steps
from twin.errors import ProfileError
from twin.step_time import (
    COEFFICIENT_NAMES,
    EXPAND_TILE_TOKENS,
    LARGE_BATCH_TOKENS,
    LARGE_SPLIT_SHARE,
    PADDING_TOKENS,
    SHRINK_TILE_RANKS,
    SHRINK_TILE_TOKENS,
    SMALL_BATCH_TOKENS,
)

# Share of the resampled fits that an interval covers, in percent.
INTERVAL_PERCENT = 95.0
# What one measured step time is off by, relative to it: the currency in which a prior and data are weighed.
RELATIVE_NOISE = 0.03
# Systems of more rows are reduced first: resampling solves hundreds of them.
MOST_ROWS = 5000


@dataclass(frozen=True)
class RegimeError:
    """Relative errors of one regime, in percent."""

    regime: str
    num_rows: int
    mape_percent: float
    bias_percent: float
    max_percent: float


@dataclass(frozen=True)
class CoefficientPrior:
    """What is believed about the coefficients before anything is measured: independent normal laws.

    Attributes
    ----------
    values
        float64 [len(COEFFICIENT_NAMES)], most likely values, >= 0.
    deviations
        float64 [len(COEFFICIENT_NAMES)], standard deviations, > 0.
    """

    values: NDArray[np.float64]
    deviations: NDArray[np.float64]

    def rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return pseudo-observations to be fitted with relative errors: matrix [C, C] and target [C]."""
        weight = RELATIVE_NOISE / self.deviations
        return np.diag(weight), weight * self.values

    def drawn(self, generator: np.random.Generator) -> CoefficientPrior:
        """Return a prior whose values are one draw from this one."""
        values = np.maximum(generator.normal(self.values, self.deviations), 0.0)
        return CoefficientPrior(values, self.deviations)


@dataclass(frozen=True)
class StepFit:
    """Fitted coefficients and what they leave unexplained.

    Attributes
    ----------
    coefficients
        By name, in ms per unit.
    fixed
        Names of the coefficients that were given, not fitted.
    at_bound
        Names of the fitted coefficients that would be negative if they could.
    errors
        One row per regime, and one named "all".
    """

    coefficients: dict[str, float]
    fixed: frozenset[str]
    at_bound: frozenset[str]
    errors: tuple[RegimeError, ...]


def step_terms(steps: Steps) -> NDArray[np.float64]:
    """Return float64 [K, len(COEFFICIENT_NAMES)]: what each coefficient is multiplied by, per step."""
    o = steps
    has_lora = (o.slots > 0).astype(np.float64)
    is_large = (o.tokens > LARGE_BATCH_TOKENS).astype(np.float64)
    padded = np.where(is_large > 0, o.tokens, np.ceil(o.tokens / PADDING_TOKENS) * PADDING_TOKENS)
    grid_slots = (o.slots + 1) * has_lora
    split = np.where(o.tokens < SMALL_BATCH_TOKENS, 1.0, LARGE_SPLIT_SHARE)
    shrink = split * np.ceil(o.max_rank / SHRINK_TILE_RANKS)
    adapters = o.adapters * has_lora
    looked_up = np.minimum(o.slots, o.cached_adapters) * (o.tokens + o.requests)
    columns = {
        "base_ms": np.ones_like(o.tokens),
        "token_ms": o.tokens,
        "request_ms": o.requests,
        "context_token_ms": o.context_tokens,
        "large_batch_ms": is_large,
        "large_batch_token_ms": is_large * (o.tokens - LARGE_BATCH_TOKENS),
        "mixed_context_token_ms": o.prefill * o.context_tokens,
        "changed_request_ms": o.changed * o.requests,
        "lora_base_ms": has_lora,
        "lora_active_ms": (adapters > 0).astype(np.float64),
        "lora_token_ms": o.tokens * has_lora,
        "expand_tile_ms": grid_slots * np.ceil(padded / EXPAND_TILE_TOKENS),
        "shrink_tile_ms": grid_slots * np.ceil(padded / SHRINK_TILE_TOKENS) * shrink,
        "adapter_ms": adapters,
        "adapter_shrink_ms": adapters * shrink,
        "adapter_request_ms": adapters * o.requests,
        "cached_adapter_ms": adapters * o.cached_adapters,
        "slot_lookup_ms": o.changed * looked_up * has_lora,
        "blocked_waiting_ms": o.waiting * has_lora * (o.adapters == o.slots),
    }
    return np.stack([columns[name] for name in COEFFICIENT_NAMES], axis=1)


def design_matrix(observations: StepObservations) -> NDArray[np.float64]:
    """Return float64 [N, len(COEFFICIENT_NAMES)]: the terms of `twin.step_time.step_time_ms` per measurement."""
    terms = step_terms(observations.steps)
    return np.stack([observations.means(column) for column in terms.T], axis=1)


def relative_design(observations: StepObservations) -> NDArray[np.float64]:
    """Return float64 [N, len(COEFFICIENT_NAMES)]: `design_matrix`, each row divided by its measured time."""
    return design_matrix(observations) / observations.time_ms[:, None]


def fit_step_time(
    observations: StepObservations,
    *,
    fixed: Mapping[str, float] | None = None,
    prior: CoefficientPrior | None = None,
) -> StepFit:
    """Fit all coefficients but the `fixed` ones to the measurements, each weighted by 1 / its time.

    With a `prior`, what the measurements do not say stays where the prior has it; there may then be no measurement.

    Raises
    ------
    ProfileError
        When scipy is not installed (extra ``train``).
    """
    given = dict(fixed or {})
    matrix = relative_design(observations)
    vector = solve_relative(matrix, np.ones(len(matrix)), fixed=given, prior=prior)
    coefficients = dict(zip(COEFFICIENT_NAMES, vector.tolist(), strict=True))
    return StepFit(coefficients, frozenset(given), at_bound(vector, given), error_table(observations, coefficients))


def at_bound(solution: NDArray[np.float64], fixed: Collection[str]) -> frozenset[str]:
    """Return the names of the coefficients that are 0 in a solution of `solve_relative` and were free."""
    return frozenset(name for name, value in zip(COEFFICIENT_NAMES, solution, strict=True) if not value) - {*fixed}


def solve_relative(
    matrix: NDArray[np.float64],
    target: NDArray[np.float64],
    *,
    fixed: Mapping[str, float],
    prior: CoefficientPrior | None = None,
) -> NDArray[np.float64]:
    """Return the coefficients >= 0, float64 [len(COEFFICIENT_NAMES)], that bring ``matrix @ x`` closest to `target`.

    Parameters
    ----------
    matrix
        float64 [rows, len(COEFFICIENT_NAMES)], each row and its target already divided by what its error is relative
        to.
    fixed
        Coefficients that keep the given value.
    prior
        Adds one row per coefficient; ``None``: the rows alone decide.
    """
    if prior is not None:
        rows, values = prior.rows()
        matrix, target = np.vstack([matrix, rows]), np.concatenate([target, values])
    vector = np.array([fixed.get(name, 0.0) for name in COEFFICIENT_NAMES])
    free = np.array([name not in fixed for name in COEFFICIENT_NAMES])
    vector[free] = solve_least_squares(matrix[:, free], target - matrix @ vector)
    return vector


def solve_least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the x >= 0, float64 [columns], with the least ``|matrix @ x - target|``; columns are scaled to one size.

    Raises
    ------
    ProfileError
        When scipy is not installed (extra ``train``).
    """
    try:
        from scipy.optimize import nnls  # noqa: PLC0415  scipy is an optional extra that only fitting needs
    except ImportError as error:
        raise ProfileError(
            "fitting a profile needs scipy, which is not installed.", hint="install the extra: lora-placer[train]"
        ) from error
    scale = np.abs(matrix).max(axis=0, initial=0.0)
    scale[scale == 0] = 1.0
    if len(matrix) > MOST_ROWS:
        # The triangle of [matrix, target] has the same least squares, in as many rows as columns.
        triangle: NDArray[np.float64] = np.asarray(
            np.linalg.qr(np.column_stack([matrix / scale, target]), mode="r"), dtype=np.float64
        )
        matrix, target = triangle[:, :-1] * scale, triangle[:, -1]
    solution: NDArray[np.float64] = nnls(matrix / scale, target, maxiter=1000 * max(1, matrix.shape[1]))[0] / scale
    return solution


def intervals(
    observations: StepObservations,
    *,
    fixed: Mapping[str, float] | None = None,
    prior: CoefficientPrior | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return `INTERVAL_PERCENT` intervals of the fitted coefficients: whole groups of measurements are resampled."""
    given = dict(fixed or {})
    matrix = relative_design(observations)
    return bootstrap_intervals(
        matrix, np.ones(len(matrix)), observations.group, fixed=given, prior=prior, resamples=resamples, seed=seed
    )


def bootstrap_intervals(
    matrix: NDArray[np.float64],
    target: NDArray[np.float64],
    group: NDArray[np.str_],
    *,
    fixed: Mapping[str, float],
    resamples: int,
    seed: int,
    prior: CoefficientPrior | None = None,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of `solve_relative` over bootstrap resamples of the rows' groups.

    With a prior, each resample also draws its values, and noise of every row: few groups alone would look certain.
    """
    generator = np.random.default_rng(seed)
    names, index = np.unique(group, return_inverse=True)
    solutions = []
    for _ in range(resamples):
        counts = np.bincount(generator.integers(0, max(len(names), 1), len(names)), minlength=len(names))
        weight = np.sqrt(counts[index])
        drawn, measured = prior, target
        if prior is not None:
            drawn, measured = prior.drawn(generator), target + generator.normal(0.0, RELATIVE_NOISE, len(target))
        solutions.append(solve_relative(matrix * weight[:, None], measured * weight, fixed=fixed, prior=drawn))
    tail = 0.5 * (100.0 - INTERVAL_PERCENT)
    low, high = np.percentile(solutions, [tail, 100.0 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(COEFFICIENT_NAMES) if name not in fixed}


def data_shares(
    matrix: NDArray[np.float64], prior: CoefficientPrior, *, fixed: Collection[str] = ()
) -> dict[str, float]:
    """Return, by name, how much of each coefficient's prior variance the rows remove: 0 nothing, 1 all.

    That of the linear model without the bound at 0; a coefficient that is `fixed` has none.

    Parameters
    ----------
    matrix
        float64 [rows, len(COEFFICIENT_NAMES)], as `solve_relative` takes them: each row is known to `RELATIVE_NOISE`.
    """
    free = np.array([name not in fixed for name in COEFFICIENT_NAMES])
    scaled = matrix[:, free] * prior.deviations[free] / RELATIVE_NOISE
    remaining = np.diag(np.linalg.inv(scaled.T @ scaled + np.eye(int(free.sum()))))
    names = [name for name, is_free in zip(COEFFICIENT_NAMES, free.tolist(), strict=True) if is_free]
    return dict(zip(names, (1.0 - remaining).tolist(), strict=True))


def leave_one_out(
    observations: StepObservations,
    regimes: Mapping[str, NDArray[np.bool_]],
    *,
    fixed: Mapping[str, float] | None = None,
    prior: CoefficientPrior | None = None,
) -> tuple[RegimeError, ...]:
    """Return the errors on each of `regimes` (bool [N]) of a fit to all other measurements: extrapolation."""
    errors = []
    for name, mask in regimes.items():
        if mask.any() and not mask.all():
            fit = fit_step_time(observations.select(~mask), fixed=fixed, prior=prior)
            left_out = error_table(observations.select(mask), fit.coefficients)[-1]
            errors.append(
                RegimeError(name, left_out.num_rows, left_out.mape_percent, left_out.bias_percent, left_out.max_percent)
            )
    return tuple(errors)


def predicted_ms(observations: StepObservations, coefficients: Mapping[str, float]) -> NDArray[np.float64]:
    """Return float64 [N]: the times that `coefficients` give the measurements."""
    vector = np.array([coefficients[name] for name in COEFFICIENT_NAMES])
    times: NDArray[np.float64] = design_matrix(observations) @ vector
    return times


def error_table(observations: StepObservations, coefficients: Mapping[str, float]) -> tuple[RegimeError, ...]:
    """Return the relative errors (predicted / measured - 1) of `coefficients` per regime, and over all measurements.

    Nothing measured: no rows.
    """
    if len(observations.time_ms) == 0:
        return ()
    relative = 100.0 * (predicted_ms(observations, coefficients) / observations.time_ms - 1.0)
    rows = []
    for regime in [*sorted(set(observations.regime.tolist())), "all"]:
        part = relative if regime == "all" else relative[observations.regime == regime]
        magnitudes = np.abs(part)
        rows.append(
            RegimeError(regime, len(part), float(magnitudes.mean()), float(part.mean()), float(magnitudes.max()))
        )
    return tuple(rows)
