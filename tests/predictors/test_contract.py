"""The checks of surrogates: right ones pass, every kind of wrong one fails by the name of what is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.answer_checks import COMPARED
from predictors.catalog import shipped_surrogate
from predictors.contract import SurrogateCheck, check_surrogate, probe_features
from predictors.domain import Domain, RatioRule
from predictors.features import ENGINE_NAMES, FEATURE_SCHEMA, FeatureSchema, offered_tps
from predictors.file_checks import FILE_CHECKS
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.probes import rows_inside, rows_outside
from predictors.surrogate import OUTPUT_NAMES, InflatedSurrogate, Surrogate, SurrogateOutput, ThresholdSurrogate
from predictors.surrogate_file import METADATA_KEYS, surrogate_metadata
from tests.predictors.capacity import CAPACITY_TPS, BoundedSurrogate, CapacitySurrogate
from tests.predictors.handmade import NUM_FEATURES, capacity_model, linear_model, save
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile, load_profile, shipped_profiles

SHIPPED = tuple(name for name in shipped_profiles() if shipped_surrogate(name) is not None)
Rows = NDArray[np.float32]


@pytest.fixture(scope="module")
def texts() -> dict[str, Any]:
    """Return metadata with nothing to complain about."""
    return dict(
        surrogate_metadata(
            load_profile("llama-3.1-8b-h100-64gb"),
            Domain.from_rows(probe_features(60)),
            training={"rows": 60, "seed": 0, "errors": {}},
            producer={"by": "hand"},
        )
    )


def report_on(model: Any, folder: Path, texts: dict[str, Any], **arguments: Any) -> SurrogateCheck:
    """Write a model and check it."""
    return check_surrogate(save(model, folder / "m.onnx", texts), raise_on_failure=False, **arguments)


def names_of(report: SurrogateCheck, outcome: str) -> set[str]:
    """Return the names of the checks with an outcome."""
    return {check.name for check in report.checks if check.outcome == outcome}


def test_a_right_file_passes_every_check(profile: PerformanceProfile, tmp_path: Path, texts: dict[str, Any]) -> None:
    """No failure, no warning, nothing skipped; each check is there once, and a row's latency is told."""
    report = report_on(capacity_model(), tmp_path, texts, profile=profile)
    assert names_of(report, "passed") == {*FILE_CHECKS, "answers", *COMPARED}
    assert [check.name for check in report.checks] == [*FILE_CHECKS, "answers", *COMPARED]
    assert report.is_ok
    assert report.row_latency_s is not None
    report.raise_for_failures()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_surrogate_passes_every_check(name: str) -> None:
    """As files, with their profile: no failure and no warning; more load is never clearly better."""
    path = shipped_surrogate(name)
    assert path is not None
    report = check_surrogate(path, profile=name)
    assert names_of(report, "passed") == {check.name for check in report.checks}
    assert check_surrogate(path, features=probe_features(200, seed=2))["more_load"].outcome == "passed"


