"""The section `constraints` of a problem file: what is read, and what every contradiction is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from solvers.problem import Problem, parse_problem, problem_schema
from twin.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "docs" / "constraints.md"


def example() -> dict[str, Any]:
    """Return the problem of the documentation's page."""
    text = EXAMPLE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def parsed(constraints: dict[str, Any]) -> Problem:
    """Return the example's problem with other constraints."""
    return parse_problem(example() | {"constraints": constraints}, file="w.yaml", base_directory=Path())


def test_the_documented_example_is_read() -> None:
    """Names and patterns become groups of adapters, and every kind of rule is in force."""
    problem = parse_problem(example(), file="w.yaml", base_directory=Path())
    table = problem.constraint_table
    assert table is not None
    assert table.together == ((0, 1),)
    assert table.at_most.tolist() == [1.0, 2.0]
    assert [problem.may_serve(0, adapter) for adapter in range(6)] == [True] * 4 + [False] * 2
    assert problem.limits_of((0, 2)).itl_p95_ms == 60
    assert problem.limits_of((1, 2)).itl_p95_ms == 100


def test_the_schema_knows_constraints() -> None:
    """Editors complete the fields of every kind of rule."""
    schema = problem_schema()
    rules = {"GpuTypeRule", "TogetherRule", "ApartRule", "LimitsRule"}
    assert rules <= set(schema["$defs"])
    assert set(schema["$defs"]["Constraints"]["properties"]) == {"gpu_type", "together", "apart", "limits"}


@pytest.mark.parametrize(
    ("constraints", "field", "text", "hint"),
    [
        (
            {"together": [{"adapters": ["suport-de"]}]},
            "constraints.together.0.adapters.0",
            "Got 'suport-de'",
            "did you mean 'support-de'?",
        ),
        ({"apart": [{"adapters": ["legal-*", "x-*"]}]}, "constraints.apart.0.adapters.1", "Got 'x-*'", "a pattern has"),
        (
            {"gpu_type": [{"adapters": ["canary-?"], "types": ["reservd"]}]},
            "constraints.gpu_type.0.types.0",
            "Got 'reservd'",
            "did you mean 'reserved'?",
        ),
        (
            {
                "gpu_type": [
                    {"adapters": ["*"], "types": ["h100-64gb"]},
                    {"adapters": ["canary-a"], "types": ["reserved"]},
                ]
            },
            "constraints.gpu_type.1.types",
            "'canary-a' may only be on 'h100-64gb'",
            "remove one of the rules",
        ),
        (
            {
                "gpu_type": [
                    {"adapters": ["canary-a"], "types": ["h100-64gb"]},
                    {"adapters": ["canary-b"], "types": ["reserved"]},
                ],
                "together": [{"adapters": ["canary-*"]}],
            },
            "constraints.together.0.adapters",
            "'canary-a' may only be on 'h100-64gb', and 'canary-b' on 'reserved'",
            "pin all of them to one type",
        ),
        (
            {"together": [{"adapters": ["canary-*"]}], "apart": [{"adapters": ["canary-*", "support-de"]}]},
            "constraints.apart.0.adapters",
            "2 of them must be together: 'canary-a', 'canary-b'",
            "raise `at_most` to 2",
        ),
        (
            {"limits": [{"adapters": ["*"], "itl_p95_ms": 200}]},
            "constraints.limits.0.itl_p95_ms",
            "at most that of all GPUs, 100. Got 200",
            "raise limits.itl_p95_ms",
        ),
        (
            {"limits": [{"adapters": ["*"], "itl_p95_ms": 0.06}]},
            "constraints.limits.0.itl_p95_ms",
            "of an empty step. Got 0.06",
            "the unit is milliseconds",
        ),
        ({"limits": [{"adapters": ["*"]}]}, "constraints.limits.0", "at least one of itl_p95_ms", None),
        ({"apart": [{"adapters": ["*"], "atmost": 2}]}, "constraints.apart.0.atmost", "Got `atmost`", "`at_most`"),
        ({"apart": [{"adapters": []}]}, "constraints.apart.0.adapters", "at least 1 entry", None),
    ],
)
def test_what_cannot_hold_is_refused_by_field(
    constraints: dict[str, Any], field: str, text: str, hint: str | None
) -> None:
    """File, field, value, and what to do about it."""
    with pytest.raises(InputError) as caught:
        parsed(constraints)
    error = caught.value
    assert (error.file, error.field) == ("w.yaml", field)
    assert text in error.message
    assert hint is None or hint in (error.hint or "")
