"""What an ONNX file must carry to be used as a surrogate: the rules, each of which says everything that breaks it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA
from predictors.onnx_limits import forbidden_part
from predictors.provenance import profile_fingerprint
from predictors.surrogate import OUTPUT_NAMES
from twin.bounded_read import MOST_MODEL_BYTES, parse_json, read_bounded
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile

INPUT_NAME = "features"
# What a file may give besides `OUTPUT_NAMES`; no plan depends on it.
OPTIONAL_OUTPUT_NAMES: tuple[str, ...] = ("itl_mean_s",)
METADATA_KEYS: tuple[str, ...] = ("feature_schema", "domain", "profile", "training", "producer")

# What the outputs are, for who reads the file's metadata.
OUTPUT_MEANINGS = {
    "throughput_ratio": "throughput / offered load",
    "starvation_probability": "probability that the replica or any adapter starves",
    "throughput_tps": "tokens/s of completed requests",
    "itl_s": "95th percentile of the inter-token latency, seconds",
    "ttft_s": "95th percentile of the time to first token, seconds",
    "itl_mean_s": "mean of the inter-token latency, seconds",
}

CHECK_HINT = "`placer surrogate FILE` says all that is wrong with a file; use `auto` or `exact` instead"
_RETRAIN = "use `auto` or `exact`, or make one for this version with `placer dataset` and then `placer train`"
_FLOAT32 = "tensor(float)"


@dataclass(frozen=True)
class SurrogateFile:
    """An ONNX model that ONNX Runtime can run, whatever else is wrong with it; make it with `open`.

    Attributes
    ----------
    path
        Where it was read from.
    metadata
        Its metadata: texts by key.
    session
        Runs it, on one thread.
    """

    path: str
    metadata: Mapping[str, str]
    session: Any

    @classmethod
    def open(cls, path: str | Path) -> SurrogateFile:
        """Read a file.

        Raises
        ------
        SurrogateError
            When it cannot be read, when ONNX Runtime cannot run it, or is not installed (then caused by ImportError).
        """
        session = _open_session(Path(path))
        try:
            metadata = dict(session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as error:
            raise SurrogateError(
                f"the metadata of a surrogate's ONNX file must be UTF-8 text. {path}: {error}.",
                file=str(path),
                hint="the file is damaged: get or make it again",
            ) from error
        return cls(str(path), metadata, session)

    def require_rules(self) -> None:
        """Raise SurrogateError about the first of `RULES` that the file breaks."""
        for rule in RULES.values():
            for error in rule(self):
                raise error

    def domain(self) -> Domain:
        """Return where the model was fitted; SurrogateError if the metadata do not say it."""
        return Domain.parse(self.metadata["domain"], schema=FEATURE_SCHEMA, file=self.path)

    def parsed(self, key: str) -> dict[str, Any] | None:
        """Return the JSON object under a metadata key; None if there is none."""
        try:
            value = parse_json(self.metadata.get(key, ""))
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def has_output(self, name: str) -> bool:
        """Return whether the model gives an output of that name."""
        return name in {entry.name for entry in self.session.get_outputs()}

    def run(self, rows: NDArray[np.float32], outputs: Sequence[str] = OUTPUT_NAMES) -> list[NDArray[np.float32]]:
        """Return the named outputs for `rows`, float32 [N, F] with N >= 1, as the model gives them.

        Raises
        ------
        SurrogateError
            When ONNX Runtime stops, such as at a shape inside the graph that holds for other N only.
        """
        try:
            values: list[NDArray[np.float32]] = self.session.run(list(outputs), {INPUT_NAME: rows})
        except Exception as error:
            # As above: no base class but Exception.
            raise SurrogateError(
                f"a surrogate must answer for any number of rows. {self.path} fails for {len(rows)}: {error}",
                file=self.path,
                value=len(rows),
                hint=CHECK_HINT,
            ) from error
        return values


def surrogate_metadata(
    profile: PerformanceProfile, domain: Domain, *, training: Mapping[str, Any], producer: Mapping[str, str]
) -> dict[str, str]:
    """Return the metadata of a surrogate's ONNX file: JSON texts by key.

    Parameters
    ----------
    profile
        That the training rows were labelled with.
    domain
        What they span; see `Domain.from_rows`.
    training
        What it was fitted to and how far it is off: `rows`, `seed`, `errors`, and whatever else is worth knowing.
    producer
        Versions of what made the file, by name.
    """
    metadata: dict[str, Any] = {
        "feature_schema": {**FEATURE_SCHEMA.as_json(), "outputs": OUTPUT_MEANINGS},
        "domain": domain.model_dump(mode="json"),
        "profile": {"name": profile.name, "fingerprint": profile_fingerprint(profile)},
        "training": dict(training),
        "producer": dict(producer),
    }
    return {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}


def _open_session(path: Path) -> Any:
    """Return an ONNX Runtime session of the file on one thread."""
    try:
        content = read_bounded(path, most_bytes=MOST_MODEL_BYTES)
    except OSError as error:
        raise SurrogateError(
            f"a surrogate must be a readable ONNX file. {path}: {error.strerror}.",
            file=str(path),
            hint="give the path of an ONNX file, or one of `auto` and `exact`",
        ) from error
    reason = forbidden_part(content)
    if reason is not None:
        raise SurrogateError(
            f"a surrogate must be one ONNX file of ONNX's own operators, without loops and branches. {path}: {reason}.",
            file=str(path),
            hint="export it again with its weights inside, and with standard operators only",
        )
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


def _missing_keys(file: SurrogateFile) -> Iterator[SurrogateError]:
    for key in METADATA_KEYS:
        if key not in file.metadata:
            yield SurrogateError(
                f"a surrogate's ONNX file must have the metadata {', '.join(METADATA_KEYS)}. "
                f"`{key}` is missing in {file.path}.",
                file=file.path,
                field=key,
                hint="`placer train` writes the metadata; docs/bring-your-own-surrogate.md says how else they are made",
            )


def _texts_that_are_no_objects(file: SurrogateFile) -> Iterator[SurrogateError]:
    for key in METADATA_KEYS:
        text = file.metadata.get(key, "{}")
        try:
            problem = "" if isinstance(parse_json(text), dict) else f"Got {text}"
        except ValueError as error:
            problem = f"{error}"
        if problem:
            yield SurrogateError(
                f"the metadata key `{key}` must be a JSON object. {file.path}: {problem}.",
                file=file.path,
                field=key,
                value=text,
            )


def _other_features(file: SurrogateFile) -> Iterator[SurrogateError]:
    given, expected = file.parsed("feature_schema"), FEATURE_SCHEMA.as_json()
    if given is None:
        return
    if given.get("version") != expected["version"]:
        yield SurrogateError(
            f"a surrogate must use feature schema version {expected['version']}. "
            f"{file.path} has version {given.get('version')}.",
            file=file.path,
            field="feature_schema.version",
            value=given.get("version"),
            hint=_RETRAIN,
        )
    for field in ("names", "units"):
        if given.get(field) != expected[field]:
            yield SurrogateError(
                f"a surrogate must have the features {', '.join(expected['names'])}, in this order and units. "
                f"The `{field}` of {file.path} differ: {given.get(field)}.",
                file=file.path,
                field=f"feature_schema.{field}",
                value=given.get(field),
                hint=_RETRAIN,
            )


def _unnamed_profile(file: SurrogateFile) -> Iterator[SurrogateError]:
    given = file.parsed("profile")
    if given is not None and "name" not in given:
        yield SurrogateError(
            f"the metadata key `profile` must have a `name`. Got {file.metadata['profile']} ({file.path}).",
            file=file.path,
            field="profile",
        )


def _wrong_domain(file: SurrogateFile) -> Iterator[SurrogateError]:
    if file.parsed("domain") is None:
        return
    try:
        file.domain()
    except SurrogateError as error:
        yield error


def _wrong_input(file: SurrogateFile) -> Iterator[SurrogateError]:
    num_features = len(FEATURE_SCHEMA.names)
    inputs = {entry.name: entry for entry in file.session.get_inputs()}
    if set(inputs) != {INPUT_NAME}:
        yield SurrogateError(
            f"a surrogate must have the one input `{INPUT_NAME}`. {file.path} has {', '.join(inputs) or 'none'}.",
            file=file.path,
            field="input",
            value=list(inputs),
        )
    if INPUT_NAME not in inputs:
        return
    entry = inputs[INPUT_NAME]
    is_batched = len(entry.shape) == 2 and not isinstance(entry.shape[0], int) and entry.shape[1] == num_features
    if entry.type != _FLOAT32 or not is_batched:
        yield SurrogateError(
            f"`{INPUT_NAME}` must be float32 [N, {num_features}] with a free N. "
            f"{file.path} has {entry.type} {entry.shape}.",
            file=file.path,
            field=INPUT_NAME,
            value=list(entry.shape),
        )


def _wrong_outputs(file: SurrogateFile) -> Iterator[SurrogateError]:
    outputs = {entry.name: entry for entry in file.session.get_outputs()}
    if set(outputs) - set(OPTIONAL_OUTPUT_NAMES) != set(OUTPUT_NAMES):
        yield SurrogateError(
            f"a surrogate must have the outputs {', '.join(OUTPUT_NAMES)}, and may have "
            f"{', '.join(OPTIONAL_OUTPUT_NAMES)}. {file.path} has {', '.join(outputs)}.",
            file=file.path,
            field="output",
            value=list(outputs),
        )
    for name in OUTPUT_NAMES + OPTIONAL_OUTPUT_NAMES:
        output = outputs.get(name)
        if output is None:
            continue
        # What declares no shape at all is seen when it is asked.
        if output.type != _FLOAT32 or (output.shape is not None and len(output.shape) != 1):
            yield SurrogateError(
                f"output `{name}` must be float32 [N]. {file.path} has {output.type} {output.shape}.",
                file=file.path,
                field=name,
                value=list(output.shape),
            )


Rule = Callable[[SurrogateFile], Iterator[SurrogateError]]
# What can be said about a file before it is asked, in the order in which it makes sense to read. A rule about metadata
# that are no JSON object says nothing: the rules before it do.
RULES: dict[str, Rule] = {
    "metadata_keys": _missing_keys,
    "metadata_json": _texts_that_are_no_objects,
    "feature_schema": _other_features,
    "profile_name": _unnamed_profile,
    "domain": _wrong_domain,
    "input": _wrong_input,
    "outputs": _wrong_outputs,
}
