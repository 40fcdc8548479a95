"""How far a slow engine is with the GPUs of a batch, told by several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from placer.events import PlanObserver, TimeSimulated
from twin.simulate import Progress


class SimulatedTime:
    """The simulated time of several replicas together.

    Parameters
    ----------
    horizons_s
        Seconds to simulate, of each replica.
    observer
        Told the sum, by one thread at a time.
    """

    def __init__(self, horizons_s: Sequence[float], observer: PlanObserver) -> None:
        self._total_s = sum(horizons_s)
        self._simulated_s = [0.0] * len(horizons_s)
        self._observer = observer
        self._lock = threading.Lock()

    def of(self, index: int) -> Progress:
        """Return what is to be called with the simulated time of one replica, in s."""

        def tell(simulated_s: float) -> None:
            with self._lock:
                self._simulated_s[index] = simulated_s
                self._observer(TimeSimulated(sum(self._simulated_s), self._total_s))

        return tell
