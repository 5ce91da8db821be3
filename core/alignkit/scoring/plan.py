"""The layout of a batch: the place of every token, the positions that are scored, and the token each predicts.

Letters in shapes: ``B`` rows and ``L`` columns of the model's input, ``N`` scored completion tokens, ``M`` scored prompt
tokens, ``S`` completions, ``G`` examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from alignkit.contract import AttentionKernel, Example, Layout, Segment
from alignkit.errors import DataError
from alignkit.system.device import on_device

Backend = Literal["packed", "rows", "padded", "plain"]
"""Layout and forward of a batch, fastest first:

``packed``: one row without padding, prompts shared, attention block by block; ``rows``: one row per example, prompt shared,
4-D masks; ``padded``: one row per completion, logits only where scored; ``plain``: the model's own forward, all logits.
"""

_Ints = npt.NDArray[np.int64]


class Wanted(NamedTuple):
    """Outputs of a forward besides log-probabilities, and the temperature of the latter."""

    values: bool = False
    """The critic's value of the state before every scored completion token."""
    entropy: bool | Literal["grad"] = False
    """Entropy of the distribution of every scored completion token, without gradient or ("grad") with it."""
    temperature: float = 1.0
    distributions: Callable[[Any], Any] | None = None
    """Function of the distributions over the vocabulary of the scored completion tokens."""


NOTHING_ELSE = Wanted()


@dataclass(frozen=True)
class Plan:
    """Input of one forward of the model and the tokens it scores, made by :func:`make_plan`.

    Scored tokens are ordered by example and completion in every layout.
    """

    backend: Backend
    input_ids: torch.Tensor  # [B, L]
    position_ids: torch.Tensor  # [B, L] position in the token's sequence
    branch: torch.Tensor  # [B, L] 0 prompt, k the k-th completion of the row, -1 padding
    source: torch.Tensor  # [N] flat position of the logits that predict the token
    targets: torch.Tensor  # [N] the predicted token
    sequence: torch.Tensor  # [N] the completion it belongs to
    lengths: torch.Tensor  # [S] scored tokens of each completion
    prompt_source: torch.Tensor  # [M]
    prompt_targets: torch.Tensor  # [M]
    prompt_row: torch.Tensor  # [M] the example it belongs to
    layout: Layout
    rows: int
    wanted: Wanted = NOTHING_ELSE
    kernels: Mapping[str, AttentionKernel] = field(default_factory=dict)
    """Kernels of packed attention by name: the first that can compute a layer does."""

    @property
    def attention_mask(self) -> torch.Tensor:
        """1 for tokens, 0 for padding, ``[B, L]``."""
        return (self.branch >= 0).long()

    @property
    def padded(self) -> bool:
        return sum(s.prompt + sum(s.completions) for s in self.layout.segments) < self.branch.numel()

    def to(self, device: torch.device | str) -> Plan:
        if torch.device(device) == self.input_ids.device:
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: on_device(tensor, device) for name, tensor in tensors.items()})  # type: ignore[arg-type]


class _Tree(NamedTuple):
    """A prompt and the completions that share it."""

    row: int
    prompt: _Ints
    completions: list[_Ints]
    masks: list[npt.NDArray[np.bool_] | None]
    scores_prompt: bool

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


def make_plan(
    examples: Sequence[Example],
    *,
    prompt: bool = False,
    backend: Backend = "packed",
    share: bool = True,
    pad_id: int = 0,
    wanted: Wanted = NOTHING_ELSE,
    kernels: Mapping[str, AttentionKernel] | None = None,
) -> Plan:
    """Lay out ``examples`` for one forward of the model.

    ``prompt`` scores the tokens of every prompt as well, once per prompt; ``share`` encodes a prompt once for all of its
    completions (``packed`` and ``rows`` only).

    Raises:
        DataError: an empty batch, prompt or completion, or a completion without a scored token, whose mean would be 0/0.
    """
    if not examples:
        raise DataError("the batch has no rows to score")
    share = share and backend in ("packed", "rows")
    trees = [tree for row, example in enumerate(examples) for tree in _trees(row, example, prompt, share)]
    starts, shape = _place(trees, packed=backend == "packed")
    return replace(_fill(trees, starts, shape, backend, len(examples), pad_id), wanted=wanted, kernels=kernels or {})


