"""Gradient checkpointing of an mlx-lm model: each layer is computed again in the backward pass.

``mx.checkpoint`` differentiates by the arguments of a function only, so weights, and keys and values of shared prompts, are
passed as such. mlx-lm's own checkpointing knows neither these nor dropout, which must be the same both times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from alignkit_mlx.shared import Shared


class Checkpoints:
    """Whether layers are computed again, and the seed of their dropout."""

    def __init__(self) -> None:
        self.on = False
        self.seed = 0
        self._calls = 0

    def begin(self, *, on: bool, seed: int) -> None:
        self.on, self.seed, self._calls = on, seed, 0

    def run(self, function: Callable[..., Any], owner: Any, weights: Any, *arguments: Any, **named: Any) -> Any:
        """Return ``function(*arguments)``; of its computation only ``weights``, a tree of ``owner``'s, and arguments are kept."""
        self._calls += 1
        seed = self.seed + self._calls

        def inner(weights: Any, *arguments: Any, **named: Any) -> Any:
            mx.random.seed(seed)
            owner.update(weights)
            return function(*arguments, **named)

        found = mx.checkpoint(inner)(weights, *arguments, **named)
        owner.update(weights)
        return found

    def install(self, layers: Sequence[Any]) -> None:
        """Let layers be computed again."""
        for layer in layers:
            plain = type(layer)
            layer.__class__ = type(plain.__name__, (plain,), {"__call__": self._again(plain.__call__)})

    def _again(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(layer: Any, *arguments: Any, **named: Any) -> Any:
            if not self.on:
                return plain(layer, *arguments, **named)
            cache = next((one for one in (*arguments, *named.values()) if isinstance(one, Shared)), None)

            def inner(kept: list[mx.array], *arguments: Any, **named: Any) -> list[Any]:
                if cache is not None:
                    cache.kept = kept
                return [plain(layer, *arguments, **named), [] if cache is None else cache.kept]

            weights, kept = layer.trainable_parameters(), [] if cache is None else cache.kept
            out, kept = self.run(inner, layer, weights, kept, *arguments, **named)
            if cache is not None:
                cache.kept = kept
            return out

        return call
