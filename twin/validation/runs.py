"""Tables of measured serving runs: settings, traffic, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from twin.calibration.tables import TABLE_MODELS
from twin.engine import SUPPORTED_RANKS, EngineConfig
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.validation.cells import RUN_ID, Cells, read_cells
from twin.validation.quantities import Quantities

# The engine that the tables were measured with.
VLLM_VERSION: Literal["0.8.5"] = "0.8.5"

Status = Literal["ok", "oom"]
# Rows that say nothing about the engine: the machine or the launcher failed.
FAILED_STATUS = "infra_fail"

MODELS = {table_name: name for name, table_name in TABLE_MODELS.items()} | {name: name for name in TABLE_MODELS}

# Lengths of the published runs' requests, with which a table's runs are replayed.
LEAST_PROMPT_TOKENS = 4
MOST_PROMPT_TOKENS = 1024
LEAST_OUTPUT_TOKENS = 4
# The tail of the outputs decides how long one request keeps an adapter's slot: fitted to the throughput of the runs
# with split=calib whose slots are short.
MOST_OUTPUT_TOKENS = 1400
MOST_TOTAL_TOKENS = 2048
# Shares that a percentage would exceed; a few late requests may bring a little more than was offered.
MOST_SHARES = {"kv_usage_mean": 1.0, "goodput_ratio": 2.0}

SETTING_COLUMNS = (
    RUN_ID,
    "model",
    "status",
    "slots",
    "n_served",
    "max_lora_rank",
    "total_time",
    "max_num_seqs",
    "max_num_batched_tokens",
)
TRAFFIC_COLUMNS = ("ranks", "rates_counts", "pool_mean_in", "pool_mean_out")
MEASURED_COLUMNS = tuple(Quantities.model_fields)
FLAG_COLUMNS = ("starved", "client_collapse", "informative")
REQUIRED_COLUMNS = SETTING_COLUMNS + TRAFFIC_COLUMNS + MEASURED_COLUMNS + FLAG_COLUMNS


@dataclass(frozen=True)
class Traffic:
    """What was asked of a run: Poisson arrivals per adapter.

    Attributes
    ----------
    rates_rps
        Requests per second of each adapter.
    ranks
        Ranks, to be cycled over the adapters in an order that does not depend on the rates.
    mean_prompt_tokens, mean_output_tokens
        Mean prompt length, and mean output length that was asked for.
    lengths
        Distributions of prompt and output lengths, independent of each other; ``None``: those of the published runs,
        with the means above.
    gap_cv
        Coefficient of variation of the gamma distributed gaps between the requests of all adapters together; other
        than 1 with `lengths` only.
    """

    rates_rps: tuple[float, ...]
    ranks: tuple[int, ...]
    mean_prompt_tokens: float
    mean_output_tokens: float
    lengths: tuple[LengthDistribution, LengthDistribution] | None = None
    gap_cv: float = 1.0

    @property
    def offered_rps(self) -> float:
        """Requests per second of all adapters."""
        return sum(self.rates_rps)


@dataclass(frozen=True)
class MeasuredRun:
    """One row of a table of runs.

    Attributes
    ----------
    run_id
        Unique in the table.
    model
        Name of a shipped model.
    status
        ``ok``: it served; ``oom``: the server did not start for lack of memory.
    engine
        vLLM's settings.
    num_adapters
        Adapters served.
    traffic
        ``None`` where the table does not give it, for a run that did not start.
    total_time_s
        Length of the run.
    split
        Part of the table that the run belongs to; empty when the table does not say.
    is_informative
        Near saturation or beyond it, where the throughput does not simply equal the offered load.
    has_client_collapsed
        The load generator itself was saturated: only `is_starved` means something.
    measured
        What was measured; nothing for a run that did not start.
    is_starved
        As the table says; ``None`` for a run that did not start.
    offered_tps
        Offered prompt + output tokens per second as measured, if the table has it.
    is_polled
        Whether the load generator asked the server for its metrics all the time, as that of the published runs did.
    gpu, vllm
        What the table says it was measured on, and with which version; empty when it does not say.
    """

    run_id: str
    model: str
    status: Status
    engine: EngineConfig
    num_adapters: int
    traffic: Traffic | None
    total_time_s: float
    split: str
    is_informative: bool
    has_client_collapsed: bool
    measured: Quantities
    is_starved: bool | None
    offered_tps: float | None
    is_polled: bool = True
    gpu: str = ""
    vllm: str = ""

    @property
    def is_headline(self) -> bool:
        """Whether the run counts in the headline errors: informative, and the client kept up."""
        return self.status == "ok" and self.is_informative and not self.has_client_collapsed


@dataclass(frozen=True)
class RunTable:
    """The rows of a table that were asked for.

    Attributes
    ----------
    num_failed
        Rows left out because the machine or the launcher failed (`FAILED_STATUS`).
    other_models
        Of each row left out because another model was asked for, that row's.
    """

    file: str
    runs: tuple[MeasuredRun, ...]
    num_failed: int
    other_models: tuple[str, ...] = ()


def resolve_model(name: str) -> str:
    """Return the shipped model that a table or a user calls `name`; InputError when there is none."""
    if name not in MODELS:
        raise InputError(
            f"the model must be one of {', '.join(MODELS)}. Got {name!r}.",
            field="model",
            value=name,
            hint="name a shipped model",
        )
    return MODELS[name]


def read_runs(
    path: str | Path, *, model: str | None = None, split: str | None = None, only_informative: bool = False
) -> RunTable:
    """Read measured runs.

    Parameters
    ----------
    path
        CSV file with the columns `REQUIRED_COLUMNS` and, if it has parts, ``split``. Measured values may be empty:
        such a run is replayed and not scored by them.
    model, split
        Only the rows of this model (its shipped or its table's name), and of this part.
    only_informative
        Only the rows that count in the headline errors.

    Raises
    ------
    InputError
        When the file is unreadable, lacks a column, has a cell that cannot be used in a row that is asked for, or has
        no such row.
    """
    rows = read_cells(path, required=REQUIRED_COLUMNS)
    wanted = None if model is None else resolve_model(model)
    part = [row for row in rows if split is None or row.values.get("split") == split]
    chosen = [row for row in part if wanted is None or MODELS.get(row.values["model"]) == wanted]
    failed = [row for row in chosen if row.values["status"] == FAILED_STATUS]
    runs = tuple(_parse_run(row) for row in chosen if row.values["status"] != FAILED_STATUS)
    if only_informative:
        runs = tuple(run for run in runs if run.is_headline)
    if not runs:
        raise _empty_selection(str(path), rows, num_failed=len(failed))
    others = () if wanted is None else tuple(row.values["model"] for row in part if row not in chosen)
    return RunTable(str(path), runs, len(failed), others)


def _parse_run(row: Cells) -> MeasuredRun:
    model = row.text("model")
    if model not in MODELS:
        raise row.error("model", f"must be one of {', '.join(MODELS)}", hint="choose rows with --model")
    status = _parse_status(row)
    num_adapters = row.integer("n_served")
    has_traffic = status == "ok" or not row.is_empty("rates_counts")
    return MeasuredRun(
        run_id=row.run_id,
        model=MODELS[model],
        status=status,
        engine=_parse_engine(row, num_adapters),
        num_adapters=num_adapters,
        traffic=_parse_traffic(row, num_adapters) if has_traffic else None,
        total_time_s=row.number("total_time", least=1.0),
        split=row.values.get("split", ""),
        is_informative=bool(row.optional_flag("informative")),
        has_client_collapsed=bool(row.optional_flag("client_collapse")),
        measured=_parse_measured(row),
        is_starved=row.optional_flag("starved"),
        offered_tps=row.optional_number("offered_tok_per_s"),
        gpu="" if row.is_empty("gpu") else row.values["gpu"],
        vllm="" if row.is_empty("vllm") else row.values["vllm"],
    )


def _parse_measured(row: Cells) -> Quantities:
    values = {name: row.optional_number(name) for name in MEASURED_COLUMNS}
    for name, most in MOST_SHARES.items():
        value = values[name]
        if value is not None and value > most:
            raise row.error(name, f"must be a share of at most {most:g}", hint="divide percentages by 100")
    return Quantities(**values)


def _parse_status(row: Cells) -> Status:
    for status in get_args(Status):
        if row.values["status"] == status:
            return status  # type: ignore[no-any-return]  # get_args is untyped
    raise row.error("status", f"must be one of {', '.join(get_args(Status))}, {FAILED_STATUS}")


def _parse_engine(row: Cells, num_adapters: int) -> EngineConfig:
    slots = row.integer("slots")
    columns = {"max_loras": "slots", "max_cpu_loras": "n_served"}
    try:
        return EngineConfig(
            vllm_version=VLLM_VERSION,
            max_loras=slots,
            max_lora_rank=row.integer("max_lora_rank"),  # type: ignore[arg-type]  # checked by the model
            # vLLM demands that the CPU cache holds at least what the slots hold.
            max_cpu_loras=max(num_adapters, slots),
            max_num_seqs=row.integer("max_num_seqs"),
            max_num_batched_tokens=row.integer("max_num_batched_tokens"),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "max_num_batched_tokens"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise row.error(columns.get(field, field), f"must be a setting that vLLM takes ({message})") from error


def _parse_traffic(row: Cells, num_adapters: int) -> Traffic:
    column = "rates_counts"
    rates: list[float] = []
    for part in row.text(column).split(";"):
        rate, colon, count = part.partition(":")
        if not colon:
            raise row.error(column, "must be rate:count pairs joined by semicolons")
        number = row.parse_number(column, count, least=1)
        if not number.is_integer():
            raise row.error(column, "must have whole numbers of adapters")
        rates += [row.parse_number(column, rate, least=0.0)] * int(number)
    if len(rates) != num_adapters:
        raise row.error(column, f"must have as many adapters as `n_served` ({num_adapters}), not {len(rates)}")
    mean_prompt = _parse_length(row, "pool_mean_in", LEAST_PROMPT_TOKENS, MOST_PROMPT_TOKENS)
    mean_output = _parse_length(row, "pool_mean_out", LEAST_OUTPUT_TOKENS, MOST_OUTPUT_TOKENS)
    if mean_prompt + mean_output > MOST_TOTAL_TOKENS:
        raise row.error("pool_mean_out", f"must be at most {MOST_TOTAL_TOKENS} together with `pool_mean_in`")
    return Traffic(
        rates_rps=tuple(rates),
        ranks=_parse_ranks(row),
        mean_prompt_tokens=mean_prompt,
        mean_output_tokens=mean_output,
    )


def _parse_length(row: Cells, column: str, least: float, most: float) -> float:
    mean = row.number(column, least=least)
    if mean > most:
        hint = (
            "replays draw the published runs' lengths; measure other ones with `vllm bench serve` and calibrate to it"
        )
        raise row.error(column, f"must be at most {most:g}, the longest length that is replayed", hint=hint)
    return mean


def _parse_ranks(row: Cells) -> tuple[int, ...]:
    largest = row.integer("max_lora_rank")
    ranks = tuple(int(row.parse_number("ranks", word, least=1)) for word in row.text("ranks").split())
    if any(rank not in SUPPORTED_RANKS or rank > largest for rank in ranks):
        known = ", ".join(str(rank) for rank in SUPPORTED_RANKS)
        raise row.error("ranks", f"must be ranks of {known}, at most `max_lora_rank` ({largest})")
    return ranks


def _empty_selection(file: str, rows: tuple[Cells, ...], *, num_failed: int) -> InputError:
    models = ", ".join(sorted({row.values["model"] for row in rows})) or "none"
    splits = ", ".join(sorted({row.values.get("split", "") for row in rows} - {""})) or "none"
    return InputError(
        f"a table of runs must have rows to replay. {file} has {len(rows)} rows (models: {models}; splits: {splits}), "
        f"and of those asked for none is left ({num_failed} left out as {FAILED_STATUS}).",
        file=file,
        hint="choose other rows with --model and --split",
    )
