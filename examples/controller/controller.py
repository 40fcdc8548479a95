"""Keep a placement near its traffic: observe, re-plan, apply in a safe order, and write every decision down.

Usage: ``python examples/controller/controller.py controller.yaml [--dry-run] [--rounds 10]``. Needs the extra
``measure``. The settings are explained at `Settings`; docs/controller.md tells the whole story.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

import placer
from placer.export.exporting import export_plan
from placer.export.fleet_table import ReplicaRow, fleet_table
from placer.export.nginx import MAPS
from placer.export.options import ExportOptions
from placer.files import load_plan, save_plan, write_atomically
from placer.observing.base_problem import read_problem
from placer.observing.builder import BuildSettings, Built, build_observed
from placer.observing.http_source import HttpAccess, get_page
from placer.observing.samples import TrafficSamples
from placer.observing.sources import SourceSettings, observe_sources
from placer.plan_document import Plan
from placer.replan_document import MigrationStep, Replan
from placer.workload_builder import dump_problem
from twin.calibration.metrics_files import read_page
from twin.errors import InputError, PlacerError

# Steps that need a machine, which an operator or a cluster has to give.
NEEDS_OPERATOR = frozenset({"start", "restart", "stop"})
LOAD_TIMEOUT_S = 300.0
LOOK_EVERY_S = 0.5


class Settings(BaseModel):
    """What the controller looks at, and how much it may do.

    Attributes
    ----------
    problem, plan
        Files: what cannot be observed, and what is in place; the plan is written again after every change of routes.
    observed, decisions
        Files to write: the problem of now, and a JSON line for each decision.
    sources, window_s
        As `placer observe` takes them; seconds of traffic that count.
    base_models, rank
        Names in the sources that are no adapters; the rank of adapters that the problem does not know yet.
    maps, reload
        File that nginx includes, and the command that makes nginx read it.
    export
        Options of `placer export`: hosts and ports of the replicas, paths of the adapters, the header.
    max_moves, max_loads
        Of a round.
    cool_down_s
        After a change, before the next one.
    drain_s, drain_limit_s
        Least and most seconds between a change of routes and an unload.
    every_s
        Between rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: Path
    plan: Path
    observed: Path
    decisions: Path
    sources: tuple[str, ...] = Field(min_length=1)
    window_s: float = Field(default=300.0, gt=0)
    base_models: tuple[str, ...] = ()
    rank: int | None = None
    maps: Path
    reload: tuple[str, ...] = ("nginx", "-s", "reload")
    export: ExportOptions = ExportOptions()
    max_moves: int = Field(default=4, ge=0)
    max_loads: int = Field(default=8, ge=0)
    cool_down_s: float = Field(default=600.0, ge=0)
    drain_s: float = Field(default=2.0, ge=0)
    drain_limit_s: float = Field(default=600.0, ge=0)
    every_s: float = Field(default=60.0, gt=0)


