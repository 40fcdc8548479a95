"""Plans near the running fleet: repair what the twin rejects, and take moves back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from placer.replan_document import ReplanLimits
from placer.replanning.drafts import Draft, by_load, rank_of
from placer.replanning.room import RoomFinder
from placer.replanning.running import RunningFleet
from placer.replanning.stations import Berth, FleetTwin, Station
from placer.surrogates import inflated
from placer.verify import TwinVerifier
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from twin.engine import EngineConfig

# When GPUs are emptied, the surrogate is asked as if rates were this share of themselves: the twin decides.
OPTIMISM = 0.93


class Repairing:
    """Makes plans from the running fleet, within limits.

    Parameters
    ----------
    running, twin, model
        What is in place, who decides, and the surrogate.
    limits, moves_per_gpu
        Kept by every plan that is made here; what a GPU is worth (`rank_of`).

    Attributes
    ----------
    room, hopeful
        What finds room, and a surrogate that sees more of it.
    """

    def __init__(
        self,
        running: RunningFleet,
        twin: FleetTwin,
        model: FeasibilityModel,
        *,
        limits: ReplanLimits,
        moves_per_gpu: float,
    ) -> None:
        self.running = running
        self.twin = twin
        self.limits = limits
        self.moves_per_gpu = moves_per_gpu
        self.problem = twin.problem
        self.room = RoomFinder(model, twin)
        self.hopeful = FeasibilityModel(twin.problem, inflated(model.surrogate, OPTIMISM))
        self._verifier = TwinVerifier(twin.problem, twin.settings)

    def standing(self, draft: Draft) -> tuple[float, ...]:
        """Return how good a plan is, smaller is better (`rank_of`)."""
        return rank_of(draft, self.running, self.twin, moves_per_gpu=self.moves_per_gpu)

    def repaired(self) -> Draft:
        """Return the running fleet with the fewest moves that make the twin accept it.

        Who is not served gets a place first. Then the adapters of largest load leave rejected replicas, as few as
        help; where limits allow fewer, the replicas that need the fewest are helped. The rest stays as it is.
        """
        berths = with_settings_of(self.problem, self.running, self.limits)
        unserved = by_load(self.problem, self.running.unserved(self.problem))
        allowed = len(unserved) if self.limits.max_loads is None else self.limits.max_loads
        rejected = [index for index, berth in enumerate(berths) if not self.twin.accepts(berth.station)]
        fleet, left = self._housed(berths, unserved[:allowed], closed=rejected)
        loads = len(unserved[:allowed]) - len(left)
        left += unserved[allowed:]
        leaving = {index: self._leaving(fleet[index]) for index in rejected}
        chosen: list[int] = []
        for index in sorted(rejected, key=lambda index: (len(leaving[index]), index)):
            if self._may_move(len(chosen) + len(leaving[index]), loads):
                chosen += leaving[index]
                stays = set(fleet[index].adapters) - set(leaving[index])
                fleet[index] = fleet[index].with_adapters(stays)
        still = [index for index, berth in enumerate(fleet) if not self.twin.accepts(berth.station)]
        fleet, homeless = self._housed(fleet, chosen, closed=still)
        fleet = self._sent_home(fleet, homeless)
        return Draft(tuple(berth for berth in fleet if berth.adapters), tuple(sorted(left)))

    def brought_home(self, draft: Draft) -> Draft:
        """Return a plan in which adapters are back on the replicas that serve them, where the twin accepts that."""
        home = self.running.home
        for position in range(len(draft.berths)):
            if position >= len(draft.berths):
                break
            berth = draft.berths[position]
            own = set(berth.adapters)
            away = [index for index, name in home.items() if name == berth.home and index not in own]
            away = by_load(self.problem, set(away) - set(draft.unserved))[::-1]
            draft = self._with_back(draft, position, away)
        return draft

    def _with_back(self, draft: Draft, position: int, away: Sequence[int]) -> Draft:
        """Return the plan with as many of `away`, from the first on, back at a replica as helps."""
        berth = draft.berths[position]
        count = self.twin.longest_prefix(berth.station, away)
        while count:
            back = set(away[:count])
            changes: dict[int, Berth | None] = {
                index: other.with_adapters(set(other.adapters) - back) for index, other in enumerate(draft.berths)
            }
            changes[position] = berth.with_adapters([*berth.adapters, *back])
            after = Draft(draft.replaced(changes), draft.unserved)
            if self.standing(after) < self.standing(draft):
                return after
            count //= 2
        return draft

    def _housed(
        self, berths: Sequence[Berth], adapters: Sequence[int], *, closed: Sequence[int]
    ) -> tuple[list[Berth], list[int]]:
        """Give adapters places on replicas, then on new ones; return the fleet, and who found none."""
        fleet, left = self.room.place(berths, adapters, closed=closed)
        if left:
            fleet, left = self.room.place(fleet, left, closed=closed, model=self.hopeful)
        return self.room.open(fleet, left, self._verifier) if left else (fleet, left)

    def _leaving(self, berth: Berth) -> list[int]:
        """Return who breaks the constraints, and the adapters of largest load without whom the twin accepts a replica.

        Of the latter as few as help; all but the smallest, where nothing helps: another replica may serve them.
        """
        order: list[int] = []
        breaking: list[int] = []
        for adapter in by_load(self.problem, berth.adapters):
            is_allowed = self.twin.allows(berth.station.with_adapters([*order, adapter]))
            (order if is_allowed else breaking).append(adapter)
        if self.twin.accepts(berth.station.with_adapters(order)):
            return breaking
        stays = self.twin.longest_prefix(berth.station.with_adapters(()), order[::-1])
        return [*breaking, *order[: len(order) - stays]]

    def _sent_home(self, fleet: list[Berth], homeless: Sequence[int]) -> list[Berth]:
        """Return the fleet with adapters that found no place back where they are served now, badly."""
        home = self.running.home
        of_home: dict[str, list[int]] = {}
        for adapter in homeless:
            of_home.setdefault(home[adapter], []).append(adapter)
        return [
            berth.with_adapters([*berth.adapters, *of_home.get(berth.home or "", ())]) if berth.home else berth
            for berth in fleet
        ]

    def _may_move(self, num_moves: int, num_loads: int) -> bool:
        moves, loads = self.limits.max_moves, self.limits.max_loads
        return (moves is None or num_moves <= moves) and (loads is None or num_loads + num_moves <= loads)


def with_settings_of(problem: Problem, running: RunningFleet, limits: ReplanLimits) -> list[Berth]:
    """Return the running replicas that have adapters, with the problem's engine settings where they have others.

    They keep their slots. No more of them are changed, which restarts them, than limits allow.
    """
    berths, left = [], limits.max_restarts
    for name, station in running.stations.items():
        if not station.adapters:
            continue
        wanted = wanted_engine(problem, station)
        if wanted != station.engine and left != 0:
            station, left = replace(station, engine=wanted), None if left is None else left - 1  # noqa: PLW2901
        berths.append(Berth(name, station))
    return berths


def wanted_engine(problem: Problem, station: Station) -> EngineConfig:
    """Return the settings that a problem asks for of a replica that keeps its slots, where they are not fixed.

    It also keeps its `max_num_seqs`, where that is one of those that may be chosen.
    """
    engine = station.engine
    if engine.max_num_seqs in problem.max_num_seqs_options:
        problem = problem.with_max_num_seqs(engine.max_num_seqs)
    slots, rank = problem.fixed_max_loras or engine.max_loras, problem.fixed_max_lora_rank or engine.max_lora_rank
    given = problem.engine.with_slots(slots, max_lora_rank=rank, num_adapters=engine.cpu_capacity)
    return given.model_copy(update={"max_cpu_loras": engine.max_cpu_loras}) if slots == engine.max_loras else given
