"""LoRA adapters by peft: loading one, or adding a new one to a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.config import LoraConfig
from alignkit.errors import ModelError, first_line, suggest
from alignkit.models.directory import blamed, read_object
from alignkit.models.weights import require_fit
from alignkit.system.environment import memory_gib

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_adapter(model: PreTrainedModel, path: str, trainable: bool) -> PreTrainedModel:
    """Return ``model`` with the adapter in directory ``path``; raises :class:`ModelError` if it cannot be loaded or does not fit."""
    from peft import PeftConfig, PeftModel, PeftType, get_peft_model, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    file = Path(path) / "adapter_config.json"
    if (kind := read_object(file).get("peft_type")) not in list(PeftType):
        raise ModelError(f"{file}: peft_type {kind!r} is none of those that peft has")

    try:
        if model.device.type == "meta":
            config = PeftConfig.from_pretrained(path)
            config.inference_mode = not trainable
            return _in_float32(get_peft_model(model, config))
        loaded = PeftModel.from_pretrained(model, path, is_trainable=trainable, ignore_mismatched_sizes=True)
        # Once more, for modules_to_save: peft's load result leaves them out, and their copies had the type of the base.
        _in_float32(loaded)
        found = set_peft_model_state_dict(loaded, load_peft_weights(path, device="cpu"), ignore_mismatched_sizes=True)
    except Exception as error:
        raise blamed(f"cannot load the adapter {path}", [file], error, partial(_try_adapter, model)) from error
    tensors = loaded.state_dict()
    present = {tensor.data_ptr() for name, tensor in tensors.items() if name not in found.missing_keys}
    own = [name for name in found.missing_keys if f".{loaded.active_adapter}" in name and "prompt_encoder" not in name]
    # peft saves resized embeddings that are in modules_to_save under these names as well.
    again = (".modules_to_save.", ".original_module.")
    foreign = [name for name in found.unexpected_keys if not any(part in name for part in again)]
    require_fit(path, [name for name in own if tensors[name].data_ptr() not in present], foreign)
    return loaded


def _in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Store trained weights in float32: peft copies modules_to_save in the type of the base."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _try_adapter(model: PreTrainedModel, directory: str) -> None:
    """Add the adapter to a model like ``model`` without weights."""
    import torch
    from peft import PeftModel

    with torch.device("meta"):
        empty = type(model)(model.config)
    PeftModel.from_pretrained(empty, directory, low_cpu_mem_usage=True, ignore_mismatched_sizes=True)


def saved_rows(path: str) -> int:
    """Return the number of embeddings saved with the adapter in directory ``path``; 0 if it has none."""
    from safetensors import safe_open

    if not (file := Path(path) / "adapter_model.safetensors").is_file():
        return 0
    with safe_open(file, "pt") as tensors:
        saved = [name for name in list(tensors.keys()) if "lora_" not in name]
        names = [name for name in saved if name.endswith("lm_head.weight") or ".embed" in name or ".wte." in name]
        return max((int(tensors.get_slice(name).get_shape()[0]) for name in names), default=0)


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
    sizes = (
        module.in_features + module.out_features for module in model.modules() if isinstance(module, torch.nn.Linear)
    )
    if (needed := config.r * sum(sizes) * 4 / 2**30) > (memory := memory_gib()):
        raise ModelError(
            f"model.lora.r {config.r:,} needs {needed:,.0f} GiB for the adapter, and this machine has {memory:,.0f} GiB of "
            "memory: choose a rank below the model's hidden size"
        )
    modules = [name for name, _ in model.named_modules()]
    for given in config.modules_to_save or ():  # peft ignores those it does not find
        if not any(f".{name}".endswith(f".{given}") for name in modules):
            known = sorted({name.rpartition(".")[2] for name in modules if name and not name[-1].isdigit()})
            raise ModelError(f"model.lora.modules_to_save: the model has no module {given}{suggest(given, known)}")
    try:
        adapter = peft.LoraConfig(**options, **config.options)
        if getattr(model, "is_quantized", False):
            model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _in_float32(peft.get_peft_model(model, adapter))
    except Exception as error:  # of whatever kind, as its options are peft's
        raise ModelError(f"model.lora cannot be applied to this model: {first_line(error)}") from error
