"""Weight fingerprints, and switching dropout off."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def switch_off_dropout(model: PreTrainedModel) -> dict[str, float]:
    """Set every dropout of the model to 0, except in adapters (``model.lora.dropout`` is a separate setting).

    The probability may be in ``nn.Dropout.p``, in a float attribute that a module's forward reads, or in the model's
    configuration. Return the previous values of the configuration by key.
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
        key: value for key, value in vars(owner).items() if "drop" in key and isinstance(value, float) and value > 0
    }
    for name in found:
        setattr(owner, name, 0.0)
    return found


def fingerprint(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the policy's parameters and buffers: names, dtypes, shapes and bytes, sorted by name."""
    import torch

    from alignkit.scoring.critic import is_critics

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if is_critics(name):
            continue  # not part of the policy
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
