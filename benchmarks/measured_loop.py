"""Measure, calibrate, predict, compare: `python -m benchmarks.measured_loop [--update docs/measure.md]`.

A real vLLM on the CPU serves a tiny random model with random adapters. Steps and loads of some workloads give a
profile; the twin then replays others, which the profile has not seen, and its numbers stand beside the measured ones.
Needs vLLM (PLACER_VLLM_PYTHON) and the extras ``measure`` and ``train``.

Options: `--short` (shorter workloads: some ten minutes), `--smoke` (two of a few seconds), `--check` (a workload that
misses a target is measured once more; the exit code is 1 if it misses it again, or if the twin does not take the
measured steps; 3, a failure too, if a target is missed on a machine that was too busy or too unsteady to blame the
twin), `--clock cpu` (another table), `--keep FOLDER` (what was measured there already is not measured again),
`--only NAME` (measure these, of a kept folder, and say nothing), `--seed 0`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.document_tables import print_or_update
from benchmarks.loop_cases import (
    CASES,
    ENGINE,
    MAIN_CLOCK,
    NUM_ADAPTERS,
    RANKS,
    SHORT_CASES,
    SMOKE_CASES,
    Case,
    Run,
    again,
)
from benchmarks.loop_prediction import Prediction, calibrate, pace_change, predictions
from benchmarks.loop_tables import loop_tables
from benchmarks.other_work import OtherWork
from benchmarks.vllm_server import VllmServer
from twin.engine import EngineConfig
from twin.measurement.demo import ADAPTER_FOLDER, MODEL_FOLDER, make_demo
from twin.measurement.endpoint import EndpointDriver
from twin.measurement.folder import MANIFEST, MeasurementFolder, create_folder, open_folder
from twin.measurement.in_process import InProcessDriver, engine_environment
from twin.measurement.interrupts import StopRequest
from twin.measurement.machine import client_versions, machine_facts
from twin.measurement.manifest import EndpointSettings, InProcessSettings, Manifest, WorkloadFacts
from twin.measurement.preparation import engine_arguments
from twin.measurement.session import Driver, Progress, run_segment
from twin.measurement.step_replay import replay_steps
from twin.vllm_python import VllmPython, find_vllm_python

# A missed target is not blamed on the twin where other work took a larger share of the machine, or where its pace
# changed by more between two measurements of the same requests: 1 % in the times moves the loads of some workloads by
# more than the target (table "sensitivity"). The exit code for that: a target is met or it is not, so it is no success.
MOST_OTHER_WORK = 0.05
MOST_PACE_CHANGE = 0.01
NOT_JUDGED = 3
# Workloads of the calibration that are measured again to see whether the machine still has the pace it had then.
PACE_CASES = 2


def measure(run: Run, folder: Path, *, only: Sequence[str] = ()) -> dict[str, MeasurementFolder]:
    """Return the measurement of each case (of those in `only`), those that are not in `folder` yet made now."""
    demo = folder / "demo"
    if not demo.exists():
        make_demo(demo, num_adapters=NUM_ADAPTERS, ranks=RANKS, rate_rps=1.0, seed=run.seed)
    measured = {}
    for case in run.cases:
        if only and case.name not in only:
            continue
        measured[case.name] = _measured(run, case, folder, case.name)
        if case.role == "sensitive":
            measured[again(case)] = _measured(run, case, folder, again(case))
    return measured


def _measured(run: Run, case: Case, folder: Path, name: str) -> MeasurementFolder:
    """Return the measurement of the case under that name in `folder`, made now unless it is there."""
    path = folder / name.replace(" ", "-")
    if (path / MANIFEST).exists() and open_folder(path).manifest.status == "complete":
        print(f"{name}: measured already", file=sys.stderr)
    else:
        print(f"{name}: {case.what}", file=sys.stderr)
        # Each case has traffic of its own, whatever else is measured.
        own_run = replace(run, seed=run.seed + list(run.cases).index(case))
        _measure_case(case, path, folder / "demo", find_vllm_python(), own_run)
    return open_folder(path)


def _measure_case(case: Case, path: Path, demo: Path, python: VllmPython, run: Run) -> None:
    workload = case.workload
    requests = workload.requests(horizon_s=case.horizon_s, seed=run.seed)
    engine = engine_arguments(EngineConfig(), (), workload, ENGINE | case.engine)
    facts = WorkloadFacts(
        adapters=workload.adapters, num_requests=len(requests), horizon_s=case.horizon_s, seed=run.seed
    )

    def record(settings: InProcessSettings | EndpointSettings, driver: Driver) -> None:
        manifest = Manifest(workload=facts, settings=settings, versions=client_versions(), machine=machine_facts())
        folder = create_folder(path, manifest, requests, workload)
        outcome = run_segment(folder, driver, StopRequest(), _ignore)
        if outcome.reason is not None:
            raise RuntimeError(f"{case.name} was not measured: {outcome.reason}; remove {path} and try again")

    if case.role == "http":
        adapters = {adapter.name: demo / ADAPTER_FOLDER / adapter.name for adapter in workload.adapters}
        log = path.with_suffix(".log")
        with VllmServer(python, demo / MODEL_FOLDER, adapters, engine, log=log) as server:
            # The server's process orders adapters by its own hash seed; that it has model runner V1 is a CPU's.
            declared = engine | {"use_v2_model_runner": False}
            there = EndpointSettings(
                url=server.url, engine=declared, vocab_size=500, metrics_url=f"{server.url}/metrics"
            )
            record(there, EndpointDriver(there))
        return
    here = InProcessSettings(
        model=str(demo / MODEL_FOLDER),
        adapter_directory=str(demo / ADAPTER_FOLDER),
        engine=engine,
        environment=engine_environment(run.seed),
        clock=run.clock,
    )
    record(here, InProcessDriver(here, python))


def _ignore(progress: Progress) -> None:
    del progress


def main() -> int:
    """Measure what is missing, print the tables or put them into a document, and say whether targets are missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", type=Path, help="document to put the tables into")
    parser.add_argument("--short", action="store_true", help="shorter workloads")
    parser.add_argument("--smoke", action="store_true", help="two workloads of a few seconds")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if a target is missed twice (3: on an unsteady machine)",
    )
    parser.add_argument("--keep", type=Path, help="folder for the measurements")
    parser.add_argument("--only", nargs="*", help="measure these workloads, and stop")
    parser.add_argument(
        "--clock", choices=(MAIN_CLOCK, "cpu"), default=MAIN_CLOCK, help="of what is measured in process"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, traffic and prompts")
    options = parser.parse_args()
    all_cases = SMOKE_CASES if options.smoke else SHORT_CASES if options.short else CASES
    # A server has the wall clock only: it is measured once.
    cases = [case for case in all_cases if case.role != "http" or options.clock == MAIN_CLOCK]
    run = Run(cases, options.clock, options.seed, is_short=options.short)
    other_work = OtherWork()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        measured = measure(run, folder, only=options.only or ())
        if options.only:
            return 0
        config = folder / "demo" / MODEL_FOLDER / "config.json"
        calibrated_on = [measured[case.name] for case in run.cases if case.role == "calibration"]
        calibration = calibrate(calibrated_on, config)
        made = predictions(run, measured, calibration, config)
        missed = [prediction.case for prediction in made if prediction.is_missed and prediction.again is None]
        if options.check and missed:
            measured |= {again(case): _measured(run, case, folder, again(case)) for case in missed}
            made = predictions(run, measured, calibration, config)
        print_or_update(loop_tables(run, measured, calibration, made), options.update)
        if not options.check:
            return 0
        wrong = [made_of.case.name for made_of in made if _takes_other_steps(made_of)]
        if wrong:
            print(f"not the measured steps: {', '.join(wrong)}", file=sys.stderr)
            return 1
        if not any(prediction.is_missed for prediction in made):
            return 0
        reason = _disturbance(run, measured, folder, other_work)
        if reason is None:
            return 1
        print(f"missed, and the machine may be why: {reason}; measure again when it is steady", file=sys.stderr)
        return NOT_JUDGED


def _takes_other_steps(prediction: Prediction) -> bool:
    """Return whether the twin, with the measured time of each step, batches or loads otherwise than the engine did."""
    return prediction.case.role != "http" and not replay_steps(prediction.folder, prediction.replica).is_same


def _disturbance(
    run: Run, measured: Mapping[str, MeasurementFolder], folder: Path, other_work: OtherWork
) -> str | None:
    """Return what of the machine may explain missed targets, or ``None``; some calibration is measured again for it."""
    share = other_work.share()
    if share is not None and share > MOST_OTHER_WORK:
        return f"other work took {share:.0%} of this machine while it was measured"
    calibrated_on = [case for case in run.cases if case.role == "calibration"][:PACE_CASES]
    repeated = dict(measured) | {again(case): _measured(run, case, folder, again(case)) for case in calibrated_on}
    changes = {
        case.name: pace_change(repeated[case.name], repeated[again(case)])
        for case in run.cases
        if again(case) in repeated
    }
    name = max(changes, key=lambda name: changes[name])
    if changes[name] <= MOST_PACE_CHANGE:
        return None
    return f"two measurements of the same requests ({name}) differ by {changes[name]:.1%} in the mean ITL"


if __name__ == "__main__":
    sys.exit(main())