@dataclass
class Controller:
    """One controller of one fleet.

    Attributes
    ----------
    settings
        See there.
    is_dry
        Decide, and change nothing.
    clock, wait
        Unix seconds now, and a pause.
    changed_s
        When routes were changed last; by default as the log of decisions has it, also of a controller before this one.
    """

    settings: Settings
    is_dry: bool = False
    clock: Callable[[], float] = time.time
    wait: Callable[[float], None] = time.sleep
    changed_s: float | None = None
    _done: list[dict[str, Any]] = field(default_factory=list)

    def round(self) -> dict[str, Any]:
        """Observe, decide, apply if that is what was decided, and return the decision that was written down."""
        self._done = []
        try:
            decision = self._decide()
        except (PlacerError, OSError) as error:
            # Nothing is known, or nothing could be changed: the fleet stays as it is, and the next round tries again.
            decision = {"decision": "failed", "reason": str(error), "steps": self._done}
        record = {"time": dt.datetime.fromtimestamp(self.clock(), dt.UTC).isoformat(timespec="milliseconds")} | decision
        with self.settings.decisions.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")
        return record

    def _decide(self) -> dict[str, Any]:
        if self.changed_s is None:
            self.changed_s = last_change(self.settings.decisions)
        left_s = self.changed_s + self.settings.cool_down_s - self.clock()
        if left_s > 0:
            return {"decision": "wait", "reason": f"cool-down: {left_s:.0f} s are left after the last change"}
        built = self._observe()
        known = {
            "rate_rps": round(built.evidence.rate_rps, 4),
            "rates_rps": {adapter.name: round(adapter.rate_rps, 4) for adapter in built.evidence.adapters},
            "warnings": list(built.evidence.warnings),
        }
        current = load_plan(self.settings.plan)
        made = self._replan(current)
        known |= {"verdict": made.verdict, "rejected_before": list(made.before.rejected_gpus)}
        steps = made.migration.steps
        known["moves"] = [
            f"{name}: {shift.source or 'nowhere'} to {shift.target}"
            for step in steps
            for shift in step.shifts
            for name in shift.adapters
        ]
        if not steps:
            return known | {
                "decision": "keep",
                "reason": made.message or "the plan in place does for the traffic of now",
            }
        needed = sorted({step.kind for step in steps} & NEEDS_OPERATOR)
        if needed:
            return known | {"decision": "ask", "reason": f"an operator has to {' and '.join(needed)} replicas"}
        if not made.migration.is_safe:
            return known | {"decision": "refuse", "reason": made.message or "some step would starve somebody"}
        if self.is_dry:
            planned = [f"{step.kind} {', '.join(step.adapters)} ({step.replica})" for step in steps]
            return known | {"decision": "would apply", "reason": "dry run", "steps": planned}
        self._apply(current, made)
        reason = "the twin accepts the plan" if made.verdict == "accepted" else f"better, not enough: {made.message}"
        return known | {"decision": "applied", "reason": reason, "steps": self._done}

    def _observe(self) -> Built:
        """Return the problem of now, and write it."""
        settings = self.settings
        base = read_problem(settings.problem, folder=settings.observed.parent)
        wanted = SourceSettings(window_s=settings.window_s, end_s=self.clock(), base_models=settings.base_models)
        seen = observe_sources(settings.sources, wanted, known_adapters=[adapter.name for adapter in base.adapters])
        built = build_observed(
            seen, base, BuildSettings(rank=settings.rank), output=settings.observed, command="examples/controller"
        )
        write_atomically(settings.observed, dump_problem(built.problem))
        return built

    def _replan(self, current: Plan) -> Replan:
        """Return what to change: what runs stays where it can, and no replica starts anew."""
        if any(gpu.shares for gpu in current.gpus):
            raise InputError("plans must divide no adapter: vLLM has no names for shares.", field="shares")
        return placer.replan(
            current,
            placer.load_problem(self.settings.observed),
            strategy="repair",
            max_moves=self.settings.max_moves,
            max_loads=self.settings.max_loads,
            max_restarts=0,
            spare_gpus=0,
        )

    def _apply(self, current: Plan, made: Replan) -> None:
        """Take the steps in their order: adapters are loaded before they get requests, and unloaded after the last."""
        rows = {row.name: row for row in fleet_table(current, self.settings.export).rows}
        placed = {gpu.name: list(gpu.adapters) for gpu in current.gpus}
        shifted_s = self.clock()
        for step in made.migration.steps:
            if step.kind == "load":
                self._load(rows[step.replica], step)
            elif step.kind == "shift":
                for shift in step.shifts:
                    if shift.source is not None:
                        placed[shift.source] = [name for name in placed[shift.source] if name not in shift.adapters]
                    placed[shift.target] += shift.adapters
                self._route(current, placed)
                self.changed_s = shifted_s = self.clock()
                self._note(step)
            else:
                self._drain(rows[step.replica], step, since_s=shifted_s)
                for name in step.adapters:
                    # An adapter that stays loaded takes memory, and nobody's requests.
                    self._post(rows[step.replica], "unload_lora_adapter", {"lora_name": name})
                self._note(step)
        by_name = {gpu.name: gpu for gpu in made.plan.gpus}
        self._save(made.plan, [by_name[gpu.name] for gpu in current.gpus])

    def _load(self, row: ReplicaRow, step: MigrationStep) -> None:
        """Load adapters; if one cannot be, those before it go again, and nothing has changed for anybody."""
        loaded: list[str] = []
        sources = self.settings.export
        try:
            for name in step.adapters:
                path = sources.source_of(name)
                self._post(row, "load_lora_adapter", {"lora_name": name, "lora_path": path, "load_inplace": True})
                loaded.append(name)
        except OSError:
            for name in loaded:
                # Why it could not be loaded is what matters; what stays loaded is loaded anew in place next time.
                with contextlib.suppress(OSError):
                    self._post(row, "unload_lora_adapter", {"lora_name": name})
            raise
        self._note(step)

    def _route(self, current: Plan, placed: dict[str, list[str]]) -> None:
        """Make the router send requests to where adapters are placed; the old map comes back if it refuses."""
        gpus = [gpu.model_copy(update={"adapters": tuple(placed[gpu.name])}) for gpu in current.gpus]
        routed = current.model_copy(update={"gpus": tuple(gpus)})
        before = self.settings.maps.read_text(encoding="utf-8")
        write_atomically(self.settings.maps, maps_of(routed, self.settings.export))
        try:
            subprocess.run(self.settings.reload, check=True, capture_output=True, text=True)  # noqa: S603 - by settings
        except (OSError, subprocess.CalledProcessError) as error:
            write_atomically(self.settings.maps, before)
            said = getattr(error, "stderr", None) or error
            raise OSError(f"the router did not take the new routes: {said}") from error
        save_plan(routed, self.settings.plan)

    def _save(self, plan: Plan, gpus: Iterable[Any]) -> None:
        """Write the plan in place, with its replicas in their order: ports follow from it."""
        save_plan(plan.model_copy(update={"gpus": tuple(gpus)}), self.settings.plan)

    def _drain(self, row: ReplicaRow, step: MigrationStep, *, since_s: float) -> None:
        """Wait until a replica has no request of adapters that are routed elsewhere."""
        self.wait(max(0.0, since_s + self.settings.drain_s - self.clock()))
        while self.clock() < since_s + self.settings.drain_limit_s:
            if not adapters_with_requests(row.url, now_s=self.clock()) & set(step.adapters):
                return
            self.wait(LOOK_EVERY_S)
        raise OSError(f"{row.name} still has requests of {', '.join(step.adapters)}: they stay loaded")

    def _post(self, row: ReplicaRow, action: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(  # noqa: S310 - the fleet's own addresses
            f"{row.url}/v1/{action}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=LOAD_TIMEOUT_S):  # noqa: S310 - the fleet's own addresses
                return
        except urllib.error.HTTPError as error:
            raise OSError(f"{row.name} answers {error.code} to {action}: {error.read()[:300].decode()}") from error

    def _note(self, step: MigrationStep) -> None:
        self._done.append({"step": step.kind, "replica": step.replica, "adapters": list(step.adapters)})


def last_change(decisions: Path) -> float:
    """Return when routes were changed last, by a log of decisions, as unix seconds; minus infinity: never."""
    changed_s = float("-inf")
    if not decisions.exists():
        return changed_s
    for line in decisions.read_text(encoding="utf-8").splitlines():
        # The last line of a controller that was killed may be cut off.
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            # Those of a dry run are sentences.
            if any(isinstance(step, dict) and step["step"] == "shift" for step in record.get("steps", ())):
                changed_s = dt.datetime.fromisoformat(record["time"]).timestamp()
    return changed_s


def maps_of(plan: Plan, options: ExportOptions) -> str:
    """Return the file with nginx's upstreams and its map from adapters to them."""
    return export_plan(plan, formats=["nginx"], options=options)["nginx"][MAPS]


def adapters_with_requests(url: str, *, now_s: float) -> frozenset[str]:
    """Return the adapters that have a request in a vLLM server, running or waiting."""
    samples = TrafficSamples()
    page = get_page(f"{url}/metrics", HttpAccess()).content.decode("utf-8", "replace")
    read_page(page.splitlines(), samples, url, time_s=now_s, file=url, is_read=samples.is_read)
    server = samples.servers[url]
    is_idle = sum(server.in_system.values()) <= 0
    # The list of a server that is idle is that of its last requests.
    return frozenset() if is_idle else frozenset().union(*(state.adapters for state in server.presence.values()))


def main() -> None:
    """Run rounds until they are done, or for ever."""
    parser = argparse.ArgumentParser(description="Keep a placement of LoRA adapters near its traffic.")
    parser.add_argument("settings", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="decide, and change nothing")
    parser.add_argument("--rounds", type=int, default=None, help="default: for ever")
    arguments = parser.parse_args()
    settings = Settings.model_validate(yaml.safe_load(arguments.settings.read_text(encoding="utf-8")))
    controller = Controller(settings, is_dry=arguments.dry_run)
    number = 0
    while arguments.rounds is None or number < arguments.rounds:
        if number:
            time.sleep(settings.every_s)
        sys.stdout.write(json.dumps(controller.round(), sort_keys=True) + "\n")
        sys.stdout.flush()
        number += 1


if __name__ == "__main__":
    main()
