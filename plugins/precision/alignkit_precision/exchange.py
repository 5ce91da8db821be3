"""Layers of one model exchanged for others that shall compute the same: kept to that model, put back, and compared.

A package that exchanges layers may do so for every model of a kind, by replacing names in the module that defines the kind. Such names
are put back at once: other models of the process (a teacher, the next run of a sweep) stay as they are, and the model itself is
given what it needs of them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from alignkit.errors import first_line
from alignkit.scoring.backends import text_config
from alignkit.scoring.evaluating import undisturbed
from alignkit.scoring.probe import agree, probe_rows
from alignkit.scoring.scorer import install

_ABSENT = object()
_SHARED = ("transformers.models.", "torch.nn")
"""Modules whose names other models share."""
_STATE = "_alignkit_exchanged"
_EXACT, _ROUNDED = 1e-2, 0.3
"""Most that gradients may be apart, over their norm: of float32, and of half precision, whose rounding adds up over many layers."""

Context = Callable[[], AbstractContextManager[Any]]


def exchange(model: Any, swap: Callable[[], object]) -> None:
    """Let ``swap`` exchange layers or functions of ``model``, and of no other model; :func:`put_back` undoes it."""
    put_back(model)
    named = {name: vars(part) for name, part in sys.modules.items() if name.startswith(_SHARED)}
    parts = [vars(module) for module in model.modules()]
    before = [(space, dict(space)) for space in [*named.values(), *parts]]
    try:
        swap()
        swapped = {name: _changed(space, old) for name, (space, old) in zip(named, before, strict=False)}
        for name, (space, old) in zip(named, before, strict=False):
            _restore(space, old, swapped[name])
        for module in model.modules():
            _rebind(module, swapped.get(type(module).__module__, {}))
    except BaseException:
        for space, old in before:
            _restore(space, old, _changed(space, old))
        raise
    changes = [(space, old, _changed(space, old)) for space, old in before]
    model.__dict__[_STATE] = [change for change in changes if change[2]]


def put_back(model: Any) -> None:
    """Undo :func:`exchange`."""
    for change in model.__dict__.pop(_STATE, ()):
        _restore(*change)


def _changed(space: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Return what has been added to a namespace or replaced in it."""
    return {name: value for name, value in space.items() if value is not old.get(name, _ABSENT)}


def _restore(space: dict[str, Any], old: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name in old:
            space[name] = old[name]
        else:
            space.pop(name, None)


def _rebind(module: Any, swapped: dict[str, Any]) -> None:
    """Let a module's forward call the functions that were swapped in the namespace of its class.

    Classes are left out: a module that exists is exchanged itself.
    """
    functions = {name: value for name, value in swapped.items() if not isinstance(value, type)}
    forward = inspect.unwrap(type(module).forward)
    if "forward" in vars(module) or not functions.keys() & {*forward.__code__.co_names}:
        return
    own = FunctionType(
        forward.__code__,
        {**forward.__globals__, **functions},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(own, module)


class Comparison:
    """What a model computes before its layers are exchanged, on the probe's rows, to be compared with what it does then.

    Compared are log-probabilities by the installed scorer, logits of sequences padded on the left, and the gradients of the
    log-probabilities with respect to the embeddings and the trained vectors (of norms), dropout being off.

    Args:
        model: the innermost model.
        contexts: what the passes run in, each with whether its products are exact up to the rounding of float32.
    """

    def __init__(self, model: Any, contexts: Sequence[tuple[Context, bool]]) -> None:
        self._model, self._contexts = model, contexts
        self._expected = [_computed(model, context) for context, _ in contexts]

    def disagreement(self) -> str | None:
        """Return how the model differs now (None: it agrees). Any exception of its layers is such a difference."""
        for (context, exact), (values, gradient) in zip(self._contexts, self._expected, strict=True):
            try:
                now, slope = _computed(self._model, context)
            except Exception as error:  # kernels raise all kinds of errors
                return f"fails ({type(error).__name__}: {first_line(error)})"
            difference = (now - values).abs()
            if not agree(self._model, difference, exact=exact):
                return f"changes log-probabilities by up to {float(difference.max()):.2g} nats"
            away = float((slope - gradient).norm() / gradient.norm().clamp_min(1e-12))
            if not away <= (_EXACT if exact else _ROUNDED):
                return f"changes gradients by {away:.2g} of their norm"
        return None


def _computed(model: Any, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and gradients, each as one vector."""
    rows, pad_id = probe_rows(text_config(model))
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    with undisturbed(model), _frozen_matrices(model), torch.enable_grad(), context():
        values, leaves = [], list(vectors)
        with _embeddings(model, leaves):
            if model.get_output_embeddings() is not None:
                scored = model(plan=install(model).plan(rows, prompt=True).to(model.device))
                values += [scored.completions, scored.prompts]
            values.append(_padded(model, [[*row.prompt, *row.completions[0]] for row in rows], pad_id))
        # Weighted differently, so that gradients of equal terms do not cancel.
        total = sum((part.float() * (1 + torch.arange(len(part), device=part.device) % 3)).sum() for part in values)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    return torch.cat([v.detach().float() for v in values]), torch.cat(
        [g.float().flatten() for g in found if g is not None]
    )


def _padded(model: Any, rows: list[list[int]], pad_id: int) -> torch.Tensor:
    """Return the log-probabilities of next tokens (or a classifier's logits) of sequences padded on the left, as generation has them."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
    if logits.ndim < 3:
        return logits.float().flatten()
    logps: torch.Tensor = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return logps[mask[:, :-1].bool()]


@contextmanager
def _frozen_matrices(model: Any) -> Iterator[None]:
    """Spare the gradients of matrices, which need as much memory as the matrices."""
    trained = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def _embeddings(model: Any, leaves: list[torch.Tensor]) -> Iterator[None]:
    """Add what the embeddings of every pass in the block return to ``leaves``, so that gradients reach it."""

    def leaf(_module: Any, _given: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(leaf)
    try:
        yield
    finally:
        handle.remove()
