"""Read all that a file or a folder has to say about a server: tables, metrics, results of benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twin.calibration import bench_runs, bench_windows
from twin.calibration.bench_files import BenchResult
from twin.calibration.evidence_files import EvidenceFiles, is_measurement, recognise
from twin.calibration.measured_folders import MeasuredFolder, read_folder
from twin.calibration.metrics_files import read_metrics_table, read_prometheus, read_text_pages
from twin.calibration.metrics_series import SampleCollector
from twin.calibration.metrics_windows import SOURCE as METRICS
from twin.calibration.metrics_windows import read_windows
from twin.calibration.serving_settings import ServingSettings
from twin.calibration.serving_windows import ServingWindow, merge_alike
from twin.calibration.step_table import Table, find_tables
from twin.errors import InputError
from twin.validation.runs import MeasuredRun

BENCH = bench_windows.SOURCE

SettingsOf = Callable[[Path], ServingSettings]


def no_settings(file: Path) -> ServingSettings:  # noqa: ARG001 - of any file
    """Return that nothing is known of a server."""
    return ServingSettings()


@dataclass(frozen=True)
class SourceSummary:
    """What came of one kind of source.

    Attributes
    ----------
    kind
        `METRICS` or `BENCH`.
    files
        Their names.
    num_read
        Windows between scrapes, or results of benchmarks.
    dropped
        Those that are not used, by reason.
    """

    kind: str
    files: tuple[str, ...]
    num_read: int
    dropped: Mapping[str, int]

    @property
    def num_used(self) -> int:
        """Return how many are used."""
        return self.num_read - sum(self.dropped.values())

    def as_report(self) -> dict[str, Any]:
        """Return plain values for a profile's provenance."""
        return {
            "kind": self.kind,
            "files": list(self.files),
            "read": self.num_read,
            "used": self.num_used,
            "dropped": dict(self.dropped),
        }


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes
    ----------
    tables
        A user's own tables by name (`TABLE_NAMES`); several of a name where several folders have it.
    windows
        Mean step times of stretches of serving; those that are alike are one.
    runs
        Serving runs to be replayed.
    summaries
        What metrics and results gave.
    assumed
        What had to be assumed to use them.
    unread
        Files of the folders that are none of these.
    folders
        Those that `placer measure` wrote.
    hashes
        SHA-256 of the files, by name; with the folder's name where there are several folders.
    """

    tables: Mapping[str, tuple[Table, ...]] = field(default_factory=dict)
    windows: tuple[ServingWindow, ...] = ()
    runs: tuple[MeasuredRun, ...] = ()
    summaries: tuple[SourceSummary, ...] = ()
    assumed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    folders: tuple[MeasuredFolder, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)

    def as_report(self) -> dict[str, Any]:
        """Return plain values about metrics and results for a profile's provenance."""
        return {
            "sources": [summary.as_report() for summary in self.summaries],
            "assumed": list(self.assumed),
            "unread": list(self.unread),
            "windows": len(self.windows),
        }


def read_evidence(*data: Path, model: str, settings_of: SettingsOf = no_settings) -> Evidence:
    """Read everything that files or folders have to say about step times.

    Parameters
    ----------
    data
        Each a table of steps, metrics, results of ``vllm bench serve``, or a folder with these and further tables.
    model
        What was served, as `twin.hardware.load_model` takes it.
    settings_of
        The settings of the server that a file is about.

    Raises
    ------
    InputError
        When nothing is recognised, a file cannot be used, nothing in it can, or one is given twice.
    TwinError
        When a library that a format needs is not installed.
    """
    _require_distinct(data)
    reading = _Reading(model, settings_of)
    for one, folder in zip(data, _prefixes(data), strict=True):
        reading.read(one, folder=folder)
    evidence = reading.evidence()
    if evidence.summaries and not (evidence.windows or evidence.runs or "steps" in evidence.tables):
        raise _nothing_to_fit(data, evidence.summaries)
    return evidence


def _require_distinct(data: Sequence[Path]) -> None:
    resolved = [path.resolve() for path in data]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise InputError(
                f"measurements must be given once. {data[index]} is given twice.",
                file=str(data[index]),
                field="data",
                value=str(data[index]),
                hint="leave one of them out",
            )


