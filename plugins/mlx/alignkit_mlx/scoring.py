"""The layout of a micro-batch and the scores of its tokens.

Letters in shapes: ``G`` prompts of ``P`` tokens, ``S`` rows of ``C`` tokens, ``N`` scored completion tokens, ``M`` scored prompt
tokens, ``H`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import torch
from alignkit.contract import Example
from alignkit.scoring.plan import Plan, make_plan


class Layout(NamedTuple):
    """The input of a forward pass and the places of the scores."""

    rows: mx.array  # [S, C] whole sequences, or completions
    prompts: mx.array | None  # [G, P] prompts that the completions share
    owner: mx.array  # [S] prompt of each row
    lengths: mx.array  # [S] tokens of it
    source: mx.array  # [N + M] places in [G * P] and [S * C] of the hidden states that predict the tokens
    targets: mx.array  # [N + M]
    scored: int  # N


def make_layout(examples: Sequence[Example], *, prompt: bool, share: bool, pad: int = 0) -> Layout:
    """Lay out rows padded on the right; prompts are shared where that saves tokens."""
    prompts, sizes = [len(e.prompt) for e in examples], [len(e.completions) for e in examples]
    pairs = [(len(e.prompt), len(completion)) for e in examples for completion in e.completions]
    longest = max((n for _, n in pairs), default=0)
    together = len(prompts) * max(prompts) + len(pairs) * longest
    share = share and together < len(pairs) * max(map(sum, pairs), default=0)
    plan = make_plan(examples, prompt=prompt, backend="rows", share=share, pad_id=pad)
    source = torch.cat([plan.source, plan.prompt_source]).numpy()
    given, rows = None, plan.input_ids.numpy()
    if share:
        given, rows, place = _apart(plan, np.array(prompts), np.array(sizes), longest)
        source = place[source]
    return Layout(
        _ints(rows),
        None if given is None else _ints(given),
        _ints(np.repeat(np.arange(len(prompts)), sizes)),
        _ints(np.repeat(prompts, sizes)),
        _ints(source),
        _ints(torch.cat([plan.targets, plan.prompt_targets]).numpy()),
        len(plan.targets),
    )


def _apart(plan: Plan, lengths: Any, sizes: Any, longest: int) -> tuple[Any, Any, Any]:
    """Return prompts ``[G, P]``, completions ``[S, C]``, and the place among both of each token of a plan with a row a prompt."""
    branch, position = plan.branch.numpy(), plan.position_ids.numpy()
    groups, widest = np.arange(len(lengths))[:, None], int(lengths.max())
    prompts, own = np.zeros((len(lengths), widest), np.int64), np.zeros((int(sizes.sum()), longest), np.int64)
    row = (np.cumsum(sizes) - sizes)[:, None] + branch - 1
    column = position - lengths[:, None]
    place = np.where(branch == 0, groups * widest + position, prompts.size + row * longest + column)
    both, used = np.concatenate([prompts.ravel(), own.ravel()]), branch >= 0
    both[place[used]] = plan.input_ids.numpy()[used]
    return both[: prompts.size].reshape(prompts.shape), both[prompts.size :].reshape(own.shape), place.ravel()


def _ints(array: Any) -> mx.array:
    return mx.array(array.astype(np.int32))


class Instead:
    """An object with some attributes of its own; a call returns ``result``."""

    def __init__(self, of: Any, **own: Any) -> None:
        self.__dict__.update(own, _of=of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.result


def logits_of(model: Any, hidden: mx.array) -> mx.array:
    """Return the logits ``[n, V]`` of hidden states ``[n, H]`` by the model's own code, with them in place of its trunk."""
    given = Instead(model, model=Instead(model.model, result=hidden[None]))
    logits: mx.array = type(model).__call__(given, mx.zeros((1, len(hidden)), mx.int32))
    return logits[0]


def token_scores(logits: mx.array, targets: mx.array, temperature: float, entropy: bool) -> list[mx.array]:
    """Return log-probabilities of ``targets`` and entropies (zeros unless wanted), float32 ``[n]`` each."""
    logits = logits.astype(mx.float32)
    logits = logits if temperature == 1.0 else logits / temperature
    whole = mx.logsumexp(logits, axis=-1)
    logps = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - whole
    if not entropy:
        return [logps, mx.zeros_like(logps)]
    return [logps, whole - (mx.exp(logits - whole[:, None]) * logits).sum(-1)]
