"""Gradient checkpointing of an mlx-lm model: each layer is computed again in the backward pass.

``mx.checkpoint`` differentiates by the arguments of a function only, so weights, and keys and values of shared prompts, are
passed as such.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from alignkit_mlx.arrays import Weight, placed
from alignkit_mlx.scoring import Shared


class Checkpoints:
    """Whether layers are computed again, and the seed of their dropout."""

    def __init__(self) -> None:
        self.on = False
        self.seed = 0
        self._calls = 0

    def begin(self, *, on: bool, seed: int) -> None:
        self.on, self.seed, self._calls = on, seed, 0

    def run(self, function: Callable[..., Any], weights: Sequence[Weight], *arguments: Any) -> Any:
        """Return ``function(*arguments)``, of which only weights and arguments are kept."""
        self._calls += 1
        seed = self.seed + self._calls

        def inner(arrays: list[mx.array], *given: Any) -> Any:
            mx.random.seed(seed)  # the same dropout when it is computed again
            with placed(weights, arrays):
                return function(*given)

        return mx.checkpoint(inner)([weight.module[weight.key] for weight in weights], *arguments)

    def install(self, layers: Sequence[Any], weights: Sequence[Weight]) -> list[Weight]:
        """Let layers be computed again, and return the weights that are in none of them."""
        rest = list(weights)
        for layer in layers:
            inside = {id(module) for module in layer.modules()}
            own = [weight for weight in weights if id(weight.module) in inside]
            rest = [weight for weight in rest if id(weight.module) not in inside]
            self._install(layer, own)
        return rest

    def _install(self, layer: Any, weights: list[Weight]) -> None:
        plain = type(layer).__call__

        def call(layer: Any, *arguments: Any, **named: Any) -> Any:
            if not self.on:
                return plain(layer, *arguments, **named)
            cache = next((one for one in (*arguments, *named.values()) if isinstance(one, Shared)), None)
            now, places = copy.copy(cache), [i for i, one in enumerate(arguments) if _differentiable(one)]
            kept = [now.keys, now.values] if now is not None and now.second else []

            def again(given: list[mx.array], kept: list[mx.array]) -> list[Any]:
                filled, own = dict(zip(places, given, strict=True)), copy.copy(now)
                if kept and own is not None:
                    own.keys, own.values = kept

                def replaced(one: Any) -> Any:
                    return own if isinstance(one, Shared) else one

                positional = [filled.get(i, replaced(one)) for i, one in enumerate(arguments)]
                out = plain(layer, *positional, **{name: replaced(one) for name, one in named.items()})
                return [out] if own is None else [out, own.keys, own.values]

            out, *found = self.run(again, weights, [arguments[i] for i in places], kept)
            if cache is not None:
                cache.keys, cache.values = found
            return out

        layer.__class__ = type(type(layer).__name__, (type(layer),), {"__call__": call})


def _differentiable(value: Any) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)
