"""Feed damaged files to every reader: only errors that placer raises on purpose may come out, soon, in little memory.

``python -m benchmarks.fuzz_readers [--inputs 24000] [--seed 0] [--only NAME:NUMBER] [--keep FOLDER] [--smoke]``

Each reader of `benchmarks.fuzz_targets` gets the same number of inputs. An input is a valid file that was damaged with
the random numbers of (seed, reader, number), so that every finding can be made again with ``--only``. Readers run in a
process of their own: a hang is ended from outside, and a crash is seen. A finding is

- an exception that is no `PlacerError`, or a `PlacerError` that names neither file nor field,
- an input that takes longer than `LIMIT_S`, or by which the process grows by more than `LIMIT_MIB`,
- an error whose message is longer than `LIMIT_CHARACTERS`, or
- the end of the process.

The exit status is 1 when there is any.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from benchmarks.fuzz_target import Target
from benchmarks.fuzz_targets import TARGETS
from twin.errors import PlacerError

LIMIT_S = 10.0
LIMIT_MIB = 512.0
LIMIT_CHARACTERS = 4000
# How long the process may be silent before it is ended: it says what took longer than `LIMIT_S` itself.
SILENCE_S = 60.0
SMOKE_INPUTS = 2


@dataclass(frozen=True)
class Outcome:
    """What came of one input: ``read``, ``refused``, or a finding and its description."""

    kind: str
    detail: str = ""
    seconds: float = 0.0
    grown_mib: float = 0.0


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    grown_mib: float = 0.0
    findings: list[tuple[int, Outcome]] = field(default_factory=list)

    def add(self, number: int, outcome: Outcome) -> None:
        """Count an outcome."""
        self.counts[outcome.kind] += 1
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        self.grown_mib = max(self.grown_mib, outcome.grown_mib)
        if outcome.kind not in {"read", "refused"}:
            self.findings.append((number, outcome))


def damaged(target: Target, random: Random, folder: Path) -> None:
    """Write a damaged file of a reader, and whatever else it needs, into an empty folder."""
    target.prepare(folder)
    path = folder / target.file
    path.write_bytes(target.mutate(path.read_bytes(), random))


def outcome_of(target: Target, folder: Path) -> Outcome:
    """Return what came of reading the files in a folder."""
    before_mib, start = _peak_mib(), time.perf_counter()
    try:
        target.read(folder)
    except PlacerError as error:
        kind, detail = _judged(error)
    except BaseException:  # noqa: BLE001 - whatever a reader lets through is a finding
        kind, detail = "traceback", traceback.format_exc(limit=-4)
    else:
        kind, detail = "read", ""
    seconds, grown_mib = time.perf_counter() - start, _peak_mib() - before_mib
    if kind in {"read", "refused"}:
        if seconds > LIMIT_S:
            kind, detail = "slow", f"{seconds:.1f} s"
        elif grown_mib > LIMIT_MIB:
            kind, detail = "memory", f"{grown_mib:.0f} MiB"
    return Outcome(kind, detail, seconds, grown_mib)


def _judged(error: PlacerError) -> tuple[str, str]:
    if error.file is None and error.field is None:
        return "nameless", f"{type(error).__name__}: {error.message[:500]}"
    if len(error.message) > LIMIT_CHARACTERS:
        return "long message", f"{len(error.message)} characters: {error.message[:300]}"
    return "refused", ""


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _work(position: int, numbers: range, seed: int, keep: Path | None, answers: Connection) -> None:
    """Read the inputs of one reader and send an outcome for each."""
    target = TARGETS[position]
    with tempfile.TemporaryDirectory(prefix="placer-fuzz-") as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        target.prepare(folder)
        # What a reader loads when it is first used is none of an input's time and memory.
        target.read(folder)
        for number in numbers:
            folder = Path(scratch) / str(number)
            folder.mkdir()
            damaged(target, Random(f"{seed} {target.name} {number}"), folder)
            if keep is not None:
                shutil.copytree(folder, keep / f"{target.name} {number}", dirs_exist_ok=True)
            answers.send(outcome_of(target, folder))
            shutil.rmtree(folder)


def fuzz(position: int, numbers: range, *, seed: int, keep: Path | None = None) -> Tally:
    """Return what came of some inputs of the reader at a position of `TARGETS`."""
    tally = Tally()
    context = multiprocessing.get_context("fork")
    while len(numbers):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(position, numbers, seed, keep, sending), daemon=True)
        process.start()
        sending.close()
        try:
            while len(numbers):
                if not receiving.poll(SILENCE_S):
                    process.kill()
                    tally.add(numbers[0], Outcome("hang", f"no answer in {SILENCE_S:g} s"))
                    numbers = numbers[1:]
                    break
                tally.add(numbers[0], receiving.recv())
                numbers = numbers[1:]
        except EOFError:
            process.join()
            tally.add(numbers[0], Outcome("crash", f"the process ended with {process.exitcode}"))
            numbers = numbers[1:]
        process.join()
    return tally


def main() -> int:
    """Fuzz, and print a table of the readers and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=24_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="NAME, or NAME:NUMBER for one input")
    parser.add_argument("--keep", type=Path, help="folder for the inputs")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE_INPUTS} inputs for each reader")
    arguments = parser.parse_args()
    name, _, number = (arguments.only or "").partition(":")
    chosen = [position for position, target in enumerate(TARGETS) if name in {"", target.name}]
    if not chosen:
        parser.error(f"no reader is called {name!r}: {'; '.join(target.name for target in TARGETS)}")
    each = SMOKE_INPUTS if arguments.smoke else -(-arguments.inputs // len(chosen))
    numbers = range(int(number), int(number) + 1) if number else range(each)
    tallies: dict[str, Tally] = {}
    started = time.perf_counter()
    print("| reader | inputs | read | refused | findings | slowest (s) | growth (MiB) |\n|---|---|---|---|---|---|---|")
    for position in chosen:
        tally = tallies[TARGETS[position].name] = fuzz(position, numbers, seed=arguments.seed, keep=arguments.keep)
        counts = tally.counts
        print(
            f"| {TARGETS[position].name} | {counts.total()} | {counts['read']} | {counts['refused']} | "
            f"{len(tally.findings)} | {tally.slowest_s:.2f} | {tally.grown_mib:.0f} |",
            flush=True,
        )
    total = sum(tally.counts.total() for tally in tallies.values())
    findings = [(name, *finding) for name, tally in tallies.items() for finding in tally.findings]
    print(f"\n{total:,} inputs, {len(findings)} findings, {time.perf_counter() - started:.0f} s")
    shown: Counter[tuple[str, str]] = Counter()
    for name, at, outcome in findings:
        signature = (name, outcome.detail.strip().splitlines()[-1][:100])
        shown[signature] += 1
        if shown[signature] == 1:
            print(f"\n--only '{name}:{at}': {outcome.kind}\n{outcome.detail}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
