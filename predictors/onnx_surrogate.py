"""Surrogates in ONNX files, and what a file must carry to be trusted: its features, its domain, where it comes from."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput, empty_output, require_domain
from twin.errors import SurrogateError

INPUT_NAME = "features"
METADATA_KEYS: tuple[str, ...] = ("feature_schema", "domain", "profile", "training", "producer")

# What a latency becomes when the model says NaN: finite, so that it can be written and compared, and above every
# limit.
REFUSED_LATENCY_S = 1e6

_RETRAIN = "use `auto` or `exact`, or make one for this version with `placer dataset` and then `placer train`"


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

    def __init__(self, session: Any, *, file: str, metadata: dict[str, str], domain: Domain) -> None:
        self._session = session
        self.file = file
        self.metadata = metadata
        self.domain = domain

    @classmethod
    def load(cls, path: str | Path) -> OnnxSurrogate:
        """Read a surrogate and check everything that can be checked before it is asked.

        Raises
        ------
        SurrogateError
            When the file is missing or is no ONNX model; when a metadata key is missing (named), was written for
            another feature schema, or is malformed; when its input or outputs have other names, types or shapes than
            `features` float32 [N, F] and `OUTPUT_NAMES` float32 [N]; when ONNX Runtime is not installed.
        """
        file = str(path)
        session = _open_session(Path(path))
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        _check_metadata(metadata, file)
        domain = Domain.parse(metadata["domain"], schema=FEATURE_SCHEMA, file=file)
        _check_signature(session, file)
        surrogate = cls(session, file=file, metadata=metadata, domain=domain)
        surrogate._probe()
        return surrogate

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return FEATURE_SCHEMA

    @property
    def profile_name(self) -> str:
        """Name of the performance profile that it was distilled from."""
        return str(json.loads(self.metadata["profile"])["name"])

    @property
    def profile_fingerprint(self) -> str | None:
        """Hash of that profile's numbers (`predictors.provenance.profile_fingerprint`), if the file gives it."""
        value = json.loads(self.metadata["profile"]).get("fingerprint")
        return str(value) if value is not None else None

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions for `features`, float32 [N, F].

        A row for which the model gives NaN or infinity counts as infeasible: ratio 0, probability 1, nothing served.

        Raises
        ------
        SurrogateError
            When `features` has another shape, or a value that is not finite.
        """
        rows = _checked_rows(features)
        if len(rows) == 0:
            return empty_output()
        outputs = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: rows})
        return _sanitised(outputs)

    def predict_strictly(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions; SurrogateError if any row is outside the domain."""
        require_domain(self, features)
        return self.predict(features)

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return for each row of `features` [N, F] whether it is outside its domain, bool [N]."""
        return self.domain.outside(features, FEATURE_SCHEMA.names)

    def _probe(self) -> None:
        """Ask for two rows: shapes that the file declares loosely are seen here."""
        corner = [self.domain.features[name][1] for name in FEATURE_SCHEMA.names]
        outputs = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: np.array([corner, corner], dtype=np.float32)})
        for name, values in zip(OUTPUT_NAMES, outputs, strict=True):
            if values.shape != (2,):
                raise SurrogateError(
                    f"output `{name}` must be float32 [N]. {self.file} gives shape {list(values.shape)} for 2 rows.",
                    file=self.file,
                    field=name,
                    value=list(values.shape),
                )


def _open_session(path: Path) -> Any:
    """Return an ONNX Runtime session of the file on one thread."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SurrogateError(
            f"a surrogate must be a readable ONNX file. {path}: {error.strerror}.",
            file=str(path),
            hint="give the path of an ONNX file, or one of `auto` and `exact`",
        ) from error
    try:
        # Imported here because it takes a fifth of a second, which a plan with the exact surrogate need not pay.
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise SurrogateError(
            f"ONNX Runtime must be installed to use an ONNX surrogate. {error}.",
            file=str(path),
            hint="pip install onnxruntime, or ask the exact surrogate",
        ) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's exceptions share no base class but Exception.
        raise SurrogateError(
            f"a surrogate must be an ONNX model that ONNX Runtime can run. {path}: {error}",
            file=str(path),
            hint="the file is damaged or was made for a newer runtime",
        ) from error


