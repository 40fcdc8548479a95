"""Which requests may become jobs: limits, and references to files."""

from typing import Any

import pytest

from placer.service.admission import check_numbers, check_request
from placer.service.documents import SolveRequest, WhatIfRequest
from placer.service.settings import JobLimits
from tests.placer.small_fleets import PROFILE, small_data
from twin.errors import InputError

LIMITS = JobLimits(adapters=20, trace_bytes=2_000, trace_requests=100, scenarios=10)


def _trace(**changes: Any) -> dict[str, Any]:
    problem = small_data() | {"trace": {"file": "t.csv", "adapters": {"count": 3}, **changes}}
    del problem["adapters"]
    return problem


def _field_of(request: SolveRequest | WhatIfRequest) -> str | None:
    with pytest.raises(InputError) as raised:
        check_request(request, LIMITS)
    return raised.value.field


def test_what_is_shipped_or_comes_along_is_admitted() -> None:
    """Names of models and profiles, and keys of `files`."""
    check_request(SolveRequest.model_validate({"problem": small_data()}), LIMITS)
    own = {"problem": small_data(model="config.json"), "files": {"config.json": "{}"}}
    check_request(SolveRequest.model_validate(own), LIMITS)
    check_request(SolveRequest.model_validate({"problem": _trace(), "files": {"t.csv": "a\n"}}), LIMITS)


@pytest.mark.parametrize(
    "name",
    ["../t.csv", "/t.csv", "a/b.csv", "t.csv\x00", ".csv", "t.csv.gz", "t.parquet", "t.py", "-", "C:t.csv", "t\n.csv"],
)
def test_names_of_files_are_no_paths(name: str) -> None:
    """No folder, no compression, no code, nothing hidden."""
    with pytest.raises(ValueError, match="files"):
        SolveRequest.model_validate({"problem": small_data(), "files": {name: ""}})


@pytest.mark.parametrize(
    ("problem", "field"),
    [
        (small_data(model="."), "problem.model"),
        (small_data(model="http://host/config.json"), "problem.model"),
        (_trace(), "problem.trace.file"),
        (_trace(file="/dev/zero"), "problem.trace.file"),
        (small_data(num_adapters=21), "problem.adapters"),
    ],
)
def test_other_names_and_larger_problems_are_refused(problem: dict[str, Any], field: str) -> None:
    """The field is named."""
    assert _field_of(SolveRequest.model_validate({"problem": problem})) == field


@pytest.mark.parametrize(
    ("changes", "content", "field"),
    [
        ({"adapters": {"count": 21}}, "a\n", "problem.trace.adapters.count"),
        ({"copies": 50}, "a\nb\nc\n", "problem.trace"),
        ({}, "a\n" * 200, "problem.trace"),
        ({}, "a" * 3_000, "files"),
        ({"adapters": {"popularity": "file:/etc/passwd"}}, "a\n", "problem.trace.adapters.popularity"),
    ],
)
def test_traces_have_limits(changes: dict[str, Any], content: str, field: str) -> None:
    """Bytes, lines, copies, adapters, and the popularity's own file."""
    request = {"problem": _trace(**changes), "files": {"t.csv": content}}
    assert _field_of(SolveRequest.model_validate(request)) == field


@pytest.mark.parametrize(
    ("scenarios", "field"),
    [
        ({"grid": {"scale_rates": "1:11:1"}}, "scenarios"),
        ({"grid": {"scale_rates": "1:9:1", "lengths": "1:9:1", "burstiness": "0:20:0.01"}}, "scenarios"),
        ({"grid": {"add_adapters": [21]}}, "scenarios.add_adapters"),
        ({"grid": {"model": ["/etc"]}}, "scenarios.grid.model"),
        ({"grid": {"profile": [PROFILE, "x.json"]}}, "scenarios.grid.profile"),
        ({"cases": [{"name": "a", "profile": "../x"}]}, "scenarios.cases.profile"),
        ({"cases": [{"name": "a", "model": "x"}]}, "scenarios.cases.model"),
        (
            {"cases": [{"name": "a", "gpu_type": {"name": "g", "memory_gib": 1.0, "profile": "/x"}}]},
            "scenarios.cases.gpu_type",
        ),
    ],
)
def test_scenarios_have_limits(scenarios: dict[str, Any], field: str) -> None:
    """Their number before any is made, what they add, and what they name."""
    assert _field_of(WhatIfRequest.model_validate({"problem": small_data(), "scenarios": scenarios})) == field


@pytest.mark.parametrize("text", ["1e999999", "1:1e999999:1e-999999", "1e19", "9" * 200_000, "nan", "1:inf:1"])
def test_ranges_that_are_no_numbers_of_this_world_are_refused(text: str) -> None:
    """With a message, and at once."""
    with pytest.raises(ValueError, match="values must be"):
        WhatIfRequest.model_validate({"problem": small_data(), "scenarios": {"grid": {"scale_rates": text}}})


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"problem": {"adapters": [{"rate_rps": 1e13}]}}, "problem.adapters.0.rate_rps"),
        ({"options": {"margin": -1e300}}, "options.margin"),
        ({"options": {"seed": 10**400}}, "options.seed"),
    ],
)
def test_numbers_that_would_overflow_are_refused(data: dict[str, Any], field: str) -> None:
    """Wherever they are; seeds of 53 bits are none of them."""
    with pytest.raises(InputError) as raised:
        check_numbers(data)
    assert raised.value.field == field
    check_numbers({"seed": 2**53 - 1, "rate_rps": 1e9, "is": True, "name": "a"})
