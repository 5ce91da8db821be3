"""One cast of hidden states for all linear layers that multiply them.

Under autocast every linear layer casts its input by itself: queries, keys and values the same hidden states three times, the two
halves of a gated product and adapters again. Each cast is read, written and kept for the backward pass. Here the first layer's is
taken by the others. Results are the same to the bit: in the backward pass, each layer's gradient is still cast to the type of the
hidden states by itself, and added up there.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KEPT = "_alignkit_cast"


class _Taken(torch.autograd.Function):
    """A cast that was made before, as if ``states`` were cast again."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = states.dtype
        return cast.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


def share_casts(model: nn.Module) -> None:
    """Let the linear layers of an innermost model, adapters included, take one cast of the same input."""
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            module.__dict__["forward"] = types.MethodType(_forward, module)


def _forward(self: nn.Linear, input: Tensor) -> Tensor:
    """Run ``nn.Linear.forward``. Bound to a layer by :func:`share_casts`."""
    return F.linear(_cast(input), self.weight, self.bias)


def _cast(states: Tensor) -> Tensor:
    """Return ``states`` in the type of autocast; the cast is kept on the tensor itself, so that it goes with it."""
    kind = states.device.type
    if not torch.is_autocast_enabled(kind) or states.dtype != torch.float32 or torch.compiler.is_compiling():
        return states
    if states.is_inference():  # has no version by which a change in place would be seen
        return states
    dtype = torch.get_autocast_dtype(kind)
    wanted = dtype, states._version
    made, cast = getattr(states, _KEPT, (None, None))
    if cast is None or made != wanted:
        cast = states.detach().to(dtype)
        setattr(states, _KEPT, (wanted, cast))
    return _Taken.apply(states, cast) if states.requires_grad and torch.is_grad_enabled() else cast  # type: ignore[no-untyped-call]
