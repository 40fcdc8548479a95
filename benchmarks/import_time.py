"""Time `import placer` in fresh interpreters: `python -m benchmarks.import_time [--runs N] [--json]`."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

_TIMED_IMPORT = (
    "import time; start = time.perf_counter(); import {module}; print(1000.0 * (time.perf_counter() - start))"
)


def measure_once_ms(module: str) -> float:
    """Import `module` in a fresh interpreter.

    Parameters
    ----------
    module : str
        The module's dotted name.

    Returns
    -------
    float
        Wall time of the import statement in milliseconds, without the start of the interpreter.

    Raises
    ------
    subprocess.CalledProcessError
        If the module cannot be imported.
    """
    script = _TIMED_IMPORT.format(module=module)
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return float(run.stdout)


def summarise(samples_ms: Sequence[float]) -> dict[str, float | int]:
    """Summarise import times.

    Parameters
    ----------
    samples_ms : sequence of float
        One time per run, in milliseconds; at least one.

    Returns
    -------
    dict
        `runs`, and `median_ms`, `min_ms` and `max_ms` rounded to a microsecond.
    """
    return {
        "max_ms": round(max(samples_ms), 3),
        "median_ms": round(statistics.median(samples_ms), 3),
        "min_ms": round(min(samples_ms), 3),
        "runs": len(samples_ms),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one line for people or one JSON object.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line without the program's name. Default: the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_time", description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="fresh interpreters to start (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error(f"--runs must be at least 1. Got {options.runs}.")
    # The first interpreter may compile bytecode, which an installed package has done already.
    measure_once_ms("placer")
    summary = summarise([measure_once_ms("placer") for _ in range(options.runs)])
    if options.json:
        print(json.dumps({"module": "placer", **summary}, sort_keys=True))
    else:
        print("import placer: median {median_ms} ms ({min_ms} to {max_ms} ms, {runs} runs)".format(**summary))


if __name__ == "__main__":
    main()
