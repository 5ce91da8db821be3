"""LoRA adapters by peft: loading one, or adding a new one to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.config import LoraConfig
from alignkit.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_adapter(model: PreTrainedModel, path: str, trainable: bool) -> PreTrainedModel:
    """Return ``model`` with the adapter in directory ``path``; raises :class:`ModelError` if it cannot be loaded."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)
    except Exception as error:
        raise ModelError(f"cannot load the adapter {path}: {first_line(error)}") from error


def add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int, task: str) -> PreTrainedModel:
    """Return ``model`` with a new adapter, initialised from ``seed``; raises :class:`ModelError` if peft refuses it."""
    import peft
    import torch

    options = {
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.target_modules,
        "use_dora": config.dora,
        "modules_to_save": config.modules_to_save,
        "task_type": task,
    }
    if clash := options.keys() & config.options.keys():
        raise ModelError(f"model.lora.options.{min(clash)} is set by model.lora itself")
    try:
        adapter = peft.LoraConfig(**options, **config.options)
        if getattr(model, "is_quantized", False):
            model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return peft.get_peft_model(model, adapter)
    except (ValueError, TypeError) as error:
        raise ModelError(f"model.lora cannot be applied to this model: {first_line(error)}") from error
