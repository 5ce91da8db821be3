"""LoRA adapters by peft: loading one, or adding a new one to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.config import LoraConfig
from alignkit.errors import ModelError, first_line
from alignkit.models.weights import require_fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_adapter(model: PreTrainedModel, path: str, trainable: bool) -> PreTrainedModel:
    """Return ``model`` with the adapter in directory ``path``; raises :class:`ModelError` if it cannot be loaded or does not fit."""
    from peft import PeftModel, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    try:
        loaded = PeftModel.from_pretrained(model, path, is_trainable=trainable, ignore_mismatched_sizes=True)
        # Once more for the names that do not fit, of which from_pretrained only warns.
        found = set_peft_model_state_dict(loaded, load_peft_weights(path, device="cpu"), ignore_mismatched_sizes=True)
    except Exception as error:
        raise ModelError(f"cannot load the adapter {path}: {first_line(error)}") from error
    tensors = loaded.state_dict()
    present = {tensor.data_ptr() for name, tensor in tensors.items() if name not in found.missing_keys}
    own = [name for name in found.missing_keys if f".{loaded.active_adapter}" in name and "prompt_encoder" not in name]
    require_fit(path, [name for name in own if tensors[name].data_ptr() not in present], found.unexpected_keys)
    return loaded


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