# What is wrong with a model, and the checks that must say so; no other may fail.
WRONG_MODELS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nan for some": (
        {"statements": {"ttft_s": "left = Sub (ten, rate)\n ttft_s = Sqrt (left)"}},
        {"finite_inside"},
    ),
    "infinite for idle sets": ({"statements": {"ttft_s": "ttft_s = Div (one, offered)"}}, {"finite_inside"}),
    "ratio above one": (
        {
            "statements": {
                "throughput_ratio": "floor = Max (offered, one)\n throughput_ratio = Div (capacity, floor)",
                "throughput_tps": "throughput_tps = Mul (throughput_ratio, offered)",
            }
        },
        {"ratio_range"},
    ),
    "negative ratio": (
        {
            "statements": {
                "throughput_ratio": "share = Div (offered, million)\n throughput_ratio = Sub (zero, share)",
                "throughput_tps": "throughput_tps = Mul (throughput_ratio, offered)",
            }
        },
        {"ratio_range", "not_negative"},
    ),
    "probability above one": (
        {"statements": {"starvation_probability": "starvation_probability = Div (offered, capacity)"}},
        {"probability_range"},
    ),
    "log-odds instead of a probability": (
        {"statements": {"starvation_probability": "starvation_probability = Sub (offered, capacity)"}},
        {"probability_range"},
    ),
    "negative latency": (
        {
            "statements": {
                "ttft_s": "ttft_s = Sub (one, step)\n",
                "itl_s": "step = Mul (offered, ten)\n itl_s = Add(step, one)",
            }
        },
        {"not_negative"},
    ),
    "tokens per second of something else": (
        {"statements": {"throughput_tps": "throughput_tps = Mul (throughput_ratio, rate)"}},
        {"throughput_consistent"},
    ),
    "depends on the batch": (
        {
            "statements": {
                "ttft_s": "mean = ReduceMean <keepdims = 0> (offered)\n rest = Sub (offered, mean)\n"
                "size = Abs (rest)\n ttft_s = Add (size, one)"
            }
        },
        {"batch_of_rows"},
    ),
    "depends on the position": (
        {
            "statements": {
                "ttft_s": "axis = Constant <value_int = 0> ()\n equal = Sub (offered, offered)\n"
                "ones = Add (equal, one)\n position = CumSum (ones, axis)\n ttft_s = Add (position, step)"
            }
        },
        {"order_of_rows", "batch_of_rows"},
    ),
    "random": (
        {
            "statements": {
                "ttft_s": "noise = RandomUniformLike <low = 0.0, high = 1.0> (offered)\n ttft_s = Add (noise, one)"
            }
        },
        {"repeatable", "order_of_rows", "batch_of_rows"},
    ),
    "constant, all is fine": (
        {
            "statements": {
                "throughput_ratio": "nothing = Sub (offered, offered)\n throughput_ratio = Add (nothing, one)",
                "starvation_probability": "starvation_probability = Identity (nothing)",
                "throughput_tps": "throughput_tps = Identity (offered)",
                "itl_s": "itl_s = Add (nothing, hundredth)",
                "ttft_s": "ttft_s = Add (nothing, one)",
            }
        },
        {"depends_on_features"},
    ),
    "float64": (
        {
            "statements": {"itl_s": "step = Div (offered, million)\n itl_s = Cast <to = 11> (step)"},
            "declared": {"itl_s": "double[N]"},
        },
        {"outputs"},
    ),
    "declared [N, 1]": (
        {
            "statements": {"ttft_s": "last = Constant <value_ints = [1]> ()\n ttft_s = Unsqueeze (offered, last)"},
            "declared": {"ttft_s": "float[N, 1]"},
        },
        {"outputs"},
    ),
    "undeclared [N, 1]": (
        {
            "statements": {"ttft_s": "last = Constant <value_ints = [1]> ()\n ttft_s = Unsqueeze (offered, last)"},
            "declared": {"ttft_s": "float[]"},
        },
        {"outputs"},
    ),
    "one answer for all": (
        {"statements": {"ttft_s": "ttft_s = ReduceMean (offered)"}},
        {"answers"},
    ),
    "fixed batch inside": (
        {
            "statements": {
                "ttft_s": "two = Constant <value_ints = [2]> ()\n pair = Reshape (offered, two)\n"
                "sum = ReduceSum <keepdims = 0> (pair)\n ttft_s = Add (sum, step)"
            }
        },
        {"answers"},
    ),
    "fixed batch": ({"inputs": f"float[1, {NUM_FEATURES}] features"}, {"input"}),
    "an input more": ({"inputs": f"float[N, {NUM_FEATURES}] features, float[N] temperature"}, {"input"}),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_wrong_model_fails_by_name(case: str, tmp_path: Path, texts: dict[str, Any]) -> None:
    """Exactly the checks that are about what is wrong, and a sentence that names the output or the batch."""
    arguments, expected = WRONG_MODELS[case]
    report = report_on(capacity_model(**arguments), tmp_path, texts)
    assert names_of(report, "failed") == expected
    assert not report.is_ok