def _prefixes(data: Sequence[Path]) -> list[str]:
    """Return what tells the files of each of several folders, or files, from those of the others."""
    if len(data) == 1:
        return [""]
    names = [path.name if path.is_file() else path.resolve().name for path in data]
    shorts = ["" if path.is_file() else f"{name}/" for path, name in zip(data, names, strict=True)]
    longs = [f"{path.parent}/" if path.is_file() else f"{path}/" for path in data]
    return [short if names.count(name) == 1 else long for name, short, long in zip(names, shorts, longs, strict=True)]


class _Reading:
    """Collects what files and folders give."""

    def __init__(self, model: str, settings_of: SettingsOf) -> None:
        self._model = model
        self._settings_of = settings_of
        self._served: dict[tuple[str, str], str] = {}
        self._tables: dict[str, list[Table]] = {}
        self._windows: list[ServingWindow] = []
        self._runs: list[MeasuredRun] = []
        # By kind of source: names of files, what was read, and what of it is not used, by reason.
        self._files: dict[str, list[str]] = {METRICS: [], BENCH: []}
        self._num_read = {METRICS: 0, BENCH: 0}
        self._dropped: dict[str, dict[str, int]] = {METRICS: {}, BENCH: {}}
        self._assumed: dict[str, None] = {}
        self._unread: list[str] = []
        self._folders: list[MeasuredFolder] = []
        self._hashes: dict[str, str] = {}

    def read(self, data: Path, *, folder: str) -> None:
        """Read a file or a folder; `folder` is what distinguishes its files from those of others."""
        files = recognise(data)
        has_serving = bool(files.metrics or files.results)
        if not has_serving and is_measurement(data) and not files.has_tables:
            raise _nothing_measured(data)
        tables = find_tables(data) if files.has_tables or not has_serving else {}
        for name, table in tables.items():
            self._tables.setdefault(name, []).append(table)
        if is_measurement(data):
            self._folders.append(read_folder(data))
        self._read_metrics(files, data, folder)
        for path, results in files.results:
            self._read_results(path, results, folder)
        self._files[METRICS] += [folder + path.name for path in files.metrics]
        self._files[BENCH] += [folder + path.name for path, _ in files.results]
        self._unread += [folder + name for name in files.unread]
        paths = [Path(table.file) for table in tables.values()]
        paths += [*files.metrics, *(path for path, _ in files.results)]
        self._hashes |= {folder + path.name: file_hash(path) for path in paths}

    def evidence(self) -> Evidence:
        """Return what was read until now."""
        return Evidence(
            tables={name: tuple(tables) for name, tables in self._tables.items()},
            windows=merge_alike(self._windows),
            runs=tuple(self._runs),
            summaries=tuple(
                SourceSummary(kind, tuple(names), self._num_read[kind], self._dropped[kind])
                for kind, names in self._files.items()
                if names
            ),
            assumed=tuple(self._assumed),
            unread=tuple(self._unread),
            folders=tuple(self._folders),
            hashes=self._hashes,
        )

    def _read_metrics(self, files: EvidenceFiles, data: Path, folder: str) -> None:
        """Read all metrics of a folder together: a server's samples may stand in several files."""
        if not files.metrics:
            return
        collector = SampleCollector()
        modified = [path.name for path in files.pages if read_text_pages(path, collector)]
        for path, content in files.answers:
            read_prometheus(content, collector, file=str(path))
        for path in files.metrics_tables:
            read_metrics_table(path, collector)
        for name in sorted(collector.models):
            self._require_one_model(METRICS, name, str(files.metrics[0]))
        reading = read_windows(collector.series(), self._settings_of(data))
        if modified:
            reading.assume(
                f"{len(modified)} pages were scraped when their files were last modified: neither names nor a line "
                "`# scraped_at` tell."
            )
        self._windows += [replace(window, group=folder + window.group) for window in reading.windows]
        self._num_read[METRICS] += reading.num_windows
        for reason, count in reading.dropped.items():
            self._drop(METRICS, reason, count)
        self._assumed |= reading.assumed

    def _read_results(self, path: Path, results: tuple[BenchResult, ...], folder: str) -> None:
        """Read a file of benchmarks' results."""
        general = self._settings_of(path)
        for index, result in enumerate(results):
            self._num_read[BENCH] += 1
            if result.model_id:
                self._require_one_model(BENCH, result.model_id, str(path))
            settings = general.updated(result.metadata, file=str(path))
            run_id = folder + (path.name if len(results) == 1 else f"{path.name} {index + 1}")
            reason = self._read_result(result, settings, run_id)
            if reason is not None:
                self._drop(BENCH, reason, 1)

    def _drop(self, kind: str, reason: str, count: int) -> None:
        self._dropped[kind][reason] = self._dropped[kind].get(reason, 0) + count

    def _read_result(self, result: BenchResult, settings: ServingSettings, run_id: str) -> str | None:
        """Take windows or a run from a result, or return why there is nothing to take."""
        if result.completed == 0:
            return "no request that completed"
        if "spec_decode_num_drafts" in result.metadata:
            return "speculative decoding: several tokens a step"
        _require_lora(settings)
        if result.has_details:
            windows = bench_windows.detailed_windows(result, settings, run_id)
        elif result.max_concurrency is not None and result.request_rate == float("inf"):
            windows = bench_windows.closed_loop_windows(result, settings, run_id)
        else:
            return self._read_open_loop(result, settings, run_id)
        if isinstance(windows, str):
            return windows
        self._windows += windows
        self._assumed |= dict.fromkeys(bench_windows.assumptions(result, settings))
        return None

    def _read_open_loop(self, result: BenchResult, settings: ServingSettings, run_id: str) -> str | None:
        if result.max_concurrency is not None:
            return "a rate and a limit of requests at a time: which of them held is not known without --save-detailed"
        why = "a run without --save-detailed is replayed in the twin"
        settings.require("max_num_seqs", "max_num_batched_tokens", why=why)
        outcome = bench_runs.serving_run(result, settings, run_id=run_id, model=self._model)
        if isinstance(outcome, str):
            return outcome
        run, assumed = outcome
        self._runs.append(run)
        self._assumed |= dict.fromkeys(assumed)
        return None

    def _require_one_model(self, kind: str, name: str, file: str) -> None:
        """Raise InputError where another model was served before: a profile is of one.

        Metrics and results of one server may call it differently, by ``--served-model-name`` and by its folder.
        """
        for (of_kind, other), where in self._served.items():
            if of_kind == kind and other != name:
                raise InputError(
                    f"all measurements must be of one model. {where} has {other!r}, {file} has {name!r}.",
                    file=file,
                    field="model_name",
                    value=name,
                    hint='leave one of them out; in a query, select one by {model_name="..."}',
                )
        self._served[kind, name] = file


