"""`python -m benchmarks.measured_loop`: a real engine is measured, a profile fitted, and another workload predicted."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Three seconds of a tiny model beside other work are a few dozen requests: this is no test of the targets.
ROUGHLY_PERCENT = 50.0


@pytest.mark.usefixtures("python")
def test_the_loop_closes() -> None:
    """The twin takes every measured step when it has the measured times, and comes near with the fitted ones."""
    pytest.importorskip("scipy", reason="fitting a profile needs scipy")
    command = [sys.executable, "-m", "benchmarks.measured_loop", "--smoke"]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in run.stdout.splitlines()]
    compared = {row[1]: row[2:] for row in rows if len(row) == 6}
    assert set(compared) >= {"throughput, tokens/s", "ITL mean, ms", "loads into slots", "loads from disk", "steps"}
    for quantity in ("throughput, tokens/s", "ITL mean, ms"):
        measured, predicted, error, verdict = compared[quantity]
        assert float(measured) > 0
        assert abs(float(error.removesuffix(" %"))) < ROUGHLY_PERCENT
        assert verdict.startswith(("met", "MISSED"))
        assert float(predicted) == pytest.approx(float(measured), rel=ROUGHLY_PERCENT / 100)
    (replayed,) = [row for row in rows if len(row) == 6 and row[0] == "rate"]
    assert int(replayed[1]) > 50
    assert replayed[2] == "all"
    for counts in replayed[3:]:
        measured, twins = counts.split(", ")
        assert measured == twins