@pytest.mark.parametrize(
    ("arguments", "name", "text"),
    [
        ({"num_features": NUM_FEATURES + 1}, "input", f"must be float32 [N, {NUM_FEATURES}]"),
        ({"input_name": "x"}, "input", "has x"),
        ({"output_names": OUTPUT_NAMES[:4]}, "outputs", "ttft_s"),
        ({"output_names": (*OUTPUT_NAMES, "more")}, "outputs", "more"),
    ],
)
def test_another_signature_fails_and_is_not_asked(
    arguments: dict[str, Any], name: str, text: str, tmp_path: Path, texts: dict[str, Any]
) -> None:
    """What cannot be asked is not judged further, and the report says so."""
    report = report_on(linear_model(**arguments), tmp_path, texts)
    assert names_of(report, "failed") == {name}
    assert text in report[name].detail
    assert {check.outcome for check in report.checks if check.name in {"answers", *COMPARED}} == {"skipped"}
    assert report.row_latency_s is None


@pytest.mark.parametrize("key", METADATA_KEYS)
def test_a_missing_metadata_key_fails_by_name(key: str, tmp_path: Path, texts: dict[str, Any]) -> None:
    """What can be judged without it still is."""
    report = report_on(capacity_model(), tmp_path, {name: text for name, text in texts.items() if name != key})
    assert names_of(report, "failed") == {"metadata_keys"}
    assert f"`{key}` is missing" in report["metadata_keys"].detail
    assert report["finite_inside"].outcome == "passed"


@pytest.mark.parametrize("key", METADATA_KEYS)
@pytest.mark.parametrize("text", ["{", "[]", "null", "1"])
def test_metadata_that_are_no_object_fail_by_name(key: str, text: str, tmp_path: Path, texts: dict[str, Any]) -> None:
    """Once, by the rule about JSON: what would follow from it is skipped."""
    report = report_on(capacity_model(), tmp_path, {**texts, key: text})
    assert names_of(report, "failed") == {"metadata_json"}
    assert f"`{key}`" in report["metadata_json"].detail


@pytest.mark.parametrize("schema", [{}, {**FEATURE_SCHEMA.as_json(), "version": 1}])
def test_another_schema_version_fails_by_name(schema: dict[str, Any], tmp_path: Path, texts: dict[str, Any]) -> None:
    """Also none at all: a file of an older version must not be asked with today's columns."""
    path = save(capacity_model(), tmp_path / "m.onnx", {**texts, "feature_schema": json.dumps(schema)})
    assert names_of(check_surrogate(path, raise_on_failure=False), "failed") == {"feature_schema"}
    with pytest.raises(SurrogateError, match="feature schema version"):
        OnnxSurrogate.load(path)


def test_all_failures_are_in_one_message(tmp_path: Path, texts: dict[str, Any]) -> None:
    """Whoever mends a file wants to see everything at once."""
    statements = {
        "starvation_probability": "starvation_probability = Div (offered, capacity)",
        "ttft_s": "left = Sub (ten, rate)\n ttft_s = Sqrt (left)",
    }
    values = {name: text for name, text in texts.items() if name not in {"training", "producer"}}
    path = save(capacity_model(statements=statements), tmp_path / "m.onnx", values)
    with pytest.raises(SurrogateError) as caught:
        check_surrogate(path)
    error = caught.value
    assert (error.file, error.field) == (str(path), "metadata_keys")
    assert error.value == ["metadata_keys", "finite_inside", "probability_range"]
    for text in (
        str(path),
        "`training` is missing",
        "`producer` is missing",
        "`ttft_s` must be",
        "is nan",
        "requests/s",
    ):
        assert text in error.message


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_what_is_no_model_fails_without_a_traceback(content: bytes | None, tmp_path: Path) -> None:
    """A missing or damaged file is a finding like any other, and the rest is skipped."""
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    report = check_surrogate(path, raise_on_failure=False)
    assert names_of(report, "failed") == {"file"}
    assert names_of(report, "passed") == set()
    with pytest.raises(SurrogateError, match=r"m\.onnx"):
        check_surrogate(path)


def test_a_file_of_another_profile_fails(profile: PerformanceProfile, tmp_path: Path, texts: dict[str, Any]) -> None:
    """By name, and where the name is the same, by the numbers."""
    path = save(capacity_model(), tmp_path / "m.onnx", texts)
    other = profile.model_copy(update={"name": "other"})
    refitted = profile.model_copy(update={"gpu_memory_gib": profile.gpu_memory_gib + 1.0})
    assert check_surrogate(path, profile=profile)["profile_match"].outcome == "passed"
    for wrong, text in ((other, "not from 'other'"), (refitted, "with other numbers")):
        report = check_surrogate(path, profile=wrong, raise_on_failure=False)
        assert names_of(report, "failed") == {"profile_match"}
        assert text in report["profile_match"].detail