def _require_lora(settings: ServingSettings) -> None:
    """Raise InputError unless it is known whether the server has LoRA, and with which slots and adapters."""
    if settings.has_no_lora:
        return
    why = "results of a benchmark do not tell (`enable_lora: false` for a server without LoRA)"
    settings.require("max_loras", "max_lora_rank", why=why)
    if not settings.shares:
        raise InputError(
            f"`adapters` of a benchmark must be given: results do not name them. {settings.file} does not have them.",
            file=settings.file,
            field="adapters",
            hint="write how many --lora-modules there were, such as `adapters: 16`, or the list of a workload file",
        )


def _nothing_to_fit(data: Sequence[Path], summaries: Sequence[SourceSummary]) -> InputError:
    num_read = {METRICS: 0, BENCH: 0} | {summary.kind: summary.num_read for summary in summaries}
    reasons = [
        f"{count} of {summary.num_read} ({BENCH}) have {reason}" if summary.kind == BENCH else f"{count} {reason}"
        for summary in summaries
        for reason, count in summary.dropped.items()
    ]
    names = ", ".join(str(path) for path in data)
    total = num_read[METRICS]
    hint = (
        "scrape while the server is busy, every 5 to 60 s, for some minutes"
        if total or not num_read[BENCH]
        else "run `vllm bench serve` with --save-detailed"
    )
    return InputError(
        f"the measurements must give a step time. Of {names}, none of {total} windows between scrapes and "
        f"{num_read[BENCH]} results does: {'; '.join(reasons) or 'each server was scraped once'}.",
        file=names,
        field="data",
        value=names,
        hint=hint,
    )


def _nothing_measured(folder: Path) -> InputError:
    return InputError(
        f"a measurement must have recorded steps or metrics. {folder} has neither.",
        file=str(folder),
        field="data",
        value=str(folder),
        hint="if it was cut off, `placer measure --finish` makes its tables; over HTTP, record the page of metrics",
    )


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as a profile's provenance has it."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
