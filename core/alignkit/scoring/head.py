"""Log-probabilities of given tokens without materialising tokens x vocabulary in full.

Letters in shapes: ``N`` scored tokens, ``H`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 << 20
"""Size of the logits computed at once."""
MIN_CHUNK = 128
"""Minimum number of tokens per chunk; smaller matrix products are slow."""
KEEP_BYTES = 256 << 20
"""Size of the exponentials kept for the backward; the rest is recomputed."""


class LogitTransform(NamedTuple):
    """Transform of the logits after the head: ``softcap * tanh(scale * z / softcap)``, or ``scale * z``.

    The result is divided by ``temperature``, so that samples are scored under the distribution they were drawn from.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read the transform from a model's configuration.

        The scorer's probe rejects the backends that would miss a transform not covered here.
        """
        scale = 1.0
        for name in ("logit_scale", "lm_head_multiplier"):  # Cohere; Falcon-H1
            scale *= _number(config, name) or 1.0
        scale /= _number(config, "logits_scaling") or 1.0  # Granite
        return cls(scale, _number(config, "final_logit_softcapping"))  # Gemma 2

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self.softcap is not None:
            logits = torch.tanh(logits * (self.scale / self.softcap)) * self.softcap
            return logits if self.temperature == 1.0 else logits / self.temperature
        return logits if self.factor == 1.0 else logits * self.factor

    @property
    def factor(self) -> float:
        """Factor of the logits if they are not capped."""
        return self.scale / self.temperature


_IDENTITY = LogitTransform()


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def install_head(head: nn.Module) -> None:
    """Make every plain linear layer of ``head`` return log-probabilities when called with ``targets``.

    The layer is still called as a module, so that hooks that gather sharded weights run. Adapters on the layer are not
    bypassed: they are called chunk by chunk instead (:func:`head_logps`).
    """
    saved = getattr(head, "modules_to_save", None)
    layers = [head.original_module, *saved.values()] if isinstance(saved, nn.ModuleDict) else [head]
    for layer in layers:
        if type(layer) is nn.Linear:
            layer.__dict__["forward"] = types.MethodType(_linear_forward, layer)


def head_logps(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, transform: LogitTransform) -> torch.Tensor:
    """Return ``log softmax(transform(head(hidden)))[targets]``, float32 ``[N]``, for hidden states ``[N, H]``."""
    if not len(targets):
        return hidden.float().sum(-1)  # nothing to score, but part of the graph
    if getattr(getattr(_active(head), "forward", None), "__func__", None) is _linear_forward:
        logps: torch.Tensor = head(hidden, targets=targets, transform=transform)
        return logps
    # A sharded head communicates in every call: make one call, so that all ranks make the same number.
    return chunked_logps(head, hidden, targets, transform, size=len(targets) if _sharded(head) else None)


def head_entropy(head: nn.Module, hidden: torch.Tensor, transform: LogitTransform) -> torch.Tensor:
    """Return the entropy in nats of ``softmax(transform(head(hidden)))``, float32 ``[N]``, without gradient."""
    size = max(len(hidden), 1) if _sharded(head) else MIN_CHUNK * 4
    with torch.no_grad():
        return torch.cat([entropy(transform(head(states))) for states in torch.split(hidden, size)])


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats of ``softmax(logits)``, float32 ``[n]``, for ``logits [n, V]``."""
    logps = logits.float().log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


def _active(head: nn.Module) -> nn.Module:
    """Return the layer that a call of ``head`` runs: peft keeps a trained copy beside the original."""
    saved = getattr(head, "modules_to_save", None)
    if not isinstance(saved, nn.ModuleDict):
        return head
    names: Any = () if head.disable_adapters else head.active_adapters
    active = [name for name in names if name in saved]
    layer: nn.Module = saved[active[0]] if active else head.original_module  # type: ignore[assignment]
    return layer


def _sharded(head: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in head.parameters())


def _linear_forward(
    self: nn.Linear, input: torch.Tensor, targets: torch.Tensor | None = None, transform: LogitTransform = _IDENTITY
) -> torch.Tensor:
    """Run ``nn.Linear.forward``, or return the log-probabilities of ``targets``. Bound to a layer by :func:`install_head`."""
    plain = type(self).forward
    if targets is None:
        return plain(self, input)
    weight: torch.Tensor = self.weight
    bias: torch.Tensor | None = self.bias
    if transform.softcap is not None or hasattr(type(weight), "__tensor_flatten__"):  # DTensor, torchao's
        return chunked_logps(lambda x: plain(self, x), input, targets, transform)
    kind = input.device.type
    # Leave autocast: inside the function all products use the dtype chosen here.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    weight, input = weight.to(dtype), input.to(dtype)
    if transform.factor != 1.0:
        input, bias = input * transform.factor, None if bias is None else bias * transform.factor
    with torch.autocast(kind, enabled=False):
        return linear_logps(input, weight, None if bias is None else bias.to(dtype), targets)


