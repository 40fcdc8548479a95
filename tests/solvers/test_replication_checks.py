"""The section `replication` of a problem file: what is read, and what every contradiction is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from solvers.problem import Problem, parse_problem, problem_schema
from solvers.replication import given_replicas, most_replicas
from twin.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "docs" / "replication.md"


def example() -> dict[str, Any]:
    """Return the problem of the documentation's page."""
    text = EXAMPLE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def parsed(replication: dict[str, Any], **changes: Any) -> Problem:
    """Return the example's problem with other rules."""
    return parse_problem(example() | {"replication": replication} | changes, file="w.yaml", base_directory=Path())


def test_the_documented_example_is_read() -> None:
    """Names and patterns become numbers; what is fixed is not looked for."""
    problem = parse_problem(example(), file="w.yaml", base_directory=Path())
    names = [adapter.name for adapter in problem.adapters]
    assert given_replicas(problem.replication, names) == [3, 1, 1, 1]
    assert most_replicas(problem.replication, names) == {1: 8, 2: 8}
    # Nothing is divided before somebody asks a surrogate.
    assert problem.shares is None


def test_the_schema_knows_replication() -> None:
    """Editors complete the fields of both kinds of rules."""
    schema = problem_schema()
    assert {"ReplicasRule", "AutomaticRule"} <= set(schema["$defs"])
    assert set(schema["$defs"]["Replication"]["properties"]) == {"given", "automatic"}


@pytest.mark.parametrize(
    ("replication", "field", "text", "hint"),
    [
        (
            {"given": [{"adapters": ["suport-de"], "replicas": 2}]},
            "replication.given.0.adapters.0",
            "Got 'suport-de'",
            "did you mean 'support-de'?",
        ),
        ({"automatic": [{"adapters": ["x-*"]}]}, "replication.automatic.0.adapters.0", "Got 'x-*'", "a pattern has"),
        (
            {"given": [{"adapters": ["l*"], "replicas": 2}, {"adapters": ["legal"], "replicas": 3}]},
            "replication.given.1.replicas",
            "'legal' has 2 by an earlier rule, and 3 by this one",
            "name each adapter in one rule",
        ),
        (
            {"given": [{"adapters": ["legal"], "replicas": 5}]},
            "replication.given.0.replicas",
            "at most the 4 GPUs that may serve the adapter. Got 5 for 'legal'",
            "raise `max_count`",
        ),
        (
            {"given": [{"adapters": ["search"], "replicas": 2}]},
            "replication.given.0.adapters",
            "'search' is in a group of `constraints.together`, and has 2 replicas",
            "take it out of the group",
        ),
        ({"given": [{"adapters": ["*"], "replicas": 0}]}, "replication.given.0.replicas", "at least 1", None),
        ({"given": [{"adapters": ["*"], "replicas": 257}]}, "replication.given.0.replicas", "at most 256", None),
        ({"given": [{"adapters": ["*"]}]}, "replication.given.0.replicas", "`replicas`", None),
        ({"automatic": [{"max_replica": 3}]}, "replication.automatic.0.max_replica", "Got `max_replica`", None),
        ({"auto": True}, "replication.auto", "Got `auto`", None),
    ],
)
def test_what_cannot_hold_is_refused_by_field(
    replication: dict[str, Any], field: str, text: str, hint: str | None
) -> None:
    """File, field, value, and what to do about it."""
    gpu_types = [gpu_type | {"max_count": 4} for gpu_type in example()["gpu_types"]]
    with pytest.raises(InputError) as caught:
        parsed(replication, gpu_types=gpu_types, constraints={"together": [{"adapters": ["search", "support-at"]}]})
    error = caught.value
    assert (error.file, error.field) == ("w.yaml", field)
    assert text in error.message
    assert hint is None or hint in (error.hint or "")


def test_one_replica_is_no_contradiction() -> None:
    """It says that an adapter is not to be divided, whatever the GPUs and groups."""
    problem = parsed(
        {"given": [{"adapters": ["*"], "replicas": 1}]},
        constraints={"together": [{"adapters": ["search", "support-at"]}]},
    )
    assert problem.replication.is_asked
