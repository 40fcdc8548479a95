"""Give GPUs up: one is emptied into the others by room, by chains, and by other slots, while it is worth its moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from placer.replanning.chains import ChainFinder
from placer.replanning.drafts import Draft, changes_of, is_within
from placer.replanning.repairing import Repairing
from placer.replanning.stations import Berth, Station

# GPUs that are tried to be emptied in a row without success.
FAILURES = 5
# Replicas that the twin is asked about with other slots, for each GPU that is emptied.
MOST_RESIZED = 4


class Emptying:
    """Empties GPUs of plans.

    Parameters
    ----------
    repairing
        Whose fleet, twin, limits and worth of a GPU these are, and whose hopeful surrogate proposes.
    undo
        Takes back moves of a plan that are not needed.
    """

    def __init__(self, repairing: Repairing, *, undo: Callable[[Draft], Draft]) -> None:
        self.running = repairing.running
        self.twin = repairing.twin
        self.problem = repairing.problem
        self.model = repairing.hopeful
        self.room = repairing.room
        self.limits = repairing.limits
        self._standing = repairing.standing
        self._undo = undo
        self._chains = ChainFinder(repairing.room, repairing.hopeful)

    def reduced(self, draft: Draft, *, least: int) -> Draft:
        """Return the best of a plan and those with more and more of its GPUs emptied into the others.

        Replicas get other slots only where no GPU can be emptied without. Moves that turn out not to be needed are
        undone before a plan is judged.

        Parameters
        ----------
        draft
            Where to start.
        least
            GPUs that any plan needs: nothing is tried at so many.
        """
        best, failures, resizes = draft, 0, False
        while len(draft.berths) > max(1, least):
            order = self._in_order(draft)[:FAILURES]
            if failures >= len(order):
                if resizes:
                    break
                failures, resizes = 0, True
                continue
            after = self._without(draft, order[failures], resizes=resizes)
            if after is None:
                failures += 1
            else:
                draft, failures, resizes = after, 0, False
                best = min(best, draft, key=self._standing)
        return best

    def _without(self, draft: Draft, emptied: Berth, *, resizes: bool) -> Draft | None:
        """Return the plan with a replica emptied into the others; ``None``: not possible within the limits."""
        others = [berth for berth in draft.berths if berth is not emptied]
        closed = [index for index, berth in enumerate(others) if not self.twin.accepts(berth.station)]
        fleet, left = self.room.place(others, emptied.adapters, closed=closed, model=self.model)
        found: list[Berth] | None = fleet
        if left and resizes:
            found = self._resized(fleet, left, closed) or self._resized(others, emptied.adapters, closed)
        elif left:
            found = self.room.fit(others, emptied.adapters, closed=closed)
            found = found or self._chains.place(fleet, left, closed=closed)
        if found is None:
            return None
        after = self._undo(Draft(tuple(found), draft.unserved))
        return after if is_within(changes_of(after, self.running), self.limits) else None

    def _resized(self, fleet: Sequence[Berth], adapters: Sequence[int], closed: Sequence[int]) -> list[Berth] | None:
        """Put all of some adapters on one replica, with the slots that the surrogate finds best for it then."""
        opened = [index for index in range(len(fleet)) if index not in closed]
        if not opened:
            return None
        members = [tuple(sorted((*fleet[index].adapters, *adapters))) for index in opened]
        choices = self.model.best_choice(
            np.array([self.problem.aggregates[list(own)].sum(axis=0) for own in members]),
            np.array([self.problem.ranks[list(own)].max() for own in members], dtype=np.int64),
            np.array([fleet[index].station.gpu_type for index in opened], dtype=np.int64),
            members if self.model.uses_members else None,
        )
        likely = [int(row) for row in np.argsort(choices.pressure, kind="stable") if choices.feasible[row]]
        for row in likely[:MOST_RESIZED]:
            berth = fleet[opened[row]]
            slots = int(choices.max_loras[row]), int(choices.max_lora_rank[row])
            wanted = replace(berth, station=self._with_slots(berth.station, members[row], *slots))
            if self.twin.accepts(wanted.station):
                return [wanted if other is berth else other for other in fleet]
        return None

    def _with_slots(self, station: Station, adapters: tuple[int, ...], max_loras: int, max_lora_rank: int) -> Station:
        """Return a replica with other adapters and slots, and the `max_num_seqs` that it runs with."""
        problem, now = self.problem, station.engine.max_num_seqs
        if now in problem.max_num_seqs_options:
            problem = problem.with_max_num_seqs(now)
        engine = problem.replica(station.gpu_type, max_loras, max_lora_rank, len(adapters)).engine
        return Station(station.gpu_type, engine, adapters)

    def _in_order(self, draft: Draft) -> list[Berth]:
        """Return the replicas, that whose emptying moves the fewest first; of these, that of least load."""
        home = self.running.home

        def cost(berth: Berth) -> tuple[float, float, tuple[int, ...]]:
            stays = sum(1 for adapter in berth.adapters if home.get(adapter) == berth.home)
            return stays, self.room.load_of(berth.adapters), berth.adapters

        by_moves = sorted(draft.berths, key=cost)
        by_load_only = sorted(draft.berths, key=lambda berth: cost(berth)[1:])
        # Of a few with many small adapters, and a few of little load: either may be what fits.
        mixed = [berth for pair in zip(by_load_only, by_moves, strict=True) for berth in pair]
        return list(dict.fromkeys(mixed))
