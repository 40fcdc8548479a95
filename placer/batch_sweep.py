"""Look for the smallest batch and the smallest KV cache with which a saturated replica gives what it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from placer.advice_document import BatchPoint, KvBudget, KvReason
from twin.memory import GIB, least_utilization
from twin.replica import Replica
from twin.report import SimulationReport
from twin.saturation import SaturatedRun, longest_request_tokens, simulate_all

# `max_num_seqs` to try first: powers of two, and one and a half times these.
GRID = tuple(sorted({1, *(2**power for power in range(1, 12)), *(3 * 2**power for power in range(10))}))
LARGEST_BATCH = GRID[-1]
# The KV budget is known to this share of the whole KV cache.
KV_RESOLUTION = 1.0 / 256.0


@dataclass(frozen=True)
class Aim:
    """What a batch size must give: see `placer.advice_document.Advice`."""

    tolerance: float
    itl_p95_limit_s: float | None

    def keeps_limit(self, itl_p95_s: float | None) -> bool:
        """Return whether a p95 of the times between tokens is within the limit."""
        return self.itl_p95_limit_s is None or itl_p95_s is None or itl_p95_s <= self.itl_p95_limit_s


def with_engine(run: SaturatedRun, **changes: float) -> SaturatedRun:
    """Return a run with other settings of vLLM."""
    engine = run.replica.engine.model_copy(update=changes)
    return replace(run, replica=replace(run.replica, engine=engine))


def batch_sizes(replica: Replica) -> list[int]:
    """Return the `max_num_seqs` of `GRID` with which a replica starts, and the one that it has."""
    engine = replica.engine
    sizes = {size for size in GRID if size <= engine.max_num_batched_tokens} | {engine.max_num_seqs}

    def starts(size: int) -> bool:
        changed = engine.model_copy(update={"max_num_seqs": size})
        return replace(replica, engine=changed).memory().starts

    return [size for size in sorted(sizes) if starts(size)]


class BatchSweep:
    """A saturated replica with ever other batch sizes; each is simulated once.

    Parameters
    ----------
    run
        The replica and the traffic, which is the same for all sizes.
    aim
        The limit and the tolerance.
    workers
        Simulations at once.
    """

    def __init__(self, run: SaturatedRun, aim: Aim, *, workers: int | None) -> None:
        self._run = run
        self._aim = aim
        self._workers = workers
        self._points: dict[int, BatchPoint] = {}

    @property
    def points(self) -> tuple[BatchPoint, ...]:
        """What was simulated, by `max_num_seqs`, ascending."""
        return tuple(self._points[size] for size in sorted(self._points))

    def simulate(self, sizes: Sequence[int]) -> None:
        """Simulate the sizes that were not simulated yet."""
        new = [size for size in sizes if size not in self._points]
        runs = [with_engine(self._run, max_num_seqs=size) for size in new]
        for size, report in zip(new, simulate_all(runs, workers=self._workers), strict=True):
            self._points[size] = point_of(report, size, self._aim)

    def knee(self) -> BatchPoint | None:
        """Return the smallest point that meets the aim, after a look between the neighbours on the grid.

        Where the limit cuts the sweep off, the largest batch within it is looked for first: it may give more than its
        neighbour on the grid. ``None``: no batch is within the limit.
        """
        within = [point for point in self.points if point.is_within_limit]
        if not within:
            return None
        beyond = next((p for p in self.points if p.max_num_seqs > within[-1].max_num_seqs), None)
        if beyond is not None:
            self._between(within[-1].max_num_seqs, beyond.max_num_seqs, lambda point: not point.is_within_limit)
        least_tps = self.least_tps()

        def does(point: BatchPoint) -> bool:
            return point.is_within_limit and point.throughput_tps >= least_tps

        first = next(index for index, point in enumerate(self.points) if does(point))
        if first == 0:
            return self.points[0]
        return self._between(self.points[first - 1].max_num_seqs, self.points[first].max_num_seqs, does)

    def reachable_tps(self) -> float | None:
        """Return the largest throughput within the limit; ``None``: nothing is."""
        return max((point.throughput_tps for point in self.points if point.is_within_limit), default=None)

    def least_tps(self) -> float:
        """Return the throughput that the knee and the KV budget must give."""
        return (1.0 - self._aim.tolerance) * (self.reachable_tps() or 0.0)

    def _between(self, low: int, high: int, does: Callable[[BatchPoint], bool]) -> BatchPoint:
        """Return the smallest point that `does`, by bisection: `low` does not, `high` does."""
        while high - low > 1:
            middle = (low + high) // 2
            self.simulate([middle])
            low, high = (low, middle) if does(self._points[middle]) else (middle, high)
        return self._points[high]


def point_of(report: SimulationReport, max_num_seqs: int, aim: Aim) -> BatchPoint:
    """Return the point of a simulated batch size."""
    return BatchPoint(
        max_num_seqs=max_num_seqs,
        kv_tokens=report.kv_tokens,
        throughput_tps=report.throughput_tps,
        itl_mean_s=report.itl.mean_s,
        itl_p95_s=report.itl.p95_s,
        running_mean=report.running_mean,
        running_max=report.running_max,
        kv_usage_max=report.kv_usage_max,
        num_preemptions=report.num_preemptions,
        is_within_limit=aim.keeps_limit(report.itl.p95_s),
    )


def kv_budget(run: SaturatedRun, max_num_seqs: int, aim: Aim, *, least_tps: float) -> KvBudget:
    """Return the smallest KV cache with which a batch size still gives `least_tps` within the limit.

    Found by bisection: less KV never gives more. What vLLM reserves beside it is that of `max_num_seqs`; what is freed
    counts from the settings of `run`.
    """
    present = run.replica
    run = with_engine(run, max_num_seqs=max_num_seqs)
    replica = run.replica
    engine, block_size = replica.engine, replica.engine.block_size
    whole = replica.memory().num_blocks
    # Beside the null block and those that admission keeps free.
    fewest = -(-longest_request_tokens(run) // block_size) + 1
    fewest = min(whole, fewest + int(engine.watermark * whole))

    def simulated(num_blocks: int) -> BatchPoint:
        (report,) = simulate_all([replace(run, num_blocks=num_blocks)], workers=1)
        return point_of(report, max_num_seqs, aim)

    def does(point: BatchPoint) -> bool:
        return point.is_within_limit and point.throughput_tps >= least_tps

    low, high = fewest, whole
    reason: KvReason = "throughput"
    if does(simulated(fewest)):
        high, reason = fewest, "longest request"
    while high - low > max(1, int(KV_RESOLUTION * whole)):
        middle = (low + high) // 2
        low, high = (low, middle) if does(simulated(middle)) else (middle, high)
    required = -(-(engine.max_model_len or replica.model.max_model_len) // block_size)
    enough, num_blocks = high, max(high, required)
    if num_blocks > high:
        reason = "max_model_len"
    elif high == whole:
        reason = "everything"
    return _budget(replica, present, num_blocks=num_blocks, enough=enough, reason=reason, point=simulated(num_blocks))


def _budget(
    replica: Replica, present: Replica, *, num_blocks: int, enough: int, reason: KvReason, point: BatchPoint
) -> KvBudget:
    """Return the budget of so many KV blocks, with the setting of vLLM that leaves them."""
    engine, model, block_size = replica.engine, replica.model, replica.engine.block_size
    utilization = least_utilization(model, replica.gpu, engine, replica.profile, num_blocks=num_blocks)
    # The whole cache may be a measured one, a little larger than the formula's.
    utilization = min(utilization, present.engine.gpu_memory_utilization)
    freed = present.engine.gpu_memory_utilization - utilization
    return KvBudget(
        kv_tokens=num_blocks * block_size,
        kv_gib=num_blocks * block_size * model.kv_bytes_per_token / GIB,
        decided_by=reason,
        enough_tokens=enough * block_size,
        gpu_memory_utilization=utilization,
        memory_gib=utilization * replica.gpu.memory_gib,
        freed_gib=freed * replica.gpu.memory_gib,
        point=point,
    )
