"""The plan of a run, without training: configuration resolved, data tokenised, parameters counted without weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignkit.config import RunConfig
from alignkit.contract import LoadedModel
from alignkit.data.checking import check_before_training
from alignkit.data.order.mixing import describe_mix, row_order
from alignkit.display.console import Console
from alignkit.models.suitable import memory_gib
from alignkit.rundir.directory import child_of
from alignkit.runs.prepare import RunPlan, load_parts, plan_run

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from alignkit.data.load import Data
    from alignkit.data.table.tokenised_rows import TokenisedRows
    from alignkit.settings.training_arguments import StepShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.55}
ADAM_STATES = 8
"""Bytes of AdamW's two float32 moments of a parameter."""


def plan_without_weights(config: RunConfig, *, rewards: bool = True) -> tuple[RunPlan, LoadedModel, Data, list[str]]:
    """Plan a run and check its data, without weights: the plan, the empty model, the data, and a line for each finding."""
    plan = plan_run(config, rewards=rewards)
    loaded, data = load_parts(config, plan.session, meta=True)
    return plan, loaded, data, check_before_training(data, config.data.check)


def show_dry_run(config: RunConfig) -> None:
    """Print what ``config`` comes to: parameters, trained share, rows, tokens, steps and an estimate of memory."""
    from rich.table import Table

    console = Console()
    if config.run.name is not None:
        child_of(Path(config.run.output), config.run.name)
    plan, loaded, data, findings = plan_without_weights(config)
    arguments, shape, method = plan.arguments, plan.shape, plan.session.method
    for line in [*data.report.lines(), *findings]:
        console.info(line)
    memory = estimate_memory(config, loaded, arguments, shape, data.train)
    order = row_order(config.data, data.train, config.run.seed, lambda: np.zeros(len(data.train)))
    per_epoch = order.per_epoch(shape.rows, method.reuse, whole="reward" in method.needs)
    steps = int(arguments.max_steps) if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * per_epoch)
    rows = steps * shape.rows  # answers sampled or not
    passes = rows / max(order.size, 1)
    mean = float(data.train.lengths().mean()) if len(data.train) else 0.0
    tokens = f"about {round(mean * rows):,}"
    if "reward" in method.needs:
        longest = rows * method.settings.max_new_tokens * getattr(method.settings, "group", 1)
        tokens += f" of prompts, at most {longest:,} of answers"
    lines = {
        "method": f"{method.name} {config.method.settings}",
        "model": f"{config.model.name}, {type(loaded.model).__name__}",
        "parameters": f"{loaded.parameters:,}, {loaded.trainable:,} trained ({loaded.trainable / loaded.parameters:.2%})",
        "rows": f"{len(data.train):,} to train on, {len(data.eval):,} held out",
        **({"mix": "; ".join(mixed)} if (mixed := list(describe_mix(config.data, order))) else {}),
        "step": f"{shape.rows} rows, cut into micro-batches of at most {shape.rows_per_micro_batch} rows "
        f"and {shape.tokens_per_micro_batch:,} tokens",
        "steps": f"{steps:,} ({passes / method.reuse.epochs:.2f} epochs)",
        "tokens": tokens,
        "learning rate": f"{arguments.learning_rate:g}, {getattr(arguments.lr_scheduler_type, 'value', arguments.lr_scheduler_type)}",
        "suites": ", ".join(plan.suites) or "none",
        "memory": f"about {sum(memory.values()):.2f} GiB: "
        + ", ".join(f"{part} {size:.2f}" for part, size in memory.items())
        + (f"; more than the {here:,.0f} GiB of this machine" if sum(memory.values()) > (here := memory_gib()) else ""),
    }
    table = Table(title="dry run: nothing is trained", title_justify="left", show_header=False)
    for name, value in lines.items():
        table.add_row(name, value)
    console.table(table)


def estimate_memory(
    config: RunConfig, loaded: LoadedModel, arguments: TrainingArguments, shape: StepShape, rows: TokenisedRows
) -> dict[str, float]:
    """Estimate the peak memory of one process by part, in GiB, with one micro-batch's activations.

    Activations: per token and layer about ten vectors of the hidden size and three of the feed-forward's, kept for the
    backward pass; with gradient checkpointing one vector a layer. Other optimizers keep less, attention masks more.
    """
    width = BYTES[config.model.dtype]
    per_weight = QUANTIZED_BYTES.get(config.model.quantization or "", width)
    frozen = loaded.parameters - loaded.trainable
    model = loaded.model.config
    hidden = int(getattr(model, "hidden_size", 0))
    feed_forward = int(getattr(model, "intermediate_size", None) or 4 * hidden)
    layers = int(getattr(model, "num_hidden_layers", 0))
    longest = int(rows.lengths().max(initial=0))
    mean = float(rows.lengths().mean()) if len(rows) else 0.0
    tokens = max(longest, min(shape.tokens_per_micro_batch, shape.rows_per_micro_batch * mean))
    kept = hidden if getattr(arguments, "gradient_checkpointing", False) else 10 * hidden + 3 * feed_forward
    plain_sgd = str(getattr(arguments.optim, "value", arguments.optim)) == "sgd"  # keeps no state
    activation_width = 2 if arguments.bf16 or arguments.fp16 else width
    sizes = {
        "weights": frozen * per_weight + loaded.trainable * width,
        "gradients": loaded.trainable * width,
        "optimizer": 0 if plain_sgd else loaded.trainable * ADAM_STATES,
        "activations": tokens * layers * kept * activation_width,
    }
    return {part: size / 2**30 for part, size in sizes.items()}
