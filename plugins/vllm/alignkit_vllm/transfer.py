"""Sending the policy's weights to vLLM, by the four calls of its weight transfer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from alignkit.errors import ConfigError, RunFailedError, described

from alignkit_vllm.weights import checkpoint_weights

PART = 2**30
"""Bytes of one file of weights (more, if a single weight has more)."""


class Control(Protocol):
    """The calls of vLLM's weight transfer (``VLLMWeightSyncClient`` there): of an engine, or of a server over HTTP."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self) -> None: ...


Send = Callable[[], None]
"""Sends the policy's current weights; every process of a sharded policy calls it."""


def by_files(model: Any, control: Control | None, folder: str | None) -> Send:
    """Return a function that sends the weights in files, one after another; without ``control`` it only takes part."""
    place = Path(folder) if folder else Path("/dev/shm")
    if folder and not place.is_dir():
        raise ConfigError(f"method.vllm.folder: there is no directory {folder}")
    if control is not None:
        control.init_weight_transfer_engine({})

    def send() -> None:
        if control is None:
            for _ in checkpoint_weights(model):
                pass
            return
        from safetensors.torch import save_file

        control.start_weight_update()
        with TemporaryDirectory(prefix="alignkit-weights-", dir=place if place.is_dir() else None) as directory:
            for number, part in enumerate(_parts(checkpoint_weights(model))):
                file = Path(directory, f"{number}.safetensors")
                try:
                    save_file(part, file)
                except Exception as error:
                    raise RunFailedError(
                        f"the weights for vLLM cannot be written to {place}: {described(error)}; set method.vllm.folder to a "
                        "directory with more space"
                    ) from error
                control.update_weights({"path": str(file)})
                file.unlink()
        control.finish_weight_update()

    return send


def _parts(weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the weights in main memory, in parts of about :data:`PART` bytes; tied ones are copies."""
    part, size = dict[str, torch.Tensor](), 0
    for name, weight in weights:
        part[name] = weight.detach().to("cpu", copy=True).contiguous()
        size += part[name].nbytes
        if size >= PART:
            yield part
            part, size = {}, 0
    if part:
        yield part


def by_nccl(model: Any, control: Control, rank: int, workers: int) -> Send:
    """Return a function that broadcasts the weights from the first process's GPU to a server's, by vLLM's own engine.

    Raises ``ConfigError`` for a policy that is not on a GPU.
    """
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_ip, get_open_port

    class Policy(WeightSource):
        """The policy's weights: what they are, and themselves."""

        @cached_property
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in checkpoint_weights(model)]

        def iter_full(self) -> Iterator[tuple[str, torch.Tensor]]:
            return ((name, weight.detach().contiguous()) for name, weight in checkpoint_weights(model))

    if next(model.parameters()).device.type != "cuda":
        raise ConfigError("method.vllm.transfer: nccl sends from a GPU, and the policy is not on one: use files")
    place = NCCLTrainerInitInfo(master_address=get_ip(), master_port=get_open_port(), world_size=1 + workers, rank=rank)
    send: Send = WeightTransferTrainerFactory.trainer_init(place, client=control, source=Policy()).send_weights
    return send
