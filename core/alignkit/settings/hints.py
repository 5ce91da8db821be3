"""What an unknown key probably means: a key of another section, or its name in another library."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from alignkit.config import RunConfig
from alignkit.errors import suggest

_NAMES: Mapping[str, str] = {
    "train.learning_rate": "lr learn_rate",
    "train.num_train_epochs": "epoch epochs n_epochs num_epochs max_epochs",
    "train.max_steps": "steps n_steps num_steps iterations iters max_iters total_steps",
    "train.per_device_train_batch_size": (
        "bs batch batch_size train_batch_size per_device_batch_size micro_batch_size mini_batch_size"
    ),
    "train.per_device_eval_batch_size": "eval_batch_size",
    "train.gradient_accumulation_steps": (
        "grad_accum gradient_accumulation grad_accum_steps accumulation_steps accumulate_grad_batches"
    ),
    "train.warmup_steps": "warmup num_warmup_steps",
    "train.warmup_steps, in which a value below 1 is a share of all steps": "warmup_ratio",
    "train.weight_decay": "wd decay",
    "train.adam_beta1": "beta1",
    "train.adam_beta2": "beta2",
    "train.adam_epsilon": "eps epsilon adam_eps",
    "train.max_grad_norm": "grad_clip clip_grad clip_grad_norm gradient_clipping gradient_clip_val",
    "train.optim": "optimizer",
    "train.lr_scheduler_type": "scheduler lr_scheduler lr_schedule",
    "train.eval_strategy": "evaluation_strategy",
    "train.use_cpu": "no_cuda cpu",
    "train.early_stopping_patience": "patience early_stopping",
    "train.report_to": "logger loggers tracker wandb",
    "data.source": "dataset dataset_name dataset_path data_path data_file data_files train_file train_data",
    "data.eval_source": "eval_data eval_dataset eval_file validation_file val_data val_file",
    "data.eval_split": "val_size test_size validation_split",
    "data.max_length": (
        "max_len max_seq_length max_seq_len seq_len seq_length sequence_length sequence_len cutoff_len context_length "
        "model_max_length block_size"
    ),
    "data.limit": "max_samples max_train_samples num_samples",
    "data.workers": "num_workers num_proc dataset_num_proc",
    "model.name": "model_name model_path model_name_or_path base_model pretrained_model_name_or_path model_id",
    "model.dtype": "torch_dtype precision",
    "model.quantization": "load_in_4bit load_in_8bit quantize",
    "model.lora": "use_lora use_peft peft peft_config lora_config",
    "model.lora.r": "rank lora_r lora_rank",
    "model.lora.alpha": "lora_alpha",
    "model.lora.dropout": "lora_dropout",
    "model.lora.target_modules": "lora_target lora_target_modules targets",
    "run.output": "output_dir out out_dir save_dir",
    "run.name": "run_name exp_name",
    "run.seed": "random_seed random_state",
}
ALIASES: Mapping[str, str] = {alias: key for key, aliases in _NAMES.items() for alias in aliases.split()}
"""Names from other libraries and earlier versions -> dotted keys."""


def known_keys(model_type: type[BaseModel]) -> list[str]:
    """Return the keys of a model: the alias of each field, else its name."""
    return [field.alias or name for name, field in model_type.model_fields.items()]


def did_you_mean(key: str, known: list[str]) -> str:
    """Return ``', did you mean "train.learning_rate"?'`` for a key that is not among ``known``, or an empty string.

    In this order: its name here, the only section that has it, the closest of ``known``.

    >>> did_you_mean("lr", []), did_you_mean("max_length", []), did_you_mean("lamda", ["lambda"])
    (', did you mean "train.learning_rate"?', ', did you mean "data.max_length"?', ', did you mean "lambda"?')
    """
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    homes = [f"{name}.{key}" for name, kind in sections.items() if isinstance(kind, type) and key in known_keys(kind)]
    found, comma, remark = (ALIASES.get(key) or (homes[0] if len(homes) == 1 else "")).partition(",")
    return f', did you mean "{found}"{comma}{remark}?' if found else suggest(key, known)
