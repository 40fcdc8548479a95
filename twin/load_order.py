"""The order in which vLLM visits the adapters of a step, with a real Python set: the readable engine's side."""

from __future__ import annotations

from collections.abc import Iterable

from twin.recorder import Request, Step
from twin.replica import ReplicaInputs


class LoadOrder:
    """The order of the adapters of each step of one replica (twin/semantics.md, "Order of the adapters").

    Parameters
    ----------
    inputs
        The adapters' hashes, and which order it is.
    """

    def __init__(self, inputs: ReplicaInputs) -> None:
        self._is_set = inputs.load_in_set_order
        self._is_v2 = inputs.use_v2_model_runner
        self._names = [AdapterName(adapter, value) for adapter, value in enumerate(inputs.adapter_hash.tolist())]
        # The persistent batch of model runner V1: its requests, and their adapters in order of entry.
        self._batch: set[Request] = set()
        self._entered: dict[int, None] = {}
        self._seen: set[Request] = set()

    def adapters(self, step: Step) -> list[int]:
        """Return the distinct adapters of a step in the order in which they are visited; ask once for each step."""
        if not self._is_set:
            return step.adapters
        inserted = _distinct(_batch_of_v2(step)) if self._is_v2 else self._persistent_batch(step)
        return [name.adapter for name in set(map(self._names.__getitem__, inserted))]

    def _persistent_batch(self, step: Step) -> Iterable[int]:
        """Return the adapters in order of entry: `lora_id_to_lora_request` of vllm/v1/worker/gpu_input_batch.py.

        An adapter leaves with its last request and comes back at the end. What enters in one step: requests that run
        for the first time, then those that ran before.
        """
        staying = {request.adapter for request in step.tokens if request in self._batch}
        entering = [request for request in step.tokens if request not in self._batch]
        entering.sort(key=lambda request: request in self._seen)
        kept = [adapter for adapter in self._entered if adapter in staying]
        self._entered = dict.fromkeys([*kept, *_distinct(entering)])
        self._batch = set(step.tokens)
        self._seen.update(entering)
        return self._entered


class AdapterName:
    """An adapter's name as a set sees it; two names differ even where their hashes do not."""

    __slots__ = ("_hash", "adapter")

    def __init__(self, adapter: int, value: int) -> None:
        self.adapter = adapter
        # CPython's hashes are signed.
        self._hash = value - (1 << 64) if value >= 1 << 63 else value

    def __hash__(self) -> int:
        return self._hash


def _batch_of_v2(step: Step) -> list[Request]:
    """Return the step's requests as `sort_batch_req_ids` of vllm/v1/worker/gpu/model_runner.py sorts them."""
    return sorted(step.tokens, key=lambda request: (step.tokens[request] != 1, step.tokens[request]))


def _distinct(requests: Iterable[Request]) -> list[int]:
    """Return the adapters of requests in order of first appearance."""
    return list(dict.fromkeys(request.adapter for request in requests if request.adapter >= 0))