def _trees(row: int, example: Example, score_prompt: bool, share: bool) -> list[_Tree]:
    """Split an example into trees: one, or one per completion if the prompt is not shared."""
    tokens = np.asarray(example.prompt, dtype=np.int64)
    completions = [np.asarray(completion, dtype=np.int64) for completion in example.completions]
    if not len(tokens):
        raise DataError(f"row {example.id!r} has an empty prompt: the first token of a sequence cannot be scored")
    masks = [_mask(example, i, len(completion)) for i, completion in enumerate(completions)]
    if share or len(completions) < 2:
        return [_Tree(row, tokens, completions, masks, score_prompt)]
    pairs = enumerate(zip(completions, masks, strict=True))
    return [_Tree(row, tokens, [completion], [mask], score_prompt and i == 0) for i, (completion, mask) in pairs]


def _mask(example: Example, completion: int, length: int) -> npt.NDArray[np.bool_] | None:
    """Check and return the score mask of one completion (None: all tokens)."""
    name = f"completion {completion} of row {example.id!r}"
    if not length:
        raise DataError(f"{name} is empty")
    if example.masks is None or (given := example.masks[completion]) is None:
        return None
    mask = np.asarray(given, dtype=np.bool_)
    if len(mask) != length:
        raise DataError(f"the mask of {name} has {len(mask)} entries for {length} tokens")
    if not mask.any():
        raise DataError(f"{name} has no scored token")
    return mask


def _place(trees: Sequence[_Tree], *, packed: bool) -> tuple[list[int], tuple[int, int]]:
    """Return the flat start of each tree and the shape ``(B, L)`` of the input."""
    sizes = [tree.tokens for tree in trees]
    if packed:
        ends = np.cumsum(sizes).tolist()
        return [0, *ends[:-1]], (1, ends[-1])
    width = max(sizes)
    return [i * width for i in range(len(trees))], (len(trees), width)


def _fill(
    trees: Sequence[_Tree], starts: Sequence[int], shape: tuple[int, int], backend: Backend, rows: int, pad_id: int
) -> Plan:
    """Write the trees to their places and collect the scored positions."""
    ids = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
    positions = np.zeros_like(ids)
    branch = np.full_like(ids, -1)
    source: list[_Ints] = []
    targets: list[_Ints] = []
    prompt_source: list[_Ints] = []
    prompt_targets: list[_Ints] = []
    prompt_rows: list[_Ints] = []
    segments: list[Segment] = []
    for start, tree in zip(starts, trees, strict=True):
        width = len(tree.prompt)
        end = start + width
        segments.append(Segment(start, width, tuple(map(len, tree.completions))))
        ids[start:end], positions[start:end], branch[start:end] = tree.prompt, np.arange(width), 0
        if tree.scores_prompt:
            prompt_source.append(np.arange(start, end - 1))
            prompt_targets.append(tree.prompt[1:])
            prompt_rows.append(np.full(width - 1, tree.row))
        last = end - 1  # predicts the first token of every completion
        for k, (tokens, mask) in enumerate(zip(tree.completions, tree.masks, strict=True), 1):
            begin, end = end, end + len(tokens)
            ids[begin:end], positions[begin:end], branch[begin:end] = tokens, np.arange(width, width + len(tokens)), k
            predicts = np.arange(begin - 1, end - 1)
            predicts[0] = last
            source.append(predicts if mask is None else predicts[mask])
            targets.append(tokens if mask is None else tokens[mask])
    lengths = [len(tokens) for tokens in targets]
    return Plan(
        backend=backend,
        input_ids=torch.from_numpy(ids.reshape(shape)),
        position_ids=torch.from_numpy(positions.reshape(shape)),
        branch=torch.from_numpy(branch.reshape(shape)),
        source=_join(source),
        targets=_join(targets),
        sequence=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        lengths=torch.tensor(lengths, dtype=torch.long),
        prompt_source=_join(prompt_source),
        prompt_targets=_join(prompt_targets),
        prompt_row=_join(prompt_rows),
        layout=Layout(tuple(segments)),
        rows=rows,
    )


def _join(parts: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Scorer:
    """Scoring settings of a model: backend, whether prompts are shared, and why faster backends were rejected."""

    backend: Backend
    share: bool = True
    notes: tuple[str, ...] = ()
    pad_id: int = 0
    kernels: Mapping[str, AttentionKernel] = field(default_factory=dict)
    """Kernels of packed attention by name."""

    def __str__(self) -> str:
        """Return the backend, with the kernels it runs: ``packed (varlen)``."""
        return f"{self.backend} ({', '.join(self.kernels)})" if self.kernels else self.backend

    def plan(self, examples: Sequence[Example], *, prompt: bool = False, wanted: Wanted = NOTHING_ELSE) -> Plan:
        """Lay out ``examples`` for ``model(plan=...)``; the plan is on the CPU (see :meth:`Plan.to`)."""
        given: dict[str, Any] = {name: getattr(self, name) for name in ("backend", "share", "pad_id", "kernels")}
        return make_plan(examples, prompt=prompt, wanted=wanted, **given)