def chunked_logps(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    transform: LogitTransform,
    size: int | None = None,
) -> torch.Tensor:
    """Return log-probabilities through any head, chunk by chunk; the backward recomputes the logits of each chunk."""

    def score(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return -F.cross_entropy(transform(head(states)).float(), tokens, reduction="none")

    size = size or MIN_CHUNK * 4
    chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(score, states, tokens, use_reentrant=False) for states, tokens in chunks])


def linear_logps(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    chunk: int | None = None,
    keep_bytes: int = KEEP_BYTES,
) -> torch.Tensor:
    """Return ``log softmax(hidden weight^T + bias)[targets]``, float32 ``[N]``.

    ``hidden [N, H]``, ``weight [V, H]`` of the same dtype, ``bias [V]`` or None, ``targets [N]``. The sum of the softmax
    is accumulated in float32. ``keep_bytes`` of exponentials are kept for the backward; the rest is recomputed.
    """
    if not torch.is_grad_enabled():  # a Function's needs_input_grad ignores no_grad
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    size = chunk or max(MIN_CHUNK, CHUNK_BYTES // (len(weight) * weight.element_size()))
    logps: torch.Tensor = _LinearLogps.apply(hidden, weight, bias, targets, size, keep_bytes)  # type: ignore[no-untyped-call]
    return logps


class _LinearLogps(torch.autograd.Function):
    """With ``e = exp(z - max z)``, ``s = sum e`` and incoming gradients ``g [N]``: ``dz = g * (onehot(target) - e / s)``.

    ``g / s`` is folded into the hidden states, so that ``e [n, V]`` enters the products unscaled.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        size: int,
        keep_bytes: int,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        trains = needs_weight or needs_bias
        count, room = len(targets), keep_bytes
        peaks = hidden.new_empty(count)
        sums = hidden.new_empty(count, dtype=torch.float32)
        logps = torch.empty_like(sums)
        d_hidden = torch.empty_like(hidden) if needs_hidden and not trains else None
        kept: list[torch.Tensor | None] = []
        scratch: torch.Tensor | None = None
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            states, tokens = hidden[part], targets[part]
            keep = trains and len(states) * len(weight) * hidden.element_size() <= room
            if not keep and scratch is None:
                scratch = hidden.new_empty(min(size, count), len(weight))
            z = _logits(states, weight, bias, None if keep or scratch is None else scratch[: len(states)])
            chosen = z.gather(1, tokens[:, None]).squeeze(1).float()
            peak = z.amax(1)
            total = z.sub_(peak[:, None]).exp_().sum(1, dtype=torch.float32)
            logps[part] = chosen - peak.float() - total.log()
            peaks[part], sums[part] = peak, total
            if keep:
                room -= z.numel() * z.element_size()
            if trains:
                kept.append(z if keep else None)
            if d_hidden is not None:  # the head is frozen: compute the gradient now, without keeping e
                torch.mm(z, weight, out=d_hidden[part])
                d_hidden[part].div_(-total[:, None].to(z.dtype)).add_(weight[tokens])
        ctx.size, ctx.kept, ctx.trains = size, kept, trains
        ctx.save_for_backward(*((hidden, weight, bias, targets, peaks, sums) if trains else (d_hidden,)))
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.trains:
            (d_hidden,) = ctx.saved_tensors
            return d_hidden * grad[:, None].to(d_hidden.dtype), None, None, None, None, None
        hidden, weight, bias, targets, peaks, sums = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight: torch.Tensor | None = None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        factors = (grad / sums).neg_().to(hidden.dtype)  # [N] -g / s
        for index, start in enumerate(range(0, len(targets), ctx.size)):
            part = slice(start, start + ctx.size)
            states, factor = hidden[part], factors[part, None]
            e = ctx.kept[index]
            ctx.kept[index] = None
            if e is None:
                e = _logits(states, weight, bias).sub_(peaks[part, None]).exp_()
            if d_hidden is not None:
                torch.mm(e, weight, out=d_hidden[part])
                d_hidden[part].mul_(factor)
            if needs_weight:
                scaled = states * factor
                d_weight = torch.mm(e.t(), scaled) if d_weight is None else d_weight.addmm_(e.t(), scaled)
            if d_bias is not None:
                d_bias += (e.t() @ factor).squeeze(1)
            del e
        chosen = grad[:, None].to(hidden.dtype)
        if d_hidden is not None:
            d_hidden.addcmul_(weight[targets], chosen)
        if d_weight is not None:
            d_weight.index_add_(0, targets, hidden * chosen)
        if d_bias is not None:
            d_bias = d_bias.index_add_(0, targets, grad).to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None


def _logits(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``states weight^T + bias``, ``[n, V]``, written to ``out`` if given."""
    z = torch.mm(states, weight.t()) if out is None else torch.mm(states, weight.t(), out=out)
    return z if bias is None else z.add_(bias)
