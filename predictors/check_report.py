"""What a check of a surrogate found: every check by name, with a sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from twin.errors import SurrogateError

Outcome = Literal["passed", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        Stays the same between versions.
    outcome
        ``failed`` breaks the interface; ``warning`` keeps it, and is most likely not meant; ``skipped`` could not, or
        need not, be looked at.
    detail
        A sentence: what was seen, or why it was skipped.
    """

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class SurrogateCheck:
    """What was found about one surrogate.

    Attributes
    ----------
    subject
        Path of the file, or name of the class.
    checks
        In the order in which they make sense to read.
    row_latency_s
        Median wall time of a question about one row, in seconds; reported, not judged. None: it was not asked.
    """

    subject: str
    checks: tuple[Check, ...]
    row_latency_s: float | None

    @property
    def is_ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """What breaks the interface."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """What keeps the interface, and is most likely not meant."""
        return tuple(check for check in self.checks if check.outcome == "warning")

    def __getitem__(self, name: str) -> Check:
        """Return the check of that name; KeyError if there is none."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def raise_for_failures(self) -> None:
        """Raise SurrogateError with all failures in one message, if there are any."""
        failures = self.failures
        if failures:
            found = "".join(f"\n  {check.name}: {check.detail}" for check in failures)
            raise SurrogateError(
                f"a surrogate must keep the interface of docs/bring-your-own-surrogate.md. {self.subject} fails "
                f"{len(failures)} of {len(self.checks)} checks:{found}",
                file=self.subject,
                field=failures[0].name,
                value=[check.name for check in failures],
                hint="mend the model or its export; `auto` and `exact` need no file",
            )

    def as_json(self) -> dict[str, Any]:
        """Return the report as `placer surrogate --json` prints it."""
        return {"schema_version": 1, "is_ok": self.is_ok, **asdict(self)}
