"""What a model's weights are known by, and what must be off while they train."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def switch_off_dropout(model: PreTrainedModel) -> dict[str, float]:
    """Set every dropout of the model to 0, adapters excepted (``model.lora.dropout`` is a setting of its own).

    A model carries the probability as ``nn.Dropout.p``, as a float its modules read in forward, or reads it from its
    configuration. Returns what the configuration said, by key.
    """
    import torch

    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        _zero_dropouts(module)
    return _zero_dropouts(model.config.get_text_config())


def _zero_dropouts(owner: object) -> dict[str, float]:
    found = {
        name: value for name, value in vars(owner).items() if "drop" in name and isinstance(value, float) and value > 0
    }
    for name in found:
        setattr(owner, name, 0.0)
    return found


def fingerprint(model: torch.nn.Module) -> str:
    """Return the sha256 of the policy's every parameter and buffer: names, dtypes, shapes and bytes, in the order of the names."""
    import torch

    from alignkit.scoring.critic import is_critics

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if is_critics(name):
            continue  # no part of the policy
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
