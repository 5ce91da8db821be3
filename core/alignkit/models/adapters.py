"""Part of models: _load_adapter, _add_adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.config import LoraConfig
from alignkit.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _load_adapter(model: PreTrainedModel, path: str, trainable: bool) -> PreTrainedModel:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)
    except Exception as error:
        raise ModelError(f"cannot load the adapter {path}: {first_line(error)}") from error


def _add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int, task: str) -> PreTrainedModel:
    import peft
    import torch

    known = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "modules_to_save", "task_type"}
    clash = known & set(config.options)
    if clash:
        raise ModelError(f"model.lora.options.{min(clash)} is set by model.lora itself")
    try:
        adapter = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target_modules,
            use_dora=config.dora,
            modules_to_save=config.modules_to_save,
            task_type=task,
            **config.options,
        )
        if getattr(model, "is_quantized", False):
            model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return peft.get_peft_model(model, adapter)
    except (ValueError, TypeError) as error:
        raise ModelError(f"model.lora does not fit this model: {first_line(error)}") from error
