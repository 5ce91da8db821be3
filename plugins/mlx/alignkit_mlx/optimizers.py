"""Optimizers with the numbers of torch's and transformers', by their names in ``train.optim``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx


class Rates(NamedTuple):
    """The numbers of a step for one weight: float32 scalars."""

    learning_rate: mx.array
    scale: mx.array
    """Factor of the gradient."""
    decay: mx.array
    first: mx.array
    """Of adamw: ``1 - beta1^t``; of adafactor: the decay of the second moments."""
    second: mx.array
    """Of adamw: ``sqrt(1 - beta2^t)``."""


class Optimizer:
    """The updates of all trained weights."""

    def __init__(self, arguments: Any, weights: Sequence[mx.array], decays: Sequence[bool]) -> None:
        self.kind = KINDS[str(getattr(arguments.optim, "value", arguments.optim))](arguments)
        self.decays = [arguments.weight_decay if decay else 0.0 for decay in decays]
        self.steps = 0
        self.state: list[list[mx.array]] = [self.kind.begin(weight) for weight in weights]
        self._step = mx.compile(self._one, shapeless=True) if self.kind.elementwise else self._one

    def update(
        self, weights: list[mx.array], gradients: list[mx.array], learning_rate: float, scale: float
    ) -> list[mx.array]:
        """Return the weights after a step along ``scale`` times the gradients."""
        self.steps += 1
        corrections = self.kind.corrections(self.steps)
        found = []
        for weight, gradient, own, decay in zip(weights, gradients, self.state, self.decays, strict=True):
            numbers = [mx.array(n, mx.float32) for n in (learning_rate, scale, decay, *corrections)]
            found.append(self._step(weight, gradient, own, numbers))
        self.state = [after for _, after in found]
        mx.eval(found)
        return [new for new, _ in found]

    def _one(self, weight: mx.array, gradient: mx.array, own: list[mx.array], numbers: list[mx.array]) -> Any:
        rates, floats = Rates(*numbers), [one.astype(mx.float32) for one in own]
        scaled = gradient.astype(mx.float32) * rates.scale
        new, after = self.kind.step(weight.astype(mx.float32), scaled, floats, rates)
        return new.astype(weight.dtype), [one.astype(before.dtype) for one, before in zip(after, own, strict=True)]


class AdamW:
    """``torch.optim.AdamW`` (arXiv:1711.05101)."""

    elementwise = True

    def __init__(self, arguments: Any) -> None:
        self.betas, self.epsilon = (arguments.adam_beta1, arguments.adam_beta2), arguments.adam_epsilon

    def begin(self, weight: mx.array) -> list[mx.array]:
        return [mx.zeros_like(weight), mx.zeros_like(weight)]

    def corrections(self, step: int) -> tuple[float, float]:
        return 1 - self.betas[0] ** step, math.sqrt(1 - self.betas[1] ** step)

    def step(self, weight: mx.array, gradient: mx.array, state: list[mx.array], rates: Rates) -> Any:
        mean = state[0] + (1 - self.betas[0]) * (gradient - state[0])
        square = self.betas[1] * state[1] + (1 - self.betas[1]) * gradient * gradient
        size = mx.sqrt(square) / rates.second + self.epsilon
        weight = weight * (1 - rates.learning_rate * rates.decay)
        return weight - rates.learning_rate / rates.first * (mean / size), [mean, square]


class SGD:
    """``torch.optim.SGD`` without momentum, as Trainer makes it."""

    elementwise = False

    def __init__(self, arguments: Any) -> None:
        pass

    def begin(self, weight: mx.array) -> list[mx.array]:
        return []

    def corrections(self, step: int) -> tuple[float, float]:
        return 0.0, 0.0

    def step(self, weight: mx.array, gradient: mx.array, state: list[mx.array], rates: Rates) -> Any:
        return weight - rates.learning_rate * (gradient + rates.decay * weight), state


class Adafactor(SGD):
    """``transformers.Adafactor`` (arXiv:1804.04235) as Trainer makes it: without relative steps, scaling and first moment."""

    def begin(self, weight: mx.array) -> list[mx.array]:
        if weight.ndim < 2:
            return [mx.zeros(weight.shape, mx.float32)]
        rows, columns = weight.shape[:-1], weight.shape[:-2] + weight.shape[-1:]
        return [mx.zeros(rows, mx.float32), mx.zeros(columns, mx.float32)]

    def corrections(self, step: int) -> tuple[float, float]:
        return 1 - math.pow(step, -0.8), 0.0

    def step(self, weight: mx.array, gradient: mx.array, state: list[mx.array], rates: Rates) -> Any:
        square, beta = gradient * gradient + 1e-30, rates.first
        means = [square] if len(state) == 1 else [square.mean(-1), square.mean(-2)]
        state = [beta * own + (1 - beta) * mean for own, mean in zip(state, means, strict=True)]
        if len(state) == 1:
            update = mx.rsqrt(state[0]) * gradient
        else:
            rows, columns = state
            row = mx.rsqrt(rows / rows.mean(-1, keepdims=True))[..., None]
            update = row * mx.rsqrt(columns)[..., None, :] * gradient
        update = rates.learning_rate * update / mx.maximum(1.0, mx.sqrt((update * update).mean()))
        return weight * (1 - rates.learning_rate * rates.decay) - update, state


KINDS: dict[str, Any] = {"adamw_torch": AdamW, "adamw_torch_fused": AdamW, "sgd": SGD, "adafactor": Adafactor}
"""Optimizers by the values of ``train.optim``."""
