"""Bytes that the layers of a trunk move outside matrix products and attention: counted by running them on a small model.

On a GPU such operations (norms, rotary embeddings, gates, casts, residuals, and their backward passes) take the time in which the
memory delivers their inputs and takes their outputs. Each operation is counted with the sizes of both, at one layer more and at
more tokens, so that what belongs to weights and to the ends of the model cancels out. The sizes grow in proportion to the sizes of
the layer: a model of a fraction of the width is counted, and multiplied.

Three ways to compute the layers:

- ``eager``: an operation after the other, as transformers does it.
- ``liger``: norms, rotary embeddings and gates are one pass each, with the inputs and outputs of Liger's kernels, which save their
  inputs for the backward pass (https://github.com/linkedin/Liger-Kernel, rms_norm.py, rope.py, swiglu.py); the rest as in eager.
- ``compiled``: everything between two products is one pass, the best that a compiler can do; calculated, not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.cells import BenchCell, Shape, Workload

KERNELS = ("eager", "liger", "compiled")
_PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product")
_FREE = (
    "view",
    "_unsafe_view",
    "reshape",
    "detach",
    "alias",
    "empty",
    "empty_like",
    "t",
    "transpose",
    "expand",
    "new_empty",
    "new_empty_strided",
)
_PICKS = ("gather", "index", "index_select", "embedding")
_TOKENS = 16


def name_of(operation: Any) -> str:
    """Return the name of an operation as it is dispatched, without that of its library and overload."""
    name: str = operation.name()
    return name.partition("::")[2].partition(".")[0]


def is_free(operation: Any) -> bool:
    """Whether an operation computes nothing: a view, or memory that is not filled."""
    return bool(operation.is_view) or operation.namespace == "prim" or name_of(operation) in _FREE


class Bytes(NamedTuple):
    """Bytes a token and layer."""

    forward: float
    backward: float


class Traffic(TorchDispatchMode):
    """Adds up the bytes of inputs and outputs of every operation but products, attention and views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._counting = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not (is_free(func) or name_of(func).startswith(_PRODUCTS)):
            read = args[1:] if name_of(func) in _PICKS else args  # of the first, as much as is returned
            self.add(tree_leaves((read, kwargs, found, found if read is not args else None)))
        return found

    def add(self, tensors: Iterable[Any]) -> None:
        """Count tensors as read or written once each."""
        if self._counting:
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))

    @contextmanager
    def one_pass(self, *tensors: torch.Tensor) -> Iterator[None]:
        """Count these tensors once, and nothing that happens inside."""
        self.add(tensors)
        self._counting = False
        try:
            yield
        finally:
            self._counting = True


