"""A surrogate by a closed formula: monotone in the load, fast, and exact about itself."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.surrogate import SurrogateOutput
from solvers.patterns.cuts import Cuts
from solvers.problem_file import Limits

_COLUMN = {name: index for index, name in enumerate(FEATURE_SCHEMA.names)}


class AnalyticSurrogate:
    """A replica whose utilisation is a sum of linear terms, and which starves above 1.

    Every term grows with the load and with the adapters; slots and their rank cost time and KV cache, and adapters
    that compete for too few slots cost time. So there is a best number of slots, and subsets of feasible sets are
    feasible at the same slots.
    """

    def __init__(self, *, speed: float = 1.0) -> None:
        self.speed = speed
        self.num_calls = 0

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return FEATURE_SCHEMA

    @property
    def is_monotone(self) -> bool:
        """Whether more load never helps: every coefficient is positive."""
        return True

    @property
    def feature_signs(self) -> Mapping[str, int]:
        """In which features the formula is monotone (`solvers.patterns.box_bounds`): in all but the slots."""
        harmful = dict.fromkeys(
            ("sum_prompt_tps", "sum_output_tps", "sum_kv_token_steps", "active_10s", "active_40s", "max_lora_rank"), 1
        )
        without_influence = dict.fromkeys(set(FEATURE_SCHEMA.names) - set(harmful) - {"kv_tokens", "max_loras"}, 0)
        return {**harmful, **without_influence, "kv_tokens": -1}

    def utilisation(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the share of a replica's time that each row needs."""

        def column(name: str) -> NDArray[np.float64]:
            return features[:, FEATURE_SCHEMA.index(name)].astype(np.float64)

        slots, rank = column("max_loras"), column("max_lora_rank")
        missing_slots = np.maximum(column("active_10s") - slots, 0.0)
        step_s = 0.02 + 3e-5 * slots * (1.0 + rank / 32.0)
        tokens = 3e-5 * column("sum_prompt_tps") + 3e-4 * column("sum_output_tps")
        kv_share = column("sum_kv_token_steps") * step_s / np.maximum(column("kv_tokens"), 1.0)
        time_share = tokens * step_s / 0.02 + 0.01 * missing_slots + 0.002 * column("active_40s")
        return np.maximum(time_share, kv_share) / self.speed

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return predictions; the ratio is 1 up to full utilisation."""
        self.num_calls += 1
        used = self.utilisation(features)
        ratio = 1.0 / np.maximum(used, 1.0)
        offered = (
            features[:, FEATURE_SCHEMA.index("sum_prompt_tps")] + features[:, FEATURE_SCHEMA.index("sum_output_tps")]
        )
        columns = (ratio, np.clip(used - 0.5, 0.0, 1.0), ratio * offered, 0.02 * (1.0 + used), 0.5 * used)
        return SurrogateOutput(*(np.asarray(values, dtype=np.float32) for values in columns))


class ClosedFormSurrogate(AnalyticSurrogate):
    """The same formula, which also says what it accepts: at given slots it is piecewise linear in the load."""

    def accepted_cuts(self, limits: Limits, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> Cuts:
        """Return that the time share, without and with missing slots, and the KV share are within the limits."""
        fewest, most = lower[:, _COLUMN["max_loras"]], upper[:, _COLUMN["max_loras"]]
        step_s = 0.02 + 3e-5 * fewest * (1.0 + lower[:, _COLUMN["max_lora_rank"]] / 32.0)
        gradients = np.zeros((len(lower), 3, lower.shape[1]))
        for cut in range(2):
            gradients[:, cut, _COLUMN["sum_prompt_tps"]] = 3e-5 * step_s / 0.02
            gradients[:, cut, _COLUMN["sum_output_tps"]] = 3e-4 * step_s / 0.02
            gradients[:, cut, _COLUMN["active_40s"]] = 0.002
        gradients[:, 1, _COLUMN["active_10s"]] = 0.01
        gradients[:, 2, _COLUMN["sum_kv_token_steps"]] = step_s / np.maximum(upper[:, _COLUMN["kv_tokens"]], 1.0)
        most_used = min(
            1.0,
            1.0 / (1.0 - limits.starvation_tolerance),
            np.inf if limits.itl_p95_ms is None else limits.itl_p95_ms / 20.0 - 1.0,
            np.inf if limits.ttft_p95_ms is None else limits.ttft_p95_ms / 500.0,
        )
        # Features and answers are rounded to float32.
        slack = np.full((len(lower), 3), most_used * self.speed * (1.0 + 1e-5))
        slack[:, 1] += 0.01 * most
        return Cuts(gradients, slack - np.einsum("bmf,bf->bm", gradients, lower))
