"""Numbers of the host on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def on_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return values in host memory (a tensor, an array, a list) on ``device``, without waiting for what the device does.

    A GPU copies them from pinned memory while the host goes on; memory that is not pinned would be waited for.
    """
    import torch

    host = torch.as_tensor(values, dtype=dtype)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
