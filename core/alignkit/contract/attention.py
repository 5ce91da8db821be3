"""Kernels of attention over a packed row: prompts, each followed by the completions that share it, without padding.

Letters in shapes: ``T`` tokens, ``H`` query heads, ``K`` key/value heads, ``D`` head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch


class Segment(NamedTuple):
    """Place of one prompt and its completions in a packed row."""

    start: int
    """Index of the prompt's first token."""
    prompt: int
    """Number of tokens of the prompt."""
    completions: tuple[int, ...]
    """Number of tokens of each completion; they follow the prompt one after another."""


class Layout:
    """The segments of a packed row, and what kernels derive from them, made once for all layers and passes."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make()`` returned when this key was first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class AttentionLayer(NamedTuple):
    """What a layer computes: a token attends to its prompt, to earlier tokens of its completion, and to itself.

    ``window`` restricts that to the last tokens by position, ``chunk`` to tokens of the same chunk of positions. The first
    token of every completion has the position that follows the prompt's last.
    """

    device: str
    dtype: torch.dtype
    heads: int
    key_heads: int
    head_size: int
    scale: float | None = None
    """None: ``D ** -0.5``."""
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    """Scores s become ``softcap * tanh(s / softcap)``."""


class AttentionKernel(ABC):
    """One way to compute attention over a packed row; an instance is an entry point of the group ``align.attention``."""

    devices: ClassVar[frozenset[str]] = frozenset()
    """Types of devices it runs on (empty: all)."""
    order: ClassVar[int] = 50
    """Kernels are tried in ascending order."""
    family: ClassVar[str] = ""
    """``flash``, ``flex`` or ``sdpa`` if this value of ``model.attention`` may choose it; its own name always does."""

    def __deepcopy__(self, memo: Any) -> AttentionKernel:
        return self  # a copy of a model runs the same kernels

    def refusal(self, layer: AttentionLayer) -> str | None:
        """Return why the kernel cannot compute ``layer``: a missing operator, a dtype, a window (None: it can)."""
        return None

    def outline(self) -> AttentionKernel:
        """Return a kernel that makes the same tensors in fewer operations, without their numbers: ``--dry-run`` adds them up."""
        return self

    @abstractmethod
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, layer: AttentionLayer
    ) -> torch.Tensor:
        """Return attention ``[1, H, T, D]``, differentiable, of query ``[1, H, T, D]``, key and value ``[1, K, T, D]``."""
