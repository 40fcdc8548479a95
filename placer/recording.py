"""Keep what the twin said about GPUs while plans were made: `placer train --from-rejections` learns from it."""

from __future__ import annotations

from pathlib import Path

from placer.plan_document import Verification
from predictors.recorded_gpus import RecordedGpu, TwinVerdict, prepare_folder, workload_key, write_recorded
from twin.errors import InputError
from twin.replica import Replica
from twin.workload import Workload

OPTION = "--record-rejections"


class GpuRecorder:
    """Writes GPUs of one problem, rejected and accepted ones, into a folder; make it with `open`.

    Accepted ones, too: of sets that a solver chose because the surrogate is hopeful, learning from the rejected alone
    would teach it that all such sets starve.

    Attributes
    ----------
    num_recorded
        GPUs that the folder did not have before.
    """

    def __init__(self, folder: Path, workload: Workload) -> None:
        self.folder = folder
        self.num_recorded = 0
        self._workload_key = workload_key(workload)
        self._num_lost = 0
        self._reason = ""

    @classmethod
    def open(cls, folder: str | Path, workload: Workload) -> GpuRecorder:
        """Create the folder where there is none; InputError when it cannot be written.

        Parameters
        ----------
        workload
            All adapters of the problem.
        """
        prepare_folder(Path(folder), option=OPTION)
        return cls(Path(folder), workload)

    def record(self, workload: Workload, replica: Replica, verification: Verification) -> None:
        """Write a GPU with the verdict about it.

        One without traffic, or one that does not start, is passed over: there is nothing to learn from it. What cannot
        be written is counted, and does not end the planning.
        """
        if not any(adapter.rate_rps > 0.0 for adapter in workload.adapters) or not replica.memory().starts:
            return
        verdict = TwinVerdict(
            engine=verification.engine,
            horizon_s=verification.horizon_s,
            warmup_s=verification.warmup_s,
            seed=verification.seed,
            throughput_ratio=verification.throughput_ratio,
            num_starved_adapters=len(verification.starved_adapters),
            verdict=verification.verdict,
        )
        gpu = RecordedGpu.of(workload.adapters, replica, workload=self._workload_key, verdict=verdict)
        try:
            self.num_recorded += write_recorded(self.folder, gpu)
        except InputError as error:
            self._num_lost += 1
            self._reason = error.message

    def warnings(self) -> tuple[str, ...]:
        """Return what a user must know: how many GPUs could not be written, and why."""
        if not self._num_lost:
            return ()
        return (f"{self._num_lost} GPUs that the twin judged could not be recorded in {self.folder}: {self._reason}",)


def recorder_for(folder: str | Path | None, workload: Workload, *, is_verified: bool) -> GpuRecorder | None:
    """Return who records GPUs of a problem in `folder`; ``None``: nobody is asked to.

    Raises
    ------
    InputError
        When the folder cannot be written, or the twin is not asked about any GPU.
    """
    if folder is None:
        return None
    if not is_verified:
        raise InputError(
            "GPUs can only be recorded where the twin judges them. Got a folder for them, and no verification.",
            field="record_rejections",
            value=str(folder),
            hint="leave out one of --record-rejections and --no-verify",
        )
    return GpuRecorder.open(folder, workload)
