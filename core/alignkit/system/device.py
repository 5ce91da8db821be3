"""Numbers of the host on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def on_device(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a tensor, array or list of the host as a tensor on ``device``; no GPU is waited for, as from memory not pinned."""
    import torch

    host = torch.as_tensor(values, dtype=dtype)
    return (host.pin_memory() if torch.device(device).type == "cuda" else host).to(device, non_blocking=True)
