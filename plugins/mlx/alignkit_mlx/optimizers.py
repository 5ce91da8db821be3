"""MLX's optimizers with the numbers of torch's and transformers', by their names in ``train.optim``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.optimizers import SGD, Adafactor, AdamW


def _adamw(arguments: Any) -> partial[AdamW]:
    betas = [arguments.adam_beta1, arguments.adam_beta2]
    return partial(AdamW, betas=betas, eps=arguments.adam_epsilon, bias_correction=True)


KINDS: dict[str, Any] = {
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw,
    "sgd": lambda _: SGD,
    "adafactor": lambda _: partial(Adafactor, relative_step=False, scale_parameter=False),
}


class Optimizer:
    """The updates of all trained weights, computed in float32."""

    def __init__(self, arguments: Any, weights: Sequence[mx.array], decays: Sequence[bool]) -> None:
        kind = KINDS[str(getattr(arguments.optim, "value", arguments.optim))](arguments)
        made = [kind(learning_rate=0.0, weight_decay=decay) for decay in (0.0, arguments.weight_decay)]
        rules: list[Any] = [partial(_update, optimizer) for optimizer in made]
        if isinstance(made[0], AdamW):  # the only one that a single compiled function computes for weights of any shape
            rules = [mx.compile(rule, shapeless=True) for rule in rules]
        self._rules = [rules[decay] for decay in decays]
        self.steps = 0
        self.state: list[dict[str, mx.array]] = [{} for _ in weights]
        for weight, own in zip(weights, self.state, strict=True):
            if isinstance(made[0], Adafactor):
                made[0].init_single(mx.zeros(weight.shape, mx.float32), own)
            elif not isinstance(made[0], SGD):  # whose momentum is 0
                made[0].init_single(weight, own)

    def update(
        self, weights: list[mx.array], gradients: list[mx.array], learning_rate: float, scale: float
    ) -> list[mx.array]:
        """Return the weights after a step along ``scale`` times the gradients."""
        self.steps += 1
        numbers = mx.array(learning_rate), mx.array(scale), mx.array(self.steps)
        steps = zip(self._rules, weights, gradients, self.state, strict=True)
        found = [rule(weight, gradient, own, *numbers) for rule, weight, gradient, own in steps]
        mx.eval(found)
        self.state = [state for _, state in found]
        return [weight for weight, _ in found]


def _update(
    optimizer: Any, weight: mx.array, gradient: mx.array, state: Any, rate: mx.array, scale: mx.array, step: mx.array
) -> tuple[mx.array, dict[str, mx.array]]:
    optimizer.state = {"learning_rate": rate, "step": step}
    after = {name: array.astype(mx.float32) for name, array in state.items()}
    scaled = gradient.astype(mx.float32) * scale
    new = optimizer.apply_single(scaled, weight.astype(mx.float32), after)
    return new.astype(weight.dtype), {name: array.astype(state[name].dtype) for name, array in after.items()}
