"""Time how long `placer solve` takes to reach the solver, and to compile the engine: `python -m benchmarks.start_up`.

Options: `[--runs 10] [--json]`. Wall time of fresh processes on the shipped example. `compile_s` and `first_run_s`
start from an empty cache of compiled code, in a temporary folder; `to_solver_*_s` end at the line `solving with ...`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "azure-llama-400.yaml"
SOLVE = (sys.executable, "-m", "placer", "solve", str(EXAMPLE))
COMPILE = (
    "import time; from benchmarks.twin_speed import case_inputs; from twin.kernel import run_kernel; "
    "inputs = case_inputs(8, 8, horizon_s=1.0, seed=0); start = time.perf_counter(); run_kernel(inputs); "
    "print(time.perf_counter() - start)"
)


def seconds_to_solver() -> float:
    """Return the seconds from the start of a process until it says that it is solving."""
    start = time.perf_counter()
    with subprocess.Popen(
        [*SOLVE, "--no-verify"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("solving with"):
                return time.perf_counter() - start
    raise RuntimeError("`placer solve` ended before it reached the solver: run it by hand to see why.")


def seconds_of_solve(cache: str) -> float:
    """Return the seconds of the whole command with compiled code kept in the folder `cache`."""
    start = time.perf_counter()
    subprocess.run(SOLVE, check=True, capture_output=True, env=os.environ | {"NUMBA_CACHE_DIR": cache})
    return time.perf_counter() - start


def seconds_to_compile(cache: str) -> float:
    """Return the seconds of the engine's first run in a process, with compiled code kept in the folder `cache`."""
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"NUMBA_CACHE_DIR": cache},
    )
    return float(run.stdout)


def main() -> None:
    """Measure, then print one line for each quantity or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="processes for `to_solver_s`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        compile_s = seconds_to_compile(cache)
    with tempfile.TemporaryDirectory() as cache:
        first_run_s, second_run_s = seconds_of_solve(cache), seconds_of_solve(cache)
    to_solver_s = [seconds_to_solver() for _ in range(options.runs)]
    result = {
        "compile_s": compile_s,
        "first_run_s": first_run_s,
        "second_run_s": second_run_s,
        "to_solver_median_s": statistics.median(to_solver_s),
        "to_solver_min_s": min(to_solver_s),
        "to_solver_max_s": max(to_solver_s),
    }
    if options.json:
        print(json.dumps(result, sort_keys=True))
        return
    for name, seconds in result.items():
        print(f"{name:<20} {seconds:6.2f}")


if __name__ == "__main__":
    main()
