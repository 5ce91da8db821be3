"""``transformers.TrainingArguments`` and the size of an optimizer step, from the ``train:`` section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.config import RunConfig
from alignkit.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "logging_steps": 10,
    "logging_first_step": True,
    "report_to": [],
    "save_total_limit": 2,
}
"""alignkit's defaults, used where neither the user, the demo nor the method sets a value."""


class StepShape(NamedTuple):
    """The size of an optimizer step, and the maximum size of a micro-batch."""

    rows: int
    """Rows of an optimizer step over all ranks."""
    rows_per_micro_batch: int
    tokens_per_micro_batch: int


def training_arguments(config: RunConfig, output: Path) -> tuple[TrainingArguments, StepShape]:
    """Return the training arguments of a run with checkpoints in ``output``, and its step shape.

    ``gradient_accumulation_steps`` becomes part of the step size: one Trainer batch is one optimizer step, which the engine
    divides into micro-batches of at most ``per_device_train_batch_size`` rows and ``tokens_per_micro_batch`` tokens.
    """
    import torch
    from transformers import TrainingArguments

    given = DEFAULTS | _early_stopping(config) | config.train.arguments
    accumulation = int(given.pop("gradient_accumulation_steps", 1))
    gpu = torch.cuda.is_available() and not given.get("use_cpu", False)
    if gpu and not {"bf16", "fp16"} & set(given) and config.model.dtype == "float32":
        given["bf16"] = torch.cuda.is_bf16_supported()
    owned = {
        "output_dir": str(output),
        "seed": config.run.seed,
        "gradient_accumulation_steps": 1,
        "use_cpu": not gpu,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # it hides NaN and synchronises with the device at every micro-batch
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "no",
    }
    try:
        arguments = TrainingArguments(**(given | owned))
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"train: {first_line(error)}") from error
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"one process sees {arguments.n_gpu} GPUs: start one process per GPU with torchrun --nproc-per-node, "
            "or select one GPU with CUDA_VISIBLE_DEVICES"
        )
    rows = arguments.per_device_train_batch_size
    shape = StepShape(rows * accumulation * arguments.world_size, rows, config.train.tokens_per_micro_batch)
    return arguments, shape


def _early_stopping(config: RunConfig) -> dict[str, Any]:
    """Return the arguments early stopping needs: evaluation and checkpoint at the same steps, the best one loaded at the end."""
    if config.train.early_stopping_patience is None:
        return {}
    given = config.train.arguments
    every = given.get("eval_steps") or given.get("save_steps") or 500
    return {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": every,
        "save_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
