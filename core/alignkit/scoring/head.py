"""Log-probabilities of given tokens without materialising tokens x vocabulary in full.

Letters in shapes: ``N`` scored tokens, ``H`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Tokens of a chunk through a head that is not a plain linear layer."""
ROWS = 4096
"""Rows added at once to the weight's gradient where a device cannot add products in half precision to float32."""
Chunks = tuple[int, int, int]
"""Bytes of the logits computed at once, least tokens in them (products of smaller matrices are slow), and bytes of exponentials
kept for the backward; the rest is recomputed. Constants, because numbers would depend on the free memory if sizes did."""
CPU: Chunks = 64 << 20, 128, 256 << 20
ACCELERATOR: Chunks = 512 << 20, 2048, 1 << 30
"""For other devices. The float32 gradient of the weight is read and written once a chunk, which takes an A100, H100 or B200 as
long as the product of 600 to 1,200 tokens."""


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

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits if self.cap is None else torch.tanh(logits) * self.cap

    @property
    def factor(self) -> float:
        """Factor of the logits: ``cap * tanh(factor * z)``, or ``factor * z`` if they are not capped."""
        return self.scale / (self.temperature if self.softcap is None else self.softcap)

    @property
    def cap(self) -> float | None:
        """Bound of the result."""
        return None if self.softcap is None else self.softcap / self.temperature


_IDENTITY = LogitTransform()


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def install_head(head: nn.Module, *, exact: bool | None = None, chunks: Chunks | None = None) -> bool:
    """Make every plain linear layer of ``head`` return log-probabilities when called with ``targets``.

    The layer is still called as a module, so that hooks that gather sharded weights run. Adapters on the layer are not
    bypassed: they are called chunk by chunk instead (:func:`head_logps`). ``exact``: whether products are made in float32
    (``model.head``). ``chunks``: instead of those of its device. None: as before. Return whether there is such a layer.
    """
    layers = [layer for layer in head.modules() if type(layer) is nn.Linear]  # an adapter has several
    for layer in layers:
        layer.__dict__["forward"] = types.MethodType(_linear_forward, layer)
        layer.__dict__.update({k: v for k, v in {"exact": exact, "chunks": chunks}.items() if v is not None})
    return bool(layers)


def head_logps(head: nn.Module, hidden: Tensor, targets: Tensor, transform: LogitTransform) -> Tensor:
    """Return ``log softmax(transform(head(hidden)))[targets]``, float32 ``[N]``, for hidden states ``[N, H]``."""
    if not len(targets):
        return hidden.float().sum(-1)  # nothing to score, but part of the graph
    if getattr(getattr(_active(head), "forward", None), "__func__", None) is _linear_forward:
        logps: Tensor = head(hidden, targets=targets, transform=transform)
        return logps
    # A sharded head communicates in every call: make one call, so that all ranks make the same number.
    return chunked_logps(head, hidden, targets, transform, size=len(targets) if is_sharded_head(head) else None)


def _active(head: nn.Module) -> nn.Module:
    """Return the layer that a call of ``head`` runs: peft keeps a trained copy beside the original."""
    saved = getattr(head, "modules_to_save", None)
    if not isinstance(saved, nn.ModuleDict):
        return head
    names: Any = () if head.disable_adapters else head.active_adapters
    active = [name for name in names if name in saved]
    layer: nn.Module = saved[active[0]] if active else head.original_module  # type: ignore[assignment]
    return layer


def is_sharded_head(head: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in head.parameters())


