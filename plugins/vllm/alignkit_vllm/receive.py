"""The backend ``alignkit`` of vLLM's weight transfer: weights from safetensors files. It runs in vLLM's processes.

vLLM loads it through the entry point ``vllm.general_plugins``
(https://docs.vllm.ai/en/v0.32.0/training/weight_transfer/base/). What travels over its control plane are paths, so that
nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)


@dataclass
class NoInit(WeightTransferInitInfo):
    """There is nothing to agree on before the first update."""


@dataclass
class Part(WeightTransferUpdateInfo):
    """One part of the weights, under the names and shapes of a checkpoint."""

    path: str
    """A safetensors file, which is read before the update returns."""


class FilesEngine(WeightTransferEngine[NoInit, Part]):
    """Loads every part as vLLM loads a checkpoint."""

    init_info_cls = NoInit
    update_info_cls = Part

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Do nothing."""

    def start_weight_update(self) -> None:
        """Prepare the layers for weights in the format of a checkpoint."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Part) -> None:
        """Load the weights of one file."""
        self.model.load_weights(iter(load_file(update_info.path).items()))

    def finish_weight_update(self) -> None:
        """Bring the new weights into the form that the kernels use."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Do nothing."""
