"""What goes over HTTP: requests around the files' own documents, jobs, events and errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from placer.plan_document import Plan
from placer.whatif.document import StudyName
from placer.whatif.scenario import ScenarioFile
from solvers.problem_file import ProblemFile, SecondaryName

Operation = Literal["solve", "replan", "verify", "whatif"]
JobState = Literal["accepted", "running", "succeeded", "failed", "cancelled"]
FINISHED: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})

# Never a path: what a problem names is looked for among the files that came with it, and nowhere else.
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}\.(csv|jsonl|json)$"
FileName = Annotated[str, Field(pattern=FILE_NAME)]
# What NumPy and JSON of any language keep.
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
Number = Annotated[int, Field(ge=0, le=2**53 - 1)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Margin = Annotated[float, Field(gt=-1, lt=10, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=200)]


class _Document(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanningOptions(_Document):
    """How plans are made; see `placer.plan`.

    Attributes
    ----------
    solver
        Name in the registry of solvers.
    surrogate
        ``auto`` or ``exact``; a service reads no files of surrogates.
    budget_s
        Seconds for the solver; ``None``: `placer.plan` decides.
    """

    solver: Text = "portfolio"
    surrogate: Literal["auto", "exact"] = "auto"
    budget_s: Seconds | None = None
    max_evaluations: Number | None = None
    seed: Seed = 0
    margin: Margin = 0.0
    horizon_s: Seconds = 1800.0
    warmup_s: Seconds = 300.0


class SolveOptions(PlanningOptions):
    """Options of `placer solve`.

    Attributes
    ----------
    current
        The plan that is in place.
    """

    risk: Share | None = None
    replicas: Literal["given", "auto"] = "given"
    verify: bool = True
    improve: bool = True
    confirm: bool = True
    secondary: tuple[SecondaryName, ...] | None = None
    current: Plan | None = None


class ReplanOptions(PlanningOptions):
    """Options of `placer replan`.

    Attributes
    ----------
    moves_per_gpu
        What one GPU fewer may cost in moves; a very large number: the fewest GPUs first.
    """

    lose_gpus: tuple[Text, ...] = ()
    moves_per_gpu: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | Literal["auto"] = "auto"
    max_moves: Number | None = None
    max_loads: Number | None = None
    max_restarts: Number | None = None
    spare_gpus: Number = 1
    restarts_at_once: Annotated[int, Field(ge=1, le=2**53 - 1)] = 1
    restart_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None
    handover_horizon_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 120.0
    strategy: Literal["near", "repair", "scratch"] = "near"


class VerifyOptions(_Document):
    """Options of `placer verify`."""

    engine: Literal["fast", "simpy"] = "fast"
    compare: bool | None = None
    gpus: tuple[Text, ...] = ()
    horizon_s: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    seed: Seed | None = None


class WhatIfOptions(PlanningOptions):
    """Options of `placer whatif`."""

    study: StudyName = "sweep"
    risk: Share | None = None
    replicas: Literal["given", "auto"] = "given"
    verify: bool = True
    improve: bool = True
    rate_cv: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.3
    common_cv: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.1
    probabilities: tuple[Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)], ...] = (
        0.8, 0.9, 0.95, 0.99, 0.999,
    )  # fmt: skip
    draws: Annotated[int, Field(ge=1, le=10_000)] = 100
    twin_error: bool = True
    candidates: Annotated[int, Field(ge=0, le=1_000)] = 10


class _Request(_Document):
    """A problem, and the files that it names.

    Attributes
    ----------
    problem
        As in a problem file.
    files
        Content of the files that the problem names, by name: its trace, popularity, model's config.json and profiles.
        Names are no paths; other files than these are not read.
    """

    problem: ProblemFile
    files: dict[FileName, str] = Field(default={}, max_length=16)


class SolveRequest(_Request):
    """What `placer solve` is given."""

    options: SolveOptions = SolveOptions()


class ReplanRequest(_Request):
    """What `placer replan` is given: the plan in place, and the problem of now."""

    plan: Plan
    options: ReplanOptions = ReplanOptions()


class VerifyRequest(_Request):
    """What `placer verify` is given: a plan, and the problem that it was made for."""

    plan: Plan
    options: VerifyOptions = VerifyOptions()


class WhatIfRequest(_Request):
    """What `placer whatif` is given: a problem, and scenarios as in a file of them."""

    scenarios: ScenarioFile = ScenarioFile()
    options: WhatIfOptions = WhatIfOptions()


AnyRequest = SolveRequest | ReplanRequest | VerifyRequest | WhatIfRequest
REQUEST_OF: dict[Operation, type[AnyRequest]] = {
    "solve": SolveRequest,
    "replan": ReplanRequest,
    "verify": VerifyRequest,
    "whatif": WhatIfRequest,
}


class ErrorDetails(_Document):
    """What went wrong, as problem details (RFC 9457), with what `PlacerError` knows.

    Attributes
    ----------
    type
        ``urn:placer:error:`` and the kind of error.
    status
        HTTP status.
    detail
        What must hold, what was given, what to do.
    field, value, file, hint
        Dotted name of the offending field, its value where it is short, the file it is in, what can be done.
    """

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    value: Any = None
    file: str | None = None
    hint: str | None = None


class IncumbentSeen(_Document):
    """The best placement that the solver of a running job has so far."""

    num_gpus: int
    cost_per_hour: float


class Job(_Document):
    """A job: what was asked, how far it is, and how it ended.

    Attributes
    ----------
    submitted_at, started_at, finished_at
        Date and time, UTC, as in RFC 3339.
    num_starts
        How often it was begun: more than once where the service went away in the middle.
    queue_position
        Jobs before it; ``None``: it does not wait.
    is_cancelling
        It is to end, and has not yet.
    has_result
        There is a document; also for a cancelled job that had a plan by then.
    exit_code
        That `placer` on the command line would have ended with; ``None``: it has not ended, or was cancelled.
    """

    id: str
    operation: Operation
    state: JobState
    submitted_at: str
    started_at: str | None = None
    finished_at: str | None = None
    num_starts: int = 0
    queue_position: int | None = None
    is_cancelling: bool = False
    has_result: bool = False
    phase: str | None = None
    incumbent: IncumbentSeen | None = None
    exit_code: int | None = None
    error: ErrorDetails | None = None


class JobList(_Document):
    """Jobs, the latest first.

    Attributes
    ----------
    next_before
        Give it as `before` for those that follow; ``None``: there are no others.
    """

    jobs: tuple[Job, ...]
    next_before: str | None = None


class Health(_Document):
    """Whether the service can do something, and why not."""

    status: Literal["ok", "unavailable"]
    reasons: tuple[str, ...] = ()
