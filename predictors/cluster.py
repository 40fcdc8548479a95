"""Run one function on many arguments on a Dask cluster, through joblib's own backend for it (extra `cluster`)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import joblib

from twin.errors import ClusterError

if TYPE_CHECKING:
    from types import ModuleType

T = TypeVar("T")
R = TypeVar("R")

CONNECT_TIMEOUT_S = 10.0


def each_on_cluster(
    function: Callable[[T], R], subjects: Sequence[T], *, address: str
) -> Generator[tuple[int, R], None, None]:
    """Yield position and result of each subject, in the order in which they are done.

    A subject whose worker dies is given to another one by the scheduler.

    Parameters
    ----------
    function
        Pure, and of a module that the workers have installed.
    address
        Of a Dask scheduler, such as ``tcp://host:8786``.

    Raises
    ------
    ClusterError
        When the extra is not installed, no scheduler answers or it has no worker within `CONNECT_TIMEOUT_S`, the
        workers lack this package, or the connection is lost.
    """
    distributed = _load_distributed()
    client = _connect(distributed, address)
    with client, _quiet_log():
        _require_workers(client, address)
        jobs = (joblib.delayed(_numbered)(function, index, subject) for index, subject in enumerate(subjects))
        with joblib.parallel_config("dask", client=client):
            _use_a_single_core()
            # All at once: workers that come later get their share.
            results = joblib.Parallel(return_as="generator_unordered", pre_dispatch="all")(jobs)
        try:
            yield from results
        except ImportError as error:
            raise ClusterError(
                f"the workers of {address} must have the same packages as this program. {error}.",
                field="cluster",
                value=address,
                hint="install lora-placer in the environment of the workers",
            ) from error
        except (OSError, distributed.KilledWorker, distributed.client.FutureCancelledError) as error:
            raise ClusterError(
                f"the cluster at {address} gave up: {type(error).__name__}: {error}",
                field="cluster",
                value=address,
                hint="look at the logs of its workers; the same command continues",
            ) from error
        finally:
            results.close()


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep Dask from printing tracebacks about a connection whose loss is reported in a sentence."""
    log = logging.getLogger("distributed.client")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _use_a_single_core() -> None:
    """Let joblib also use a cluster of one core, in place of which it would work in this process."""
    backend, _ = joblib.parallel.get_active_backend()
    count_cores = backend.effective_n_jobs
    backend.effective_n_jobs = lambda num_jobs: max(2, count_cores(num_jobs))


def _load_distributed() -> ModuleType:
    try:
        # By name, because sampling on this machine does without it.
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ClusterError(
            f"a cluster needs the extra `cluster`. {error}.", field="cluster", hint="pip install 'lora-placer[cluster]'"
        ) from error


def _connect(distributed: ModuleType, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"`cluster` must be the address of a Dask scheduler that answers. {address}: {error}",
            field="cluster",
            value=address,
            hint="start one with `dask scheduler`, and give the address that it prints, such as tcp://host:8786",
        ) from error


def _require_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
    except TimeoutError as error:
        raise ClusterError(
            f"the scheduler at {address} must have at least one worker. It has none after {CONNECT_TIMEOUT_S:g} s.",
            field="cluster",
            value=address,
            hint=f"start one with `dask worker {address}`",
        ) from error


def _numbered(function: Callable[[T], R], index: int, subject: T) -> tuple[int, R]:
    return index, function(subject)
