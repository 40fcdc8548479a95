"""A migration over time: when each step begins, and on which GPU it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placer.replan_document import MigrationStep, StepKind
from placer.replanning.migration import SUCCESSOR

# Of all seconds: steps that take no more are marks, and those nearer than that share one. And of a lane: between marks.
MARK_SHARE = 0.022
MARK_STEP = 0.22


@dataclass(frozen=True)
class Lane:
    """A GPU that a migration touches.

    Attributes
    ----------
    name
        Of its replica; a successor has two names, one after the other.
    gpu_type
        Of the GPU; empty where the migration does not say it.
    first_s, last_s
        While the GPU is in use: from the start of its replica, or 0, until its stop, or the end.
    """

    name: str
    gpu_type: str
    first_s: float
    last_s: float


@dataclass(frozen=True)
class TimedStep:
    """A step, when it begins, and where it happens.

    Attributes
    ----------
    start_s
        Seconds since the first step began.
    lanes
        Positions of the GPUs that it changes: of a shift, those that get the requests.
    sources
        Positions of the GPUs from which requests go away; a shift from nobody has none.
    """

    step: MigrationStep
    start_s: float
    lanes: tuple[int, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Timeline:
    """All steps in order, the GPUs that they touch in the order in which they do, and the seconds of all steps."""

    lanes: tuple[Lane, ...]
    steps: tuple[TimedStep, ...]
    total_s: float


@dataclass(frozen=True)
class Mark:
    """Steps of one kind on one GPU that are too short to be a bar, and so near in time that one mark stands for them.

    Attributes
    ----------
    at_s
        When the first of the steps near in time begins on this GPU, of whatever kind.
    lane, offset
        Position of the GPU, and of the mark beside it, in lanes: marks of other kinds at the same time stand beside it.
    numbers, unsafe
        Of the steps, and of those that are not safe.
    """

    kind: StepKind
    at_s: float
    lane: int
    offset: float
    numbers: tuple[int, ...]
    unsafe: tuple[int, ...]


def is_short(timed: TimedStep, timeline: Timeline) -> bool:
    """Return whether a step is a mark: as a bar it would be narrower than one."""
    return timed.step.seconds <= MARK_SHARE * timeline.total_s


def marks_of(timeline: Timeline) -> list[Mark]:
    """Return the marks of short steps: no two are nearer than `MARK_SHARE` of all seconds, or `MARK_STEP` of a lane."""
    marks = []
    for lane in range(len(timeline.lanes)):
        short = [timed for timed in timeline.steps if lane in timed.lanes and is_short(timed, timeline)]
        near: list[TimedStep] = []
        for timed in sorted(short, key=lambda timed: timed.start_s):
            if near and timed.start_s - near[0].start_s > MARK_SHARE * timeline.total_s:
                marks += _marks_at(lane, near)
                near = []
            near.append(timed)
        marks += _marks_at(lane, near)
    return marks


def _marks_at(lane: int, near: Sequence[TimedStep]) -> list[Mark]:
    """Return a mark for each kind of steps that are near in time, one beside the other across the lane."""
    kinds = list(dict.fromkeys(timed.step.kind for timed in near))
    marks = []
    for position, kind in enumerate(kinds):
        steps = [timed.step for timed in near if timed.step.kind == kind]
        unsafe = tuple(step.number for step in steps if not step.check.is_safe)
        numbers = tuple(step.number for step in steps)
        offset = (position - (len(kinds) - 1) / 2) * MARK_STEP
        marks.append(Mark(kind, near[0].start_s, lane, offset, numbers, unsafe))
    return marks


def timeline_of(steps: Sequence[MigrationStep]) -> Timeline:
    """Return the steps over time: each group begins when the one before it is over.

    Where a replica is stopped whose successor is there, the name goes over to the successor's GPU.
    """
    starts, total_s = _group_starts(steps)
    places = _Places()
    timed = []
    for step in steps:
        start_s = starts[step.group]
        targets = [shift.target for shift in step.shifts] or [step.replica]
        sources = [shift.source for shift in step.shifts if shift.source is not None]
        lanes = tuple(dict.fromkeys(places.of(name) for name in targets))
        timed.append(TimedStep(step, start_s, lanes, tuple(dict.fromkeys(places.of(name) for name in sources))))
        places.note(step, start_s, lanes)
    return Timeline(tuple(places.lanes(total_s)), tuple(timed), total_s)


def _group_starts(steps: Sequence[MigrationStep]) -> tuple[dict[int, float], float]:
    """Return when each group begins, and when the last one is over, in seconds."""
    longest: dict[int, float] = {}
    for step in steps:
        longest[step.group] = max(longest.get(step.group, 0.0), step.seconds)
    starts, now_s = {}, 0.0
    for group, seconds in longest.items():
        starts[group] = now_s
        now_s += seconds
    return starts, now_s


class _Places:
    """Which GPU a name stands for while the steps go on."""

    def __init__(self) -> None:
        self._of_name: dict[str, int] = {}
        self._names: list[list[str]] = []
        self._types: list[str] = []
        self._first_s: list[float] = []
        self._last_s: list[float | None] = []

    def of(self, name: str) -> int:
        if name not in self._of_name:
            self._of_name[name] = len(self._names)
            self._names.append([name])
            self._types.append("")
            self._first_s.append(0.0)
            self._last_s.append(None)
        return self._of_name[name]

    def note(self, step: MigrationStep, start_s: float, lanes: tuple[int, ...]) -> None:
        """Keep what a step says about its GPU."""
        (place, *others) = lanes
        if not others:
            self._types[place] = step.gpu_type
        if step.kind == "start":
            self._first_s[place] = start_s
        if step.kind != "stop":
            return
        self._last_s[place] = start_s + step.seconds
        # The name is free, or the successor's from now on.
        del self._of_name[step.replica]
        successor = self._of_name.pop(step.replica + SUCCESSOR, None)
        if successor is not None:
            self._of_name[step.replica] = successor
            self._names[successor].append(step.replica)

    def lanes(self, end_s: float) -> list[Lane]:
        columns = zip(self._names, self._types, self._first_s, self._last_s, strict=True)
        return [
            Lane(", then ".join(names), gpu_type, first_s, end_s if last_s is None else last_s)
            for names, gpu_type, first_s, last_s in columns
        ]