def test_what_is_most_likely_not_meant_is_a_warning(tmp_path: Path, texts: dict[str, Any]) -> None:
    """A file without ratios, without errors of its training, and without a fingerprint can be used."""
    box = Domain.model_validate_json(texts["domain"]).model_copy(update={"ratios": ()})
    values = {
        **texts,
        "domain": box.model_dump_json(),
        "training": {"rows": 1},
        "profile": {"name": "llama-3.1-8b-h100-64gb"},
    }
    report = report_on(capacity_model(), tmp_path, values, profile="llama-3.1-8b-h100-64gb")
    assert names_of(report, "warning") == {"hull_rule", "training_facts", "profile_match"}
    assert report.is_ok
    assert "seed, errors" in report["training_facts"].detail


def test_a_domain_that_no_set_is_in_is_a_warning(tmp_path: Path, texts: dict[str, Any]) -> None:
    """Every prediction in a plan would be marked; the checks then ask what the domain has, however odd."""
    bounds = {name: [1e5, 1e6] for name in FEATURE_SCHEMA.names}
    report = report_on(capacity_model(), tmp_path, {**texts, "domain": {"features": bounds, "ratios": []}})
    assert "domain_reachable" in names_of(report, "warning")
    assert report["finite_inside"].outcome == "passed"


STARVED = {
    "throughput_ratio": "nothing = Sub (offered, offered)\n throughput_ratio = Add (nothing, hundredth)",
    "starvation_probability": "starvation_probability = Add (nothing, one)",
    "throughput_tps": "throughput_tps = Mul (throughput_ratio, offered)",
}
SERVED = {
    "throughput_ratio": "nothing = Sub (offered, offered)\n throughput_ratio = Add (nothing, one)",
    "starvation_probability": "starvation_probability = Identity (nothing)",
    "throughput_tps": "throughput_tps = Identity (offered)",
}
# Of loads that no set of the tests' domain has.
ROOT_OF_NEGATIVE = {"ttft_s": "left = Sub (million, offered)\n ttft_s = Sqrt (left)"}
CURED = {
    "starvation_probability": """
        twice = Add (one, one)
        limit = Mul (capacity, twice)
        used = Sub (limit, offered)
        log_odds = Div (used, capacity)
        starvation_probability = Sigmoid (log_odds)"""
}


@pytest.mark.parametrize(
    ("statements", "names", "text"),
    [
        (STARVED, {"accepts_something"}, "nothing can be placed"),
        (SERVED, {"refuses_something"}, "the twin's rejections"),
        (ROOT_OF_NEGATIVE, {"finite_outside"}, "refuses such sets"),
        (CURED, {"more_load", "accepts_something"}, "`starvation_probability` falls"),
    ],
)
def test_an_answer_against_sense_is_a_warning(
    statements: dict[str, str], names: set[str], text: str, tmp_path: Path, texts: dict[str, Any]
) -> None:
    """Such a model keeps the interface, and the twin keeps its plans right; but nobody wants it."""
    report = report_on(capacity_model(statements=statements), tmp_path, texts)
    assert names_of(report, "failed") == set()
    assert names_of(report, "warning") == names
    assert any(text in check.detail for check in report.warnings)


def test_a_loaded_file_is_checked_by_its_file(tmp_path: Path, texts: dict[str, Any]) -> None:
    """A loaded surrogate cuts what is out of range; the check looks at what the model says."""
    arguments, expected = WRONG_MODELS["probability above one"]
    surrogate = OnnxSurrogate.load(save(capacity_model(**arguments), tmp_path / "m.onnx", texts))
    assert names_of(check_surrogate(surrogate, raise_on_failure=False), "failed") == expected


