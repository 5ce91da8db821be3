"""``transformers.TrainingArguments`` and the size of an optimizer step, from the ``train:`` section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.config import RunConfig, split_words
from alignkit.contract import registry
from alignkit.errors import ConfigError
from alignkit.settings.strategies import SHARDING, processes_of
from alignkit.system.distributed import world_size

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


def tokens_at_once(config: RunConfig) -> int:
    """Return ``train.tokens_per_micro_batch``, or what holds until it is measured."""
    return 8192 if config.train.tokens_per_micro_batch == "auto" else config.train.tokens_per_micro_batch


def trackers(config: RunConfig) -> list[str]:
    """Return the services that ``train.report_to`` names; its other names are callbacks of transformers."""
    named = split_words(config.train.arguments.get("report_to") or [])
    return [name for name in named if name in registry.usable("align.services")]


def training_arguments(config: RunConfig, output: Path) -> tuple[TrainingArguments, StepShape]:
    """Return the training arguments of a run with checkpoints in ``output``, and its step shape.

    ``gradient_accumulation_steps`` becomes part of the step size: one Trainer batch is one optimizer step, which the engine
    divides into micro-batches of at most ``per_device_train_batch_size`` rows and ``tokens_per_micro_batch`` tokens.
    """
    import torch
    from transformers import TrainingArguments

    given = DEFAULTS | best_settings(config)[1] | config.train.arguments
    accumulation = int(given.pop("gradient_accumulation_steps", 1))
    if (processes := processes_of(config)) > 1 == world_size():  # a dry run: nothing is shared between processes here
        given = {key: value for key, value in given.items() if key not in SHARDING}
    given.pop("fsdp", None)  # the model is sharded as it is loaded, not by accelerate
    gpu = torch.cuda.is_available() and not given.get("use_cpu", False)
    if config.run.strategy == "zero2":
        given.pop("bf16", None)  # DeepSpeed would store the weights in it; the model's forward casts them
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
        raise ConfigError(f"train: {' '.join(str(error).split())}") from error
    ours = trackers(config)
    arguments.report_to = [name for name in arguments.report_to if name not in ours]
    if arguments.n_gpu > 1 and processes == 1:
        raise ConfigError(
            f"one process sees {arguments.n_gpu} GPUs: use all of them with --processes auto, or select one with "
            "CUDA_VISIBLE_DEVICES"
        )
    rows = arguments.per_device_train_batch_size
    step = rows * accumulation * max(arguments.world_size, processes)
    return arguments, StepShape(step, rows, tokens_at_once(config))


def best_settings(config: RunConfig) -> tuple[str | None, dict[str, Any]]:
    """Return the suite whose metric chooses the best model, if one does, and the arguments that finding it needs.

    Raises :class:`ConfigError` for keys that contradict each other and ``PluginError`` for a suite that is not installed.
    """
    found = registry.provided("align.callbacks", "best-settings")
    return found(config) if found else (None, {})
