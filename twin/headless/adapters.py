"""vLLM's LRU caches of adapters, and the sets of adapters that its two model runners give them each step.

Only the read from disk and the copy of weights are replaced, by notes of what was read and copied: lora/
worker_manager.py and lora/model_manager.py decide what is loaded and what is evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.v1.worker.gpu.lora_utils import LoraState
from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from twin.replica import ReplicaInputs

CPU = torch.device("cpu")
# Nothing of these is read; they have to be consistent.
VOCABULARY = 256
RANK = 8
LAYER = "layer"


class AdapterCaches:
    """The worker's LRU manager of adapters.

    Parameters
    ----------
    config
        vLLM's configuration, with LoRA.
    """

    def __init__(self, config: Any) -> None:
        self._manager = _WorkerManager(config, CPU, _Model.embedding_modules)
        self._manager.create_lora_manager(_Model(), config)

    def load(self, adapters: set[LoRARequest]) -> tuple[list[int], list[int]]:
        """Make the adapters of a step resident; return those copied to slots and those read from disk, by index."""
        self._manager.set_active_adapters(adapters, None)
        manager = self._manager._adapter_manager
        copied, read = manager.copied, self._manager.read
        manager.copied, self._manager.read = [], []
        return [number - 1 for number in copied], [number - 1 for number in read]

    @property
    def slots(self) -> tuple[int, ...]:
        """Adapters in slots, least recently used first."""
        return tuple(number - 1 for number in self._manager._adapter_manager._active_adapters.order)

    @property
    def cached(self) -> tuple[int, ...]:
        """Adapters in CPU memory, least recently used first."""
        return tuple(number - 1 for number in self._manager._adapter_manager._registered_adapters.order)


def lora_requests(names: Sequence[str]) -> list[LoRARequest]:
    """Return one request for each adapter; vLLM numbers adapters from 1."""
    return [LoRARequest(name, index + 1, f"/{index + 1}") for index, name in enumerate(names)]


class PersistentBatch:
    """The batch of model runner V1: v1/worker/gpu_input_batch.py, kept as `_update_states` of gpu_model_runner.py does.

    Parameters
    ----------
    inputs
        Settings and requests.
    """

    def __init__(self, inputs: ReplicaInputs) -> None:
        longest = int((inputs.prompt_tokens.astype(int) + inputs.output_tokens).max(initial=1))
        max_model_len = min(longest, inputs.max_model_len)
        self._states: dict[str, CachedRequestState] = {}
        self._batch = InputBatch(
            max_num_reqs=inputs.max_num_seqs,
            max_model_len=max_model_len,
            max_num_batched_tokens=inputs.max_num_batched_tokens,
            device=CPU,
            vocab_size=VOCABULARY,
            block_sizes=[inputs.block_size],
            max_num_blocks_per_req=[-(-max_model_len // inputs.block_size)],
        )

    def adapters(self, output: Any) -> set[LoRARequest]:
        """Return the adapters of a step, given the scheduler's output."""
        batch = self._batch
        for request_id in output.finished_req_ids:
            self._states.pop(request_id, None)
            batch.remove_request(request_id)
        cached = output.scheduled_cached_reqs
        staying = output.num_scheduled_tokens.keys() - cached.resumed_req_ids
        for request_id in batch.req_id_to_index.keys() - staying:
            batch.remove_request(request_id)
        entering = [self._new_state(new) for new in output.scheduled_new_reqs]
        for index, request_id in enumerate(cached.req_ids):
            if request_id not in batch.req_id_to_index:
                state = self._states[request_id]
                state.block_ids = cached.new_block_ids[index]
                state.num_computed_tokens = cached.num_computed_tokens[index]
                state.output_token_ids = [0] * cached.num_output_tokens[index]
                entering.append(state)
        for state in entering:
            batch.add_request(state)
        batch.condense()
        batch.refresh_metadata()
        return set(batch.lora_id_to_lora_request.values())

    def _new_state(self, new: Any) -> CachedRequestState:
        state = CachedRequestState(
            req_id=new.req_id,
            prompt_token_ids=new.prompt_token_ids,
            mm_features=[],
            sampling_params=new.sampling_params,
            generator=None,
            block_ids=new.block_ids,
            num_computed_tokens=new.num_computed_tokens,
            output_token_ids=[],
            lora_request=new.lora_request,
        )
        self._states[new.req_id] = state
        return state


class BatchOfV2:
    """The batch of model runner V2: v1/worker/gpu/model_runner.py."""

    def __init__(self) -> None:
        self._state = LoraState(1)

    def adapters(self, output: Any) -> set[LoRARequest]:
        """Return the adapters of a step, given the scheduler's output."""
        for request_id in output.finished_req_ids | (output.preempted_req_ids or set()):
            self._state.remove_request(request_id)
        for new in output.scheduled_new_reqs:
            self._state.add_request(new.req_id, 0, new.lora_request)
        adapters: set[LoRARequest] = self._state.get_activate_loras(
            sort_batch_req_ids(output.num_scheduled_tokens, output.scheduled_spec_decode_tokens, 1)
        )
        return adapters


class _Model(nn.Module):
    """What the managers ask of a model; it has an embedding by name, so that LoRA is supported, and no module."""

    supports_lora = True
    is_3d_moe_weight = False
    is_non_gated_moe = False
    embedding_modules: ClassVar = {"embed_tokens": "input_embeddings"}
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {}
    lora_skip_prefixes: ClassVar[list[str]] = []
    lora_manager = None


class _ModelManager(LRUCacheLoRAModelManager):
    """Notes what is copied to a slot; there is no module to copy weights to."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.copied: list[int] = []
        super().__init__(*arguments, **options)

    def activate_adapter(self, lora_id: int) -> bool:
        is_copied = bool(super().activate_adapter(lora_id))
        if is_copied:
            self.copied.append(lora_id)
        return is_copied


class _WorkerManager(LRUCacheWorkerLoRAManager):
    """Notes what is read from disk instead of reading it."""

    _manager_cls = _ModelManager

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.read: list[int] = []
        super().__init__(*arguments, **options)

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        self.read.append(lora_request.lora_int_id)
        # The manager packs what it has read.
        weights = LoRALayerWeights(LAYER, RANK, RANK, torch.zeros(RANK, 1), torch.zeros(1, RANK))
        return LoRAModel(lora_request.lora_int_id, RANK, {LAYER: weights})
