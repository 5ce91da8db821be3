"""Memory of a computation that is not carried out: its operations run on tensors that have shapes and types but no numbers.

Every tensor that the model, the scorer, the loss, the backward pass and the optimizer make is seen where it is made and where
it is freed, so that the sizes are those of the code that will run, for any architecture, adapter, dtype and optimizer.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from alignkit.contract import Example
from alignkit.models.sharding import is_layer
from alignkit.scoring import attention
from alignkit.scoring.backends import innermost, install_forward
from alignkit.scoring.classifier import ClassifierPolicy
from alignkit.scoring.head import ACCELERATOR, CPU, install_head
from alignkit.scoring.plan import Scorer
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import BACKENDS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from alignkit_eval.report.heap import Heap

if TYPE_CHECKING:
    from alignkit_eval.report.planned import DryRun

log = logging.getLogger(__name__)

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
"""Names that models give their attention."""

HALF = (torch.bfloat16, torch.float16)
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)

KERNEL = 550_000
"""Bytes of a kernel of oneDNN for a product of half precision of given shapes, with ideep's description of it.

Measured with torch 2.13: 470 to 560 kB, whatever the shapes.
"""

KERNELS_KEPT = 1024
"""Kernels that oneDNN keeps where nothing else is set."""


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The memory that is alive while operations run, in bytes, with the part of the run that each tensor belongs to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "weights"
        self.alive: Counter[str] = Counter()
        """Bytes by part."""
        self.at_peak: Counter[str] = Counter()
        """Bytes by part when most memory was alive."""
        self.heap = Heap()
        self.products: set[Any] = set()
        """Products of half precision, by operation and shapes."""
        self.held: list[Any] = []
        """Objects whose tensors stay alive."""
        self._blocks: dict[int, tuple[int, str]] = {}

    @property
    def peak(self) -> int:
        """Bytes alive at the peak."""
        return self.at_peak.total()

    def kernels(self, batches: int) -> int:
        """Return the bytes of the kernels that oneDNN keeps of the products of ``batches`` batches of different lengths."""
        kept = int(os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_KEPT))
        return KERNEL * min(len(self.products) * batches, kept)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the tensors made inside the block as ``part``."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._made(value.untyped_storage())
        if func.overloadpacket in PRODUCTS and out.dtype in HALF:
            self.products.add((func, tuple((tuple(a.shape), a.stride()) for a in args if isinstance(a, torch.Tensor))))
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._blocks:
            return  # a view, or changed in place
        self._blocks[key] = size, self.part
        weakref.finalize(storage, self._freed, key).atexit = False
        self.alive[self.part] += size
        self.heap.allocate(key, size)
        if self.alive.total() > self.at_peak.total():
            self.at_peak = self.alive.copy()

    def retag(self, tensor: torch.Tensor, part: str) -> None:
        """Count a tensor that was made as part of something else as ``part``."""
        key = tensor.untyped_storage()._cdata
        size, before = self._blocks[key]
        self._blocks[key] = size, part
        self.alive[before] -= size
        self.alive[part] += size

    def _freed(self, key: int) -> None:
        size, part = self._blocks.pop(key)
        self.alive[part] -= size
        self.heap.free(key, size)


def without_numbers(model: torch.nn.Module) -> None:
    """Replace the parameters and buffers of a model on the meta device, in place; call it inside :func:`traced`.

    The new ones belong to the CPU as far as operations can tell, so that the same kernels are chosen. Tied weights stay tied.
    """
    made: dict[int, Any] = {}

    def replacement(tensor: torch.Tensor) -> Any:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            trained = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if trained else empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: replacement(tensor) for name, tensor in tensors.items() if tensor is not None})


@contextmanager
def traced() -> Iterator[Trace]:
    """Run the operations of the block without numbers, and record their memory."""
    with FakeTensorMode(allow_non_fake_inputs=True), Trace() as trace:
        yield trace


@contextmanager
def tag_modules(model: torch.nn.Module, trace: Trace) -> Iterator[None]:
    """Count what the modules of attention and the head make as theirs, and the gradients of parameters as gradients."""
    head = getattr(innermost(model), "get_output_embeddings", lambda: None)()
    before: list[str] = []
    hooks: list[Any] = []

    def enter(part: str, *_: Any) -> None:
        before.append(trace.part)
        trace.part = part

    def leave(*_: Any) -> None:
        trace.part = before.pop()

    for name, module in model.named_modules():
        part = "head" if module is head else "attention" if name.rpartition(".")[2] in ATTENTION else ""
        if part:
            hooks += [module.register_forward_pre_hook(partial(enter, part))]
            hooks += [module.register_forward_hook(leave)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        kept: Any = parameter
        hooks.append(kept.register_post_accumulate_grad_hook(lambda p: trace.retag(p.grad, "gradients")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def first_layers(model: Any) -> Iterator[None]:
    """Leave the first layers only, one of each kind and two at least: without gradient, the memory of one is that of all."""
    base = innermost(model)
    kinds = getattr(base.config.get_text_config(), "layer_types", None) or []
    count = max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    whole = {stack: stack._modules for stack in stacks if is_layer(base, next(iter(stack), None))}
    for stack, layers in whole.items():
        stack._modules = dict(list(layers.items())[:count])
    try:
        yield
    finally:
        for stack, layers in whole.items():
            stack._modules = layers


def policy_without_numbers(dry: DryRun, row: list[Example]) -> Any:
    """Return the policy of a run with the first scoring backend that can score ``row``; None: none can.

    Which backend agrees with plain forwards cannot be known without weights. The output layer is cut into the chunks of the
    run's device, although its tensors are those of a CPU here.
    """
    model, config = dry.loaded.model, dry.plan.config.model
    base = innermost(model)
    method = dry.plan.session.method
    builds = any(hasattr(base_class, "align_build_model") for base_class in type(method).__mro__)
    if builds and "reward" not in method.needs:  # what samples answers is a language model
        return ClassifierPolicy(_Classifier(model))
    install_forward(base)
    if (head := base.get_output_embeddings()) is not None:
        install_head(head, chunks=CPU if dry.plan.arguments.device.type == "cpu" else ACCELERATOR)
    original, pad_id = base.config._attn_implementation, dry.loaded.tokenizer.pad_token_id or 0
    for backend in BACKENDS if config.scorer == "auto" else (config.scorer,):
        if backend in ("packed", "rows") and getattr(base, "_is_stateful", True):
            continue
        scorer = Scorer(backend, not config.dropout, pad_id=pad_id)
        try:
            if backend == "packed":
                attention.register()
                kernels = attention.usable_kernels(config.attention, dry.plan.arguments.device.type)
                scorer = replace(scorer, kernels={name: kernel.outline() for name, kernel in kernels.items()})
            base.set_attn_implementation(attention.NAMES[original] if backend == "packed" else original)
            policy = ModelPolicy(model, scorer)
            with first_layers(model):
                policy.score(row, grad=False)
        except Exception as error:  # models raise all kinds of errors for a layout that is not theirs
            log.debug("%s scoring was not traced: %s", backend, error)
            continue
        return policy
    return None


class _Classifier(torch.nn.Module):
    """A language model as a reward model: its trunk, and one number of the last position."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = innermost(model).config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        trunk = innermost(self.model).base_model
        hidden = trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return SimpleNamespace(logits=hidden[:, -1, :1])