def _linear_forward(
    self: nn.Linear, input: Tensor, targets: Tensor | None = None, transform: LogitTransform = _IDENTITY
) -> Tensor:
    """Run ``nn.Linear.forward``, or return the log-probabilities of ``targets``. Bound to a layer by :func:`install_head`."""
    kind, dtype = input.device.type, self.weight.dtype
    exact, chunks = (self.__dict__.get(name) for name in ("exact", "chunks"))
    if exact:
        dtype = torch.promote_types(dtype, torch.float32)
    elif torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)

    def plain(states: Tensor) -> Tensor:
        if not exact:
            return type(self).forward(self, states)
        with torch.autocast(kind, enabled=False):
            return F.linear(states.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    if targets is None:
        return plain(input)
    if hasattr(type(self.weight), "__tensor_flatten__"):  # DTensor, torchao's
        return chunked_logps(plain, input, targets, transform)
    with torch.autocast(kind, enabled=False):
        return linear_logps(input, self.weight, self.bias, targets, transform, dtype=dtype, chunks=chunks)


def chunked_logps(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    transform: LogitTransform,
    size: int | None = None,
) -> Tensor:
    """Return log-probabilities through any head, chunk by chunk; the backward recomputes the logits of each chunk."""

    def score(states: Tensor, tokens: Tensor) -> Tensor:
        return -F.cross_entropy(transform(head(states)).float(), tokens, reduction="none")

    size = size or CHUNK
    chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(score, states, tokens, use_reentrant=False) for states, tokens in chunks])


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = _IDENTITY,
    *,
    dtype: torch.dtype | None = None,
    chunks: Chunks | None = None,
) -> Tensor:
    """Return ``log softmax(transform(hidden weight^T + bias))[targets]``, float32 ``[N]``.

    ``hidden [N, H]``, ``weight [V, H]``, ``bias [V]`` or None, ``targets [N]``. Matrices are multiplied in ``dtype`` (default:
    that of ``weight``), in ``chunks`` (default: its device's). What is summed over the vocabulary or over chunks is summed in float32: the softmax and the gradients.
    """
    if not torch.is_grad_enabled():  # a Function's needs_input_grad ignores no_grad
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    dtype = dtype or weight.dtype
    if transform.factor != 1.0:
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32)) * transform.factor
        bias = None if bias is None else bias * transform.factor
    at_once, least, kept = chunks or (CPU if hidden.device.type == "cpu" else ACCELERATOR)
    size = max(least, at_once // (len(weight) * dtype.itemsize))
    logps: Tensor = _LinearLogps.apply(hidden, weight, bias, targets, dtype, transform.cap, size, kept)  # type: ignore[no-untyped-call]
    return logps


class _LinearLogps(torch.autograd.Function):
    """With ``e = exp(z - max z)``, ``s = sum e`` and incoming gradients ``g [N]``: ``dz = g * (onehot(target) - e / s)``.

    ``g / s`` is folded into the hidden states, so that ``e [n, V]`` enters the products unscaled. The slope of capped logits is
    folded into ``e`` once ``s`` is known. Gradients are in the dtype of sums; autograd casts them to those of the inputs.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *how: Any) -> Tensor:
        dtype, cap, size, room = how
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        trains, count, given = needs_weight or needs_bias, len(targets), hidden.dtype
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        peaks, logps = hidden.new_empty(count), hidden.new_empty(count, dtype=torch.float32)
        sums = torch.empty_like(peaks, dtype=torch.promote_types(dtype, torch.float32))
        slopes = None if cap is None else torch.empty_like(peaks)  # at the targets
        d_hidden = torch.empty_like(hidden, dtype=sums.dtype) if needs_hidden and not trains else None
        kept: list[Tensor | None] = []
        scratch = hidden.new_empty(0, len(weight))
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            states, tokens = hidden[part], targets[part]
            keep = trains and len(states) * len(weight) * hidden.element_size() <= room
            if not keep and not len(scratch):
                scratch = hidden.new_empty(min(size, count), len(weight))
            z, slope = _logits(states, weight, bias, cap, None if keep else scratch[: len(states)])
            chosen = z.gather(1, tokens[:, None]).squeeze(1).float()
            peaks[part] = peak = z.amax(1)
            sums[part] = total = z.sub_(peak[:, None]).exp_().sum(1, dtype=sums.dtype)
            logps[part] = chosen - peak.float() - total.log()
            if slope is not None and slopes is not None:
                z.mul_(slope)
                slopes[part] = slope.gather(1, tokens[:, None]).squeeze(1)
            if keep:
                room -= z.numel() * z.element_size()
            if trains:
                kept.append(z if keep else None)
            if d_hidden is not None:  # the head is frozen: compute the gradient now, without keeping e
                own = weight[tokens] if slopes is None else weight[tokens] * slopes[part, None]
                _product(z, weight, d_hidden[part]).div_(-total[:, None]).add_(own)
        ctx.cap, ctx.size, ctx.kept, ctx.trains = cap, size, kept, trains
        saved = (hidden, weight, bias, targets, peaks, sums, slopes)
        ctx.save_for_backward(*(saved if trains else (None if d_hidden is None else d_hidden.to(given),)))
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.trains:
            (d_hidden,) = ctx.saved_tensors
            return d_hidden * grad[:, None], *[None] * 7
        hidden, weight, bias, targets, peaks, sums, slopes = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        make = torch.empty_like if len(targets) else torch.zeros_like
        d_hidden = make(hidden, dtype=sums.dtype) if needs_hidden else None
        d_weight = make(weight, dtype=sums.dtype) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=sums.dtype) if needs_bias else None
        factors = (grad / sums).neg_()  # [N] -g / s
        for index, start in enumerate(range(0, len(targets), ctx.size)):
            part = slice(start, start + ctx.size)
            states, factor = hidden[part], factors[part, None]
            e = ctx.kept[index]
            ctx.kept[index] = None
            if e is None:
                e, slope = _logits(states, weight, bias, ctx.cap)
                e.sub_(peaks[part, None]).exp_()
                e = e if slope is None else e.mul_(slope)
            if d_hidden is not None:
                _product(e, weight, d_hidden[part]).mul_(factor)
            if d_weight is not None:
                _product(e.t(), (states * factor).to(e.dtype), d_weight, add=index > 0)
            if d_bias is not None:
                d_bias += (e.t() @ factor.to(e.dtype)).squeeze(1)
            del e
        chosen = (grad if slopes is None else grad * slopes).to(sums.dtype)[:, None]
        if d_hidden is not None:
            d_hidden.addcmul_(weight[targets], chosen)
        if d_weight is not None:
            d_weight.index_add_(0, targets, hidden * chosen)
        if d_bias is not None:
            d_bias.index_add_(0, targets, chosen.squeeze(1))
        return d_hidden, d_weight, d_bias, *[None] * 5


def _logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return ``z = states weight^T + bias``, ``[n, V]``, written to ``out`` if given; or ``cap * tanh(z)`` and its slope."""
    z = torch.mm(states, weight.t()) if out is None else torch.mm(states, weight.t(), out=out)
    z = z if bias is None else z.add_(bias)
    if cap is None:
        return z, None
    slope = z.tanh_().square().mul_(-cap).add_(cap)
    return z.mul_(cap), slope


def _product(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write ``a b`` to ``out``, or add it in place, without a second tensor of the size of ``out``."""
    if a.dtype == out.dtype:
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    if a.is_cuda and torch.cuda.get_device_capability(a.device) >= (8, 0):
        return torch.addmm(out, a, b, beta=int(add), out_dtype=out.dtype, out=out)
    for start in range(0, len(a), ROWS):
        rows = out[start : start + ROWS]
        product = torch.mm(a[start : start + ROWS], b)
        rows.add_(product) if add else rows.copy_(product)
    return out