def traffic(shape: Shape, tuning: str, kernels: str, *, apart: bool = False) -> Bytes:
    """Return what a layer of a model of this shape moves for a token, forward and backward.

    ``tuning``: ``full`` (float32 weights, products in bfloat16) or ``lora`` (bfloat16 weights, float32 adapters of rank 16).
    ``apart``: every linear layer casts its input by itself, and adapters theirs to float32 first, as autocast and peft do and
    alignkit does not.
    """
    if kernels == "compiled":
        return _at_best(shape, tuning)
    part = gcd(shape.hidden // shape.heads // 2, shape.intermediate)
    sizes = {"hidden": shape.hidden // part, "intermediate": shape.intermediate // part}
    small = replace(shape, name="small", vocabulary=32, layers=1, divide_rows=1, tied=True, **sizes)
    return Bytes(*(part * one for one in _of_a_token(small, tuning, kernels, apart)))


@lru_cache
def _of_a_token(shape: Shape, tuning: str, kernels: str, apart: bool) -> Bytes:
    """Return the bytes that a token more costs in a layer more."""
    sizes = [(layers, tokens) for layers in (1, 2) for tokens in (_TOKENS, 2 * _TOKENS)]
    found = [_counted(shape, tuning, kernels, apart, *size) for size in sizes]
    one, one_long, two, two_long = (np.array(each) for each in found)
    return Bytes(*((two_long - two) - (one_long - one)) / _TOKENS)


def _counted(shape: Shape, tuning: str, kernels: str, apart: bool, layers: int, tokens: int) -> Bytes:
    from alignkit_precision.casts import share_casts
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    from bench.models import adapter, build

    lora = tuning == "lora"
    work = Workload("traffic", 1, (tokens, tokens), (0, 0))
    model = build(BenchCell("sft", work, replace(shape, layers=layers), tuning, bf16=True, frozen_bf16=lora))
    trunk = model.model
    if lora:
        trunk = get_peft_model(model, adapter()).base_model.model.model
        for layer in (one for one in trunk.modules() if isinstance(one, LoraLayer)):
            layer.cast_input_dtype_enabled = apart
    if not apart:
        share_casts(trunk)
    counter = Traffic()
    with counter, torch.autocast("cpu", torch.bfloat16), fused(counter) if kernels == "liger" else nullcontext():
        states = trunk(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False).last_hidden_state
        forward = counter.bytes
        states.sum().backward()
    return Bytes(forward, counter.bytes - forward)


# ------------------------------------------------------------------ operations that Liger's kernels replace


def _once(counter: Traffic, work: Callable[..., Any], in_place: bool = False) -> Callable[..., Any]:
    """Return ``work`` as one pass that reads its inputs and writes its outputs; backward also reads the inputs, unless in place.

    In place, nothing is kept for the backward pass, and no memory is taken for the outputs.
    """

    class OnePass(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: torch.Tensor) -> Any:
            with counter.one_pass():
                found = work(*inputs)
                found = found if isinstance(found, tuple) else (found,)
            counter.add((*inputs, *found))
            if not in_place:
                ctx.save_for_backward(*inputs)
            return found if len(found) > 1 else found[0]

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            if in_place:
                counter.add((*gradients, *gradients))
                return gradients
            inputs = ctx.saved_tensors
            with counter.one_pass(*gradients, *inputs, *inputs):
                return tuple(torch.zeros_like(one) for one in inputs)

    return OnePass.apply  # type: ignore[no-any-return]


@contextmanager
def fused(counter: Traffic) -> Iterator[None]:
    """Let Llama's norms, rotary embeddings and gates be one pass each while the context lasts."""
    from transformers.models.llama import modeling_llama as llama

    norm = _once(counter, torch.clone)
    rotate = _once(counter, lambda q, k: (q.clone(), k.clone()), in_place=True)
    gate = _once(counter, lambda a, b: a * b)

    def mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down_proj(gate(self.gate_proj(x), self.up_proj(x)))
        return found

    with (
        patch.object(llama.LlamaRMSNorm, "forward", lambda self, x: norm(x)),
        patch.object(llama, "apply_rotary_pos_emb", lambda q, k, *_, **__: rotate(q, k)),
        patch.object(llama.LlamaMLP, "forward", mlp),
    ):
        yield


# ------------------------------------------------------------------ everything between two products in one pass


def _at_best(shape: Shape, tuning: str) -> Bytes:
    """Return the bytes if what lies between two products reads its inputs and writes its outputs once.

    In bytes of a token: ``x`` the residual stream, ``h`` a product of hidden size, ``q`` queries and keys, ``i`` one of the
    intermediate size.

        norm       x -> h (twice)                backward: gradients of the products' inputs (3 and 2 h), x, gradient of x -> x, h
        rotary     q -> q                        backward: q -> q
        gate       2 i -> i                      backward: gradient i, 2 i -> 2 i
        residual   h, x -> x (twice), in the pass of the next norm
        adapters   their products are read       backward: scaled gradient of the output, gradient of the input
    """
    width = shape.hidden // shape.heads
    keys = width * shape.key_value_heads
    x = shape.hidden * (2 if tuning == "lora" else 4)
    h, i = 2 * shape.hidden, 2 * shape.intermediate
    q = 2 * (shape.hidden + keys)
    forward = 2 * (h + x + x + h) + 2 * q + 3 * i
    backward = (3 + 2) * h + 2 * (x + x + x + h) + 2 * q + 5 * i
    if tuning == "lora":
        outputs = h + 2 * 2 * keys + h + 2 * i + h
        inputs = 3 * h + h + 2 * h + i
        forward, backward = forward + outputs, backward + 2 * outputs + inputs
    return Bytes(float(forward), float(backward))
