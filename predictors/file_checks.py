"""Checks of a surrogate's ONNX file before it is asked: the rules for files, and what its metadata say beyond them."""

from __future__ import annotations

from pathlib import Path

from predictors.check_report import Check
from predictors.domain import Domain
from predictors.probes import rows_inside
from predictors.provenance import profile_fingerprint
from predictors.surrogate_file import RULES, SurrogateFile
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile

# What is looked at in a file, and cannot be where there is none.
FILE_CHECKS = ("file", *RULES, "hull_rule", "domain_reachable", "training_facts", "profile_match")
# What the metadata should say about the training (docs/training.md).
TRAINING_FACTS = ("rows", "seed", "errors")

# Metadata that a rule is about.
_KEY_OF_RULE = {"feature_schema": "feature_schema", "profile_name": "profile", "domain": "domain"}
_PASSED = {
    "metadata_keys": "all metadata keys are there",
    "metadata_json": "each is a JSON object",
    "feature_schema": "version, names, units and order of the features are those of this version",
    "profile_name": "the profile that it was distilled from is named",
    "domain": "each feature has its bounds",
    "input": "`features`, float32 [N, F] with a free N, and nothing else",
    "outputs": "the five outputs, float32 [N]",
}


def open_file(path: str | Path) -> tuple[SurrogateFile | None, Check]:
    """Return a file, or None, and the check that says whether it can be run.

    Raises
    ------
    SurrogateError
        When ONNX Runtime is not installed: nothing was learned about the file.
    """
    try:
        return SurrogateFile.open(path), Check("file", "passed", "ONNX Runtime can run it.")
    except SurrogateError as error:
        if isinstance(error.__cause__, ImportError):
            raise
        return None, Check("file", "failed", error.message)


def file_checks(file: SurrogateFile, *, profile: PerformanceProfile | None) -> tuple[list[Check], Domain | None]:
    """Return the checks of all of `FILE_CHECKS` but the first, and the domain if it can be read."""
    checks = []
    for name, rule in RULES.items():
        key = _KEY_OF_RULE.get(name)
        messages = [error.message for error in rule(file)]
        if messages:
            checks.append(Check(name, "failed", " ".join(messages)))
        elif key is not None and file.parsed(key) is None:
            checks.append(Check(name, "skipped", f"`{key}` cannot be read."))
        else:
            checks.append(Check(name, "passed", f"{_PASSED[name]}."))
    domain = file.domain() if _passed(checks, "domain") else None
    checks += [*_domain_checks(domain), _training_facts(file), _profile_match(file, profile)]
    return checks, domain


def can_be_asked(checks: list[Check]) -> bool:
    """Return whether input and outputs have the names and types with which a file is asked."""
    return _passed(checks, "input") and _passed(checks, "outputs")


def _passed(checks: list[Check], name: str) -> bool:
    return all(check.outcome == "passed" for check in checks if check.name == name)


def _domain_checks(domain: Domain | None) -> list[Check]:
    if domain is None:
        return [Check(name, "skipped", "the domain cannot be read.") for name in ("hull_rule", "domain_reachable")]
    ratios = ", ".join(rule.name for rule in domain.ratios)
    hull = (
        Check("hull_rule", "passed", f"bounds on {ratios}.")
        if ratios
        else Check(
            "hull_rule",
            "warning",
            "the domain is a box without ratios: sets that combine extremes which were never seen together count as "
            "inside. `Domain.from_rows` writes both.",
        )
    )
    num_inside = len(rows_inside(domain, 8))
    reachable = (
        Check("domain_reachable", "passed", "sets of adapters such as planners ask about lie inside.")
        if num_inside
        else Check(
            "domain_reachable",
            "warning",
            "no set of adapters was found that lies inside: every prediction in a plan would be marked as a guess.",
        )
    )
    return [hull, reachable]


def _training_facts(file: SurrogateFile) -> Check:
    given = file.parsed("training") or {}
    missing = [name for name in TRAINING_FACTS if name not in given]
    if missing:
        return Check(
            "training_facts",
            "warning",
            f"`training` does not say {', '.join(missing)}: nobody can tell how far the model is off.",
        )
    return Check("training_facts", "passed", f"`training` says {', '.join(TRAINING_FACTS)}.")


def _profile_match(file: SurrogateFile, profile: PerformanceProfile | None) -> Check:
    given = file.parsed("profile") or {}
    if profile is None or "name" not in given:
        reason = "no profile was given." if profile is None else "the file names no profile."
        return Check("profile_match", "skipped", reason)
    name, fingerprint, expected = given["name"], given.get("fingerprint"), profile_fingerprint(profile)
    if name != profile.name:
        return Check("profile_match", "failed", f"it was distilled from {name!r}, not from {profile.name!r}.")
    if fingerprint is None:
        return Check(
            "profile_match",
            "warning",
            f"it was distilled from a profile named {name!r}, and has no `fingerprint`: whether with the same numbers, "
            "nobody can tell.",
        )
    if fingerprint != expected:
        return Check(
            "profile_match",
            "failed",
            f"it was distilled from a profile {name!r} with other numbers: fingerprint {fingerprint}, not {expected}. "
            "Label and fit again.",
        )
    return Check("profile_match", "passed", f"distilled from {name!r} with these numbers.")