def _check_metadata(metadata: dict[str, str], file: str) -> None:
    for key in METADATA_KEYS:
        if key not in metadata:
            raise SurrogateError(
                f"a surrogate's ONNX file must have the metadata {', '.join(METADATA_KEYS)}. "
                f"`{key}` is missing in {file}.",
                file=file,
                field=key,
                hint="export models with `placer train`, which writes the metadata",
            )
    parsed = {key: _parse_object(metadata[key], key, file) for key in METADATA_KEYS}
    if "name" not in parsed["profile"]:
        raise SurrogateError(
            f"the metadata key `profile` must have a `name`. Got {metadata['profile']} ({file}).",
            file=file,
            field="profile",
        )
    _check_schema(parsed["feature_schema"], file)


def _check_schema(given: dict[str, Any], file: str) -> None:
    expected = FEATURE_SCHEMA.as_json()
    if given.get("version") != expected["version"]:
        raise SurrogateError(
            f"a surrogate must use feature schema version {expected['version']}. "
            f"{file} has version {given.get('version')}.",
            file=file,
            field="feature_schema.version",
            value=given.get("version"),
            hint=_RETRAIN,
        )
    for field in ("names", "units"):
        if given.get(field) != expected[field]:
            raise SurrogateError(
                f"a surrogate must have the features {', '.join(expected['names'])}, in this order and units. "
                f"The `{field}` of {file} differ: {given.get(field)}.",
                file=file,
                field=f"feature_schema.{field}",
                value=given.get(field),
                hint=_RETRAIN,
            )


def _parse_object(text: str, key: str, file: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SurrogateError(
            f"the metadata key `{key}` must be a JSON object. {file}: {error}.", file=file, field=key, value=text
        ) from error
    if not isinstance(value, dict):
        raise SurrogateError(
            f"the metadata key `{key}` must be a JSON object. Got {text} ({file}).", file=file, field=key, value=value
        )
    return value


def _check_signature(session: Any, file: str) -> None:
    """Refuse inputs and outputs that differ from the contract in name, type, rank or number of features."""
    num_features = len(FEATURE_SCHEMA.names)
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = {entry.name: entry for entry in session.get_outputs()}
    if set(inputs) != {INPUT_NAME}:
        raise SurrogateError(
            f"a surrogate must have the one input `{INPUT_NAME}`. {file} has {', '.join(inputs) or 'none'}.",
            file=file,
            field="input",
            value=list(inputs),
        )
    if set(outputs) != set(OUTPUT_NAMES):
        raise SurrogateError(
            f"a surrogate must have the outputs {', '.join(OUTPUT_NAMES)}. {file} has {', '.join(outputs)}.",
            file=file,
            field="output",
            value=list(outputs),
        )
    entry = inputs[INPUT_NAME]
    is_batched = len(entry.shape) == 2 and not isinstance(entry.shape[0], int) and entry.shape[1] == num_features
    if entry.type != "tensor(float)" or not is_batched:
        raise SurrogateError(
            f"`{INPUT_NAME}` must be float32 [N, {num_features}] with a free N. {file} has {entry.type} {entry.shape}.",
            file=file,
            field=INPUT_NAME,
            value=list(entry.shape),
        )
    for name in OUTPUT_NAMES:
        output = outputs[name]
        if output.type != "tensor(float)" or (output.shape is not None and len(output.shape) != 1):
            raise SurrogateError(
                f"output `{name}` must be float32 [N]. {file} has {output.type} {output.shape}.",
                file=file,
                field=name,
                value=list(output.shape),
            )


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


def _sanitised(outputs: list[NDArray[np.float32]]) -> SurrogateOutput:
    """Return the outputs with rows that are not finite turned into refusals, and the rest cut to its range."""
    table = np.stack(outputs)
    refused = ~np.isfinite(table).all(axis=0)
    table = np.maximum(table, 0.0)
    table[:, refused] = np.array([[0.0], [1.0], [0.0], [REFUSED_LATENCY_S], [REFUSED_LATENCY_S]])
    table[1] = np.minimum(table[1], 1.0)
    return SurrogateOutput(*table)
