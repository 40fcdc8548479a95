"""Surrogates in ONNX files: asked with checked features, and never taken at their word where they give no number."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.answer_bounds import AnswerBounds, Quotients
from predictors.bound_row import BoundRow
from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA, FeatureSchema, describe_row
from predictors.neural import RATIO, STARVATION, NeuralNetwork
from predictors.polyhedra import METADATA_KEY, Polyhedra, parse_polyhedra, require_answers
from predictors.surrogate import OUTPUT_NAMES, STARVED_PROBABILITY, SurrogateOutput, empty_output, require_domain
from predictors.surrogate_file import CHECK_HINT, INPUT_NAME, METADATA_KEYS, SurrogateFile
from twin.errors import SurrogateError

__all__ = ["INPUT_NAME", "METADATA_KEYS", "REFUSED_LATENCY_S", "OnnxSurrogate"]

# What a latency becomes when the model says NaN: finite, so that it can be written and compared, and above every
# limit.
REFUSED_LATENCY_S = 1e6
_REFUSAL = np.array([[0.0], [1.0], [0.0], [REFUSED_LATENCY_S], [REFUSED_LATENCY_S]], dtype=np.float32)


class OnnxSurrogate:
    """A surrogate that runs in ONNX Runtime on one thread; make it with `load`.

    Attributes
    ----------
    file
        Where it was read from.
    metadata
        The file's metadata, by key (JSON texts); it has at least `METADATA_KEYS`.
    domain
        Where it was fitted.
    """

    def __init__(self, source: SurrogateFile, domain: Domain) -> None:
        self._source = source
        self._row: BoundRow | None = None
        self._polyhedra: Polyhedra | None = None
        self.file = source.path
        self.metadata = dict(source.metadata)
        self.domain = domain

    @classmethod
    def load(cls, path: str | Path) -> OnnxSurrogate:
        """Read a surrogate and check everything that can be checked before it is asked.

        Raises
        ------
        SurrogateError
            When the file is missing or is no ONNX model; when a metadata key is missing (named), was written for
            another feature schema, or is malformed; when its input or outputs have other names, types or shapes than
            `features` float32 [N, F] and `OUTPUT_NAMES` float32 [N]; when it says that it accepts polyhedra and
            answers otherwise; when ONNX Runtime is not installed.
        """
        source = SurrogateFile.open(path)
        source.require_rules()
        surrogate = cls(source, source.domain())
        surrogate._probe()
        if METADATA_KEY in source.metadata:
            surrogate._polyhedra = parse_polyhedra(source.metadata[METADATA_KEY], file=source.path)
            require_answers(surrogate._polyhedra, surrogate._ask, source.domain(), file=source.path)
        return surrogate

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return FEATURE_SCHEMA

    @cached_property
    def network(self) -> NeuralNetwork | None:
        """The network that the file holds, read back; None where it is no network of ours or `onnx` is not installed.

        It is compared with what the session answers, so that a file that was replaced since is noticed.
        """
        try:
            # The library reads graphs; only asking needs ONNX Runtime alone.
            graphs = importlib.import_module("predictors.network_graph")
        except ImportError:
            return None
        network: NeuralNetwork | None = graphs.network_in(self.file)
        if network is None:
            return None
        rows = self._rows_of_domain()
        raw = network.raw(rows)
        expected = np.stack(
            [np.exp(np.minimum(raw[:, RATIO], 0.0)), 1.0 / (1.0 + np.exp(-np.clip(raw[:, STARVATION], -50.0, 50.0)))]
        )
        return network if np.allclose(self._ask(rows)[:2], expected, atol=1e-2) else None

    @cached_property
    def polyhedra(self) -> Polyhedra | None:
        """The polyhedra that decide what is accepted; None where there are none, or `onnx` is not installed.

        Raises
        ------
        SurrogateError
            When the graph does not compute those of the metadata, node for node and number for number.
        """
        if self._polyhedra is None:
            return None
        try:
            # The library reads graphs; only asking needs ONNX Runtime alone.
            graphs = importlib.import_module("predictors.polyhedra_graph")
        except ImportError:
            return None
        graphs.require_computed(self.file, self._polyhedra)
        return self._polyhedra

    @cached_property
    def answer_bounds(self) -> AnswerBounds | None:
        """What bounds the answers in boxes; None where a node of the graph is not understood or `onnx` is missing.

        It is compared with what the session answers, so that a file that was replaced since is noticed.
        """
        try:
            graphs = importlib.import_module("predictors.interval_graph")
        except ImportError:
            return None
        names = OUTPUT_NAMES
        graph: AnswerBounds | None = graphs.intervals_in(self.file, names)
        if graph is None:
            return None
        rows = self._rows_of_domain()
        corners = rows.astype(np.float64)
        bounds = graph.bounds(corners, corners, Quotients.unknown())
        answers = dict(zip(names, self._ask(rows), strict=True))
        is_held = [
            (bounds[name].lower <= answers[name]) & (answers[name] <= bounds[name].upper) | np.isnan(answers[name])
            for name in names
        ]
        return graph if np.all(is_held) else None

    def _rows_of_domain(self) -> NDArray[np.float32]:
        """Return a few rows from the domain, float32 [8, F]."""
        corners = np.array([self.domain.features[name] for name in FEATURE_SCHEMA.names]).T
        shares = np.linspace(0.01, 1.0, 8)[:, np.newaxis]
        return np.asarray((corners[0] + shares * (corners[1] - corners[0])).astype(np.float32))

    @property
    def profile_name(self) -> str:
        """Name of the performance profile that it was distilled from."""
        return str(json.loads(self.metadata["profile"])["name"])

    @property
    def profile_fingerprint(self) -> str | None:
        """Hash of that profile's numbers (`predictors.provenance.profile_fingerprint`), if the file gives it."""
        value = json.loads(self.metadata["profile"]).get("fingerprint")
        return str(value) if value is not None else None

    def threshold_for(self, risk: float) -> float:
        """Return the probability of starvation, in (0, 0.5], below which a GPU may be accepted at this risk.

        With it, the twin rejects at most a share `risk` of packed GPUs. It is that of the largest risk that the file
        has and that is not above `risk` (`predictors.risk.fit_thresholds`).

        Raises
        ------
        SurrogateError
            When the file has no threshold for so small a risk, only the margins of an earlier version, or thresholds
            that are no such probabilities.
        """
        training = json.loads(self.metadata["training"])
        known = self._thresholds(training["thresholds"]) if "thresholds" in training else {}
        covered = [level for level in known if level <= risk]
        if covered:
            return known[max(covered)]
        levels = ", ".join(f"{level:g}" for level in sorted(known)) or "no risk"
        remedy = "ask for a larger risk"
        if "thresholds" not in training and "margins" in training:
            levels, remedy = "no thresholds (only margins, of an earlier version)", "train it again with `placer train`"
        raise SurrogateError(
            f"a threshold can be had for a risk that the surrogate was calibrated for. {self.file} knows {levels}, "
            f"and {risk:g} was asked for.",
            file=self.file,
            field="risk",
            value=risk,
            hint=f"{remedy}, or say the --margin on the rates",
        )

    def _thresholds(self, facts: Any) -> dict[float, float]:
        """Return the thresholds by risk; SurrogateError if `facts`, of the file's metadata, do not give them."""
        by_risk: Any = facts.get("by_risk") if isinstance(facts, dict) else facts
        try:
            known = {float(level): float(threshold) for level, threshold in by_risk.items()}
        except (AttributeError, TypeError, ValueError):
            known = {math.nan: math.nan}
        if not all(level > 0.0 and 0.0 < threshold <= STARVED_PROBABILITY for level, threshold in known.items()):
            raise SurrogateError(
                "`thresholds.by_risk` of the metadata key `training` must give for each risk a probability in "
                f'(0, {STARVED_PROBABILITY:g}], such as {{"0.05": 0.1}}. Got {json.dumps(by_risk)} ({self.file}).',
                file=self.file,
                field="training.thresholds.by_risk",
                value=by_risk,
                hint="docs/bring-your-own-surrogate.md says what it is",
            )
        return known

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions for `features`, float32 [N, F].

        A row outside of the domain for which the model gives NaN or infinity counts as infeasible: ratio 0, probability
        1, nothing served.

        Raises
        ------
        SurrogateError
            When `features` has another shape, or a value that is not finite; when the model gives NaN or infinity for a
            row inside its domain: it is broken where it was said to hold, and a plan must not hide that.
        """
        rows = _checked_rows(features)
        if len(rows) == 0:
            return empty_output()
        table = self._ask(rows)
        is_number = np.isfinite(table)
        answers = _cut_to_range(table)
        if not is_number.all():
            self._require_numbers(table, is_number, rows)
            answers[:, ~is_number.all(axis=0)] = _REFUSAL
        return SurrogateOutput(*answers)

    def predict_itl_mean_s(self, features: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return the mean inter-token latency in seconds of `features` [N, F], float32 [N]; None if the file lacks it.

        Raises
        ------
        SurrogateError
            As `predict` does about its features.
        """
        if not self._source.has_output("itl_mean_s"):
            return None
        return self._source.run(_checked_rows(features), ("itl_mean_s",))[0]

    def predict_strictly(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions; SurrogateError if any row is outside the domain."""
        require_domain(self, features)
        return self.predict(features)

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return for each row of `features` [N, F] whether it is outside its domain, bool [N]."""
        return self.domain.outside(features, FEATURE_SCHEMA.names)

    def _require_numbers(
        self, table: NDArray[np.float32], is_number: NDArray[np.bool_], rows: NDArray[np.float32]
    ) -> None:
        """Raise SurrogateError if an output, [5, N], is no number in a row inside the domain."""
        broken = ~is_number & ~self.outside_domain(rows)
        if broken.any():
            output, row = (int(index) for index in np.argwhere(broken)[0])
            num_rows = int(broken.any(axis=0).sum())
            raise SurrogateError(
                f"a surrogate must give numbers inside its domain. {self.file} gives {table[output, row]} for "
                f"`{OUTPUT_NAMES[output]}` of {describe_row(rows[row])} ({num_rows} of {len(rows)} sets asked about).",
                file=self.file,
                field=OUTPUT_NAMES[output],
                value=float(table[output, row]),
                hint=CHECK_HINT,
            )

    def _probe(self) -> None:
        """Ask for two rows and for one: shapes that the file declares loosely are seen here."""
        corner = [self.domain.features[name][1] for name in FEATURE_SCHEMA.names]
        rows = np.array([corner, corner], dtype=np.float32)
        self._ask(rows)
        one = self._ask(rows[:1])
        # A model that cannot be bound, because it copies memory or gives other shapes, is asked like any other.
        with contextlib.suppress(Exception):
            bound = BoundRow(self._source.session, OUTPUT_NAMES)
            if np.array_equal(bound.ask(rows[:1]), one[:, 0], equal_nan=True):
                self._row = bound

    def _ask(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs as the model gives them, float32 [5, N]; SurrogateError if their shapes are others."""
        if self._row is not None and len(rows) == 1:
            return self._row.ask(rows)[:, np.newaxis]
        outputs = self._source.run(rows)
        for name, values in zip(OUTPUT_NAMES, outputs, strict=True):
            if values.shape != (len(rows),):
                raise SurrogateError(
                    f"output `{name}` must be float32 [N]. {self.file} gives shape {list(values.shape)} for "
                    f"{len(rows)} rows.",
                    file=self.file,
                    field=name,
                    value=list(values.shape),
                    hint=CHECK_HINT,
                )
        return np.stack(outputs)


def _checked_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = np.ascontiguousarray(features, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != len(FEATURE_SCHEMA.names):
        raise SurrogateError(
            f"features must be float32 [N, {len(FEATURE_SCHEMA.names)}]. Got the shape {list(rows.shape)}.",
            field="features",
            value=list(rows.shape),
        )
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise SurrogateError(
            f"features must be finite. `{FEATURE_SCHEMA.names[column]}` of row {row} is {rows[row, column]}.",
            field=FEATURE_SCHEMA.names[column],
            value=float(rows[row, column]),
        )
    return rows


def _cut_to_range(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the outputs, float32 [5, N], without negative values and with probabilities of at most 1."""
    answers: NDArray[np.float32] = np.maximum(table, np.float32(0.0))
    np.minimum(answers[1], np.float32(1.0), out=answers[1])
    return answers
