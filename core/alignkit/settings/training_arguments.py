"""``transformers.TrainingArguments`` and the size of an optimizer step, from the ``train:`` section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.config import RunConfig
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


def argument_default(key: str) -> Any:
    """Return the value of a key of ``train:`` that is not set: alignkit's default or that of ``TrainingArguments``."""
    from transformers import TrainingArguments

    found = DEFAULTS.get(key, getattr(TrainingArguments, key, None))
    return getattr(found, "value", found)


class StepShape(NamedTuple):
    """The size of an optimizer step, and the maximum size of a micro-batch."""

    rows: int
    """Rows of an optimizer step over all ranks."""
    rows_per_micro_batch: int
    tokens_per_micro_batch: int


def tokens_at_once(config: RunConfig) -> int:
    """Return ``train.tokens_per_micro_batch``, or what holds until it is measured."""
    return 8192 if config.train.tokens_per_micro_batch == "auto" else config.train.tokens_per_micro_batch


def training_arguments(config: RunConfig, output: Path) -> tuple[TrainingArguments, StepShape]:
    """Return the training arguments of a run with checkpoints in ``output``, and its step shape.

    ``gradient_accumulation_steps`` becomes part of the step size: one Trainer batch is one optimizer step, which the engine
    divides into micro-batches of at most ``per_device_train_batch_size`` rows and ``tokens_per_micro_batch`` tokens.
    """
    import torch
    from transformers import TrainingArguments

    given = DEFAULTS | _best_model(config) | config.train.arguments
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
    if arguments.n_gpu > 1 and processes == 1:
        raise ConfigError(
            f"one process sees {arguments.n_gpu} GPUs: use all of them with --processes auto, or select one with "
            "CUDA_VISIBLE_DEVICES"
        )
    rows = arguments.per_device_train_batch_size
    step = rows * accumulation * max(arguments.world_size, processes)
    return arguments, StepShape(step, rows, tokens_at_once(config))


def watched_suite(config: RunConfig) -> str | None:
    """Return the suite whose metric chooses the best model; None: a held-out metric does, or nothing.

    Raises ``PluginError`` for a suite that is not installed.
    """
    metric = config.train.stop_on or config.train.arguments.get("metric_for_best_model") or ""
    suite, slash, _ = metric.removeprefix("eval_").partition("/")
    if not slash:
        return None
    if metric.startswith("eval_") or config.train.stop_on is None:  # eval_rewards/margins, also without eval_
        return suite if any(entry.name == suite for entry in registry.entries("align.suites")) else None
    registry.find("align.suites", suite)
    return suite


def _best_model(config: RunConfig) -> dict[str, Any]:
    """Return the arguments that early stopping and the best model need: evaluations, and checkpoints at the same steps."""
    train, given = config.train, config.train.arguments
    stops = train.stop_on is not None or train.early_stopping_patience is not None
    if not (stops or given.get("load_best_model_at_end") or given.get("save_strategy") == "best"):
        return {}
    metric = given.get("metric_for_best_model") or train.stop_on or "loss"
    if train.stop_on not in (None, metric):
        raise ConfigError(f"train.stop_on ({train.stop_on}) and train.metric_for_best_model ({metric}) differ: set one")
    saves = given.get("save_strategy")
    strategy = given.get("eval_strategy") or (saves if saves in ("steps", "epoch") else "steps")
    if strategy == "no":
        raise ConfigError("train.eval_strategy is no, but the best model is found by evaluations: use steps or epoch")
    if saves not in (None, strategy, "best") and given.get("load_best_model_at_end", True):
        raise ConfigError(f"train.save_strategy ({saves}) must equal train.eval_strategy ({strategy}), or be best")
    every = given.get("eval_steps") or config.eval.during.get(watched_suite(config) or "") or given.get("save_steps")
    every = every or 0.1  # ten times a run
    return {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "eval_steps": every,
        "save_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": not metric.removeprefix("eval_").startswith("loss"),  # loss, loss/nll
    }