@pytest.mark.parametrize(
    "surrogate",
    [
        CapacitySurrogate(),
        BoundedSurrogate(),
        InflatedSurrogate(CapacitySurrogate(), 1.2),
        ThresholdSurrogate(CapacitySurrogate(), 0.1),
    ],
)
def test_a_surrogate_in_plain_python_passes(surrogate: Surrogate) -> None:
    """The checks must not ask for more than the protocol says; those of files are skipped, and say so."""
    report = check_surrogate(surrogate, profile="llama-3.1-8b-h100-64gb")
    assert not report.warnings
    assert {report[name].outcome for name in FILE_CHECKS} == {"skipped"}
    assert "Python object" in report["metadata_keys"].detail
    assert {report[name].outcome for name in ("schema", "answers", *COMPARED) if name != "finite_outside"} == {"passed"}
    has_domain = not isinstance(surrogate, CapacitySurrogate) or isinstance(surrogate, BoundedSurrogate)
    assert report["outside_domain"].outcome == ("passed" if has_domain else "skipped")
    assert report["finite_outside"].outcome == ("passed" if isinstance(surrogate, BoundedSurrogate) else "skipped")


class BatchSurrogate(CapacitySurrogate):
    """Wrong: an answer depends on the other rows."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Shift everything by the batch's size."""
        output = super().predict(features)
        output.itl_s[:] = len(features)
        return output


class DoubleSurrogate(CapacitySurrogate):
    """Wrong: float64."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Answer in double precision."""
        output = super().predict(features)
        return SurrogateOutput(*(vars(output)[name].astype(np.float64) for name in vars(output)))


class NanSurrogate(CapacitySurrogate):
    """Wrong: not a number for an idle set."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Divide by the load."""
        output = super().predict(features)
        output.ttft_s[offered_tps(features) == 0.0] = np.nan
        return output


class UnsureSurrogate(BoundedSurrogate):
    """Wrong: infinite where it was not fitted, and nobody puts a refusal in its place."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Give up."""
        output = super().predict(features)
        output.itl_s[self.outside_domain(features)] = np.inf
        return output


class WritingSurrogate(CapacitySurrogate):
    """Wrong: the caller's features change."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Scale in place."""
        output = super().predict(features)
        features *= 2.0
        return output


class ForgetfulSurrogate(CapacitySurrogate):
    """Wrong: the second answer is another one, and it stands in the same array."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.memory = np.zeros(5000, dtype=np.float32)

    def predict(self, features: Rows) -> SurrogateOutput:
        """Count."""
        self.num_calls += 1
        self.memory[:] = self.num_calls
        output = super().predict(features)
        return replace(output, ttft_s=self.memory[: len(features)])


class NeedyEmptySurrogate(CapacitySurrogate):
    """Wrong: it cannot be asked for nothing."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Look for the largest load first."""
        assert offered_tps(features).max() >= 0.0
        return super().predict(features)


class NarrowSurrogate(CapacitySurrogate):
    """Wrong: it raises where it was not fitted."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Refuse overload."""
        if (offered_tps(features) > 100_000.0).any():
            raise ValueError("too much")
        return super().predict(features)


class TupleSurrogate(CapacitySurrogate):
    """Wrong: a tuple of lists."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Answer as something else."""
        return tuple([0.0] * len(features) for _ in OUTPUT_NAMES)  # type: ignore[return-value]


class OldSurrogate(CapacitySurrogate):
    """Wrong: columns of another version."""

    @property
    def schema(self) -> FeatureSchema:
        """Yesterday's columns."""
        return FeatureSchema(1, FEATURE_SCHEMA.names, FEATURE_SCHEMA.units)


class MisjudgingSurrogate(CapacitySurrogate):
    """Wrong: one verdict about the domain for all rows."""

    def outside_domain(self, features: Rows) -> NDArray[np.bool_]:
        """Say that all is well, whatever is asked."""
        return np.zeros(min(1, len(features)), dtype=np.bool_)


@pytest.mark.parametrize(
    ("surrogate", "failures"),
    [
        (BatchSurrogate(), {"batch_of_rows"}),
        (DoubleSurrogate(), {"answers"}),
        (NanSurrogate(), {"finite_inside"}),
        (UnsureSurrogate(), {"finite_outside"}),
        (WritingSurrogate(), {"features_unchanged"}),
        (ForgetfulSurrogate(), {"repeatable", "order_of_rows", "batch_of_rows"}),
        (NeedyEmptySurrogate(), {"answers"}),
        (NarrowSurrogate(), {"answers"}),
        (TupleSurrogate(), {"answers"}),
        (OldSurrogate(), {"schema"}),
        (MisjudgingSurrogate(), {"outside_domain"}),
    ],
)
def test_a_wrong_python_surrogate_fails_by_name(surrogate: CapacitySurrogate, failures: set[str]) -> None:
    """A suite that accepts everything would be worth nothing."""
    report = check_surrogate(surrogate, raise_on_failure=False)
    assert names_of(report, "failed") == failures
    with pytest.raises(SurrogateError, match=type(surrogate).__name__):
        check_surrogate(surrogate)


