"""A trial of what training is made of, before anything is loaded."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from alignkit.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import TrainingArguments


def try_trainer(arguments: TrainingArguments) -> None:
    """Build a ``Trainer`` of one weight with its optimizer and scheduler: it refuses what would fail after start-up.

    Trackers, optimizers and kernels whose packages are missing, schedulers without their settings and the like.
    """
    import torch
    from transformers import PretrainedConfig, Trainer

    if arguments.deepspeed or arguments.fsdp:  # which change the arguments they are given
        return
    given = copy.copy(arguments)
    given.output_dir = "."
    model = torch.nn.Linear(1, 1)
    model.config = PretrainedConfig()
    try:
        recomputes, options = checkpointing(given)
        if recomputes:
            _try_checkpointing(**options)
        trainer = Trainer(model, given, eval_dataset=[{}])
        if not given.optim_target_modules:
            trainer.create_optimizer_and_scheduler(2)
    except (ValueError, TypeError, RuntimeError, ImportError, AttributeError, KeyError) as error:
        raise ConfigError(f"train: {first_line(error)}") from error


def checkpointing(arguments: TrainingArguments) -> tuple[bool, dict[str, Any]]:
    """Return whether activations are computed again in the backward pass, and how; older transformers call it otherwise."""
    name = "activation_checkpointing" if hasattr(arguments, "activation_checkpointing") else "gradient_checkpointing"
    return bool(getattr(arguments, name)), getattr(arguments, f"{name}_kwargs") or {}


def _try_checkpointing(every_n_layers: Any = 1, offload: Any = False, **options: Any) -> None:
    """Run a checkpointed forward pass with the values of ``train.activation_checkpointing_kwargs``."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def layer(x: Any) -> Any:
        return x

    try:
        if type(every_n_layers) is not int or every_n_layers < 1 or type(offload) is not bool:
            raise ValueError("every_n_layers must be a whole number from 1 on, and offload true or false")
        checkpoint(layer, torch.zeros(1, requires_grad=True), **{"use_reentrant": False, **options})
    except Exception as error:
        raise ConfigError(f"train.activation_checkpointing_kwargs: {first_line(error)}") from error
