"""Compare priors with the measured profiles: `python -m benchmarks.prior_accuracy [--json]`.

A prior takes from measured profiles what physics does not give. Here it may only use those of other models than the one
it is judged by; all of them are of one GPU. The batches are those of `twin.calibration.prior.typical_steps`.
"""

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np

from twin.calibration.prior import (
    band_arrays,
    prior_profile,
    reference_profiles,
    typical_steps,
)
from twin.calibration.step_fit import step_terms
from twin.hardware import SHIPPED_MODELS
from twin.profile import PerformanceProfile


@dataclass(frozen=True)
class PriorAccuracy:
    """How far the step times of a prior are from those of a measured profile, in percent of the measured ones."""

    profile: str
    kind: str
    num_batches: int
    mape_percent: float
    bias_percent: float
    lowest_percent: float
    highest_percent: float
    num_outside_band: int


def compare(profile: PerformanceProfile) -> tuple[PriorAccuracy, ...]:
    """Return the errors of a prior without `profile`, over all batches and by kind of batch."""
    others = [other for other in reference_profiles() if other.model != profile.model]
    prior = prior_profile(SHIPPED_MODELS[profile.model], profile.gpu, references=others)
    steps = typical_steps()
    terms = step_terms(steps)
    measured = terms @ profile.step_time.as_array()
    errors = 100.0 * (terms @ prior.step_time.as_array() / measured - 1.0)
    low, high = (terms @ array for array in band_arrays(prior))
    is_outside = (measured < low) | (measured > high)
    kinds = {
        "all": np.ones(len(steps), dtype=np.bool_),
        "decode without LoRA": (steps.prefill == 0) & (steps.slots == 0),
        "decode with LoRA": (steps.prefill == 0) & (steps.slots > 0),
        "mixed without LoRA": (steps.prefill > 0) & (steps.slots == 0),
        "mixed with LoRA": (steps.prefill > 0) & (steps.slots > 0),
    }
    return tuple(
        PriorAccuracy(
            profile=profile.name,
            kind=kind,
            num_batches=int(mask.sum()),
            mape_percent=float(np.abs(errors[mask]).mean()),
            bias_percent=float(errors[mask].mean()),
            lowest_percent=float(errors[mask].min()),
            highest_percent=float(errors[mask].max()),
            num_outside_band=int(is_outside[mask].sum()),
        )
        for kind, mask in kinds.items()
    )


def main() -> None:
    """Print a table of errors, or the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    rows = [row for profile in reference_profiles() for row in compare(profile)]
    if parser.parse_args().json:
        print(json.dumps([asdict(row) for row in rows], indent=2, sort_keys=True))
        return
    print(f"{'profile':<24} {'batches':<20} {'number':>6} {'MAPE %':>7} {'bias %':>7} {'range %':>16} {'outside':>8}")
    for row in rows:
        span = f"{row.lowest_percent:+.1f} .. {row.highest_percent:+.1f}"
        print(
            f"{row.profile:<24} {row.kind:<20} {row.num_batches:>6} {row.mape_percent:>7.1f} {row.bias_percent:>+7.1f} "
            f"{span:>16} {row.num_outside_band:>8}"
        )


if __name__ == "__main__":
    main()