def test_a_surrogate_that_raises_is_quoted() -> None:
    """The exception of somebody else's code belongs into the sentence, not on the screen."""
    detail = check_surrogate(NarrowSurrogate(), raise_on_failure=False)["answers"].detail
    assert "ValueError: too much" in detail


class CuringSurrogate(CapacitySurrogate):
    """Odd: very high load is served again."""

    def predict(self, features: Rows) -> SurrogateOutput:
        """Forget the load above five times the capacity."""
        output = super().predict(features)
        cured = offered_tps(features) > 5.0 * CAPACITY_TPS
        output.throughput_ratio[cured] = 1.0
        output.throughput_tps[cured] = offered_tps(features)[cured]
        return output


def test_load_that_cures_is_a_warning() -> None:
    """The look at the physics must see a prediction that improves with load."""
    report = check_surrogate(CuringSurrogate())
    assert names_of(report, "warning") == {"more_load"}
    assert "`throughput_ratio` rises" in report["more_load"].detail


def test_few_rows_are_asked_if_only_few_are_given() -> None:
    """A surrogate that takes seconds per row can be checked with some rows of its owner's."""
    asked = []

    class Counting(CapacitySurrogate):
        def predict(self, features: Rows) -> SurrogateOutput:
            asked.append(len(features))
            return super().predict(features)

    report = check_surrogate(Counting(), features=probe_features(3))
    assert max(asked) == 3
    # Three light sets may well get the same answer: that proves nothing.
    assert names_of(report, "failed") == set()
    with pytest.raises(SurrogateError, match=r"N >= 1"):
        check_surrogate(Counting(), features=probe_features(0))


def test_a_report_is_json_and_found_by_name() -> None:
    """What the command line prints, and what a test of somebody else's asks."""
    report = check_surrogate(CapacitySurrogate(), clock=iter(np.arange(0.0, 1e6, 0.25)).__next__)
    content = json.loads(json.dumps(report.as_json()))
    assert content["schema_version"] == 1
    assert content["is_ok"] is True
    assert content["row_latency_s"] == 0.25
    assert content["checks"][0] == {
        "name": "file",
        "outcome": "skipped",
        "detail": "a Python object has no file and no metadata.",
    }
    with pytest.raises(KeyError):
        report["no such check"]


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    """Draw a domain: any bounds, any bounds on lengths."""
    bounds = {}
    for name in FEATURE_SCHEMA.names:
        lower = draw(st.sampled_from([0.0, 1.0, 8.0, 300.0])) if name in ENGINE_NAMES else 0.0
        bounds[name] = (lower, lower + draw(st.sampled_from([0.0, 0.5, 64.0, 5e3, 1e7, float("inf")])))
    length = draw(st.sampled_from([0.0, 10.0, 3000.0]))
    rule = RatioRule(
        name="prompt_tokens_per_request",
        numerator=("sum_prompt_tps",),
        denominator=("sum_rate_rps",),
        min=length,
        max=length + draw(st.sampled_from([0.0, 50.0, float("inf")])),
    )
    return Domain(features=bounds, ratios=(rule,) if draw(st.booleans()) else ())


@given(domains())
def test_questions_lie_where_they_should(domain: Domain) -> None:
    """Whatever the domain, rows are finite, those inside are inside, those outside are not, and there are some."""
    inside, outside = rows_inside(domain, 6), rows_outside(domain, 6)
    assert len(inside) + len(outside) > 0
    assert np.isfinite(np.concatenate([inside, outside])).all()
    assert not domain.outside(inside, FEATURE_SCHEMA.names).any()
    assert domain.outside(outside, FEATURE_SCHEMA.names).all()
    if len(inside):
        assert (inside[:, FEATURE_SCHEMA.index("num_adapters")] >= 1.0).all()
