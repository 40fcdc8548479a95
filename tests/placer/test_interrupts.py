"""Ctrl-C on a terminal, which reaches every process of the program: one line, exit code 130, nothing left behind."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from placer.files import load_problem, save_plan
from placer.planning import plan
from tests.placer.programs import started
from tests.placer.small_fleets import fair_surrogate, small_data, write_problem
from tests.twin.run_tables import RUN, write_runs
from tests.twin.test_step_table import drawn_rows, write

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = "interrupted before there was anything to report.\n"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return inputs of commands that work for minutes with worker processes."""
    folder = tmp_path_factory.mktemp("inputs")
    problem = load_problem(write_problem(folder, small_data(num_adapters=4, total_rps=11.0)))
    save_plan(plan(problem, surrogate=fair_surrogate(), verify=False), folder / "plan.json")
    runs = [RUN | {"run_id": f"R{number}", "total_time": 40_000} for number in range(8)]
    return {
        "folder": folder,
        "runs": write_runs(folder / "runs.csv", runs),
        "steps": write(folder / "steps.csv", drawn_rows(40, seed=1)),
        "plan": folder / "plan.json",
    }


def _states(group: int) -> list[str]:
    """Return the states of the processes of a group; one that has ended and was not yet looked after is "Z"."""
    fields = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name before them may hold spaces: state, parent, group.
            fields.append(path.read_text(encoding="utf-8").rpartition(")")[2].split())
    return [state for state, _, its_group, *_ in fields if int(its_group) == group]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("seconds", [0.0, 1.0])
@pytest.mark.parametrize(
    "command",
    [
        "validate --runs {runs} --workers 2 --seeds 9",
        "calibrate {steps} --model llama-3.1-8b --runs {runs} --workers 2 --output new.json",
        "verify {plan} --engine simpy --workers 2 --horizon 300000",
    ],
)
def test_ctrl_c_during_parallel_work_is_one_line(places: dict[str, Path], command: str, seconds: float) -> None:
    """No process prints a traceback, whether it loads libraries or works, and all of them end."""
    with started(command.format(**places).split(), places["folder"]) as process:
        while len(_states(process.pid)) < 4:
            assert process.poll() is None
        threading.Timer(seconds, os.killpg, [process.pid, signal.SIGINT]).start()
        output, errors = process.communicate(timeout=120)
        progress, _, message = errors.rpartition("error: ")
        assert "Traceback" not in errors
        assert "Warning" not in errors
        assert (process.returncode, output, message) == (130, "", MESSAGE)
        assert len(progress.splitlines()) <= 3
        # What helped the workers ends by itself when the program is gone; a test that hangs here has found a leak.
        while set(_states(process.pid)) - {"Z"}:
            time.sleep(0.05)
    assert not (places["folder"] / "new.json").exists()
