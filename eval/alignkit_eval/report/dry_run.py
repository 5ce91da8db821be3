"""What a planned run comes to, for ``align run --dry-run``: parameters, rows, steps, tokens and an estimate of memory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from alignkit import LoadedModel, RunConfig
from alignkit.contract.registry import provided
from alignkit.data.load import Data
from alignkit.data.order.mixing import describe_mix, row_order
from alignkit.display.console import Console
from alignkit.models.suitable import memory_gib
from alignkit.rundir.directory import child_of
from alignkit.runs.prepare import RunPlan, load_parts, plan_run
from alignkit.scoring.backends import innermost
from alignkit.settings.strategies import SHARDING, processes_of, strategy_name

QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.55}
ADAM_STATES = 8
"""Bytes of AdamW's two float32 moments of a parameter."""

SHARED = {
    "zero1": ("optimizer",),
    "zero2": ("gradients", "optimizer"),
    **dict.fromkeys(("zero3", "fsdp"), ("weights", "gradients", "optimizer")),
}
"""Parts of the memory that the processes of a strategy divide among them; the others are whole in each."""


@dataclass(frozen=True)
class DryRun:
    """All of a run that can be known without weights."""

    plan: RunPlan
    loaded: LoadedModel
    """The model on the meta device: its modules and the sizes of their parameters."""
    data: Data
    findings: list[str]
    """A line for each finding of the data check."""


def plan_without_weights(config: RunConfig, *, rewards: bool = True) -> DryRun:
    """Plan a run and check its data, without weights."""
    plan = plan_run(config, rewards=rewards)
    loaded, data = load_parts(config, plan.session, meta=True)
    check = provided("align.checks", "data")
    return DryRun(plan, loaded, data, check(data, config.data.check) if check else [])


def print_dry_run(config: RunConfig) -> None:
    """Print what ``config`` comes to."""
    from rich.table import Table

    console = Console()
    if config.run.name is not None:
        child_of(Path(config.run.output), config.run.name)
    dry = plan_without_weights(config)
    for line in [*dry.data.report.lines(), *dry.findings]:
        console.info(line)
    table = Table(title="dry run: nothing is trained", title_justify="left", show_header=False)
    for name, value in describe_dry_run(dry).items():
        table.add_row(name, value)
    console.table(table)


def describe_dry_run(dry: DryRun) -> dict[str, str]:
    """Return what the run comes to, by subject: parameters, trained share, rows, tokens, steps and an estimate of memory."""
    config, loaded, train = dry.plan.config, dry.loaded, dry.data.train
    arguments, shape, method = dry.plan.arguments, dry.plan.shape, dry.plan.session.method
    memory = estimate_memory(dry)
    order = row_order(config.data, train, config.run.seed, lambda: np.zeros(len(train)))
    per_epoch = order.per_epoch(shape.rows, method.reuse, whole="reward" in method.needs)
    steps = int(arguments.max_steps) if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * per_epoch)
    rows = steps * shape.rows  # answers sampled or not
    passes = rows / max(order.size, 1)
    mean = float(train.lengths().mean()) if len(train) else 0.0
    tokens = f"about {round(mean * rows):,}"
    if "reward" in method.needs:
        longest = rows * method.settings.max_new_tokens * getattr(method.settings, "group", 1)
        tokens += f" of prompts, at most {longest:,} of answers"
    return {
        "method": f"{method.name} {config.method.settings}",
        "model": f"{config.model.name}, {type(loaded.model).__name__}",
        "parameters": f"{loaded.parameters:,}, {loaded.trainable:,} trained ({loaded.trainable / loaded.parameters:.2%})",
        **({"precision": ", ".join(map(" ".join, types.items()))} if (types := precision(dry)) else {}),
        "rows": f"{len(train):,} to train on, {len(dry.data.eval):,} held out",
        **({"mix": "; ".join(mixed)} if (mixed := list(describe_mix(config.data, order))) else {}),
        "step": f"{shape.rows} rows, cut into micro-batches of at most {shape.rows_per_micro_batch} rows "
        f"and {shape.tokens_per_micro_batch:,} tokens",
        **_processes(config),
        "steps": f"{steps:,} ({passes / method.reuse.epochs:.2f} epochs)",
        "tokens": tokens,
        "learning rate": f"{arguments.learning_rate:g}, {getattr(arguments.lr_scheduler_type, 'value', arguments.lr_scheduler_type)}",
        "suites": ", ".join(dry.plan.suites) or "none",
        "memory": f"about {sum(memory.values()):.2f} GiB: "
        + ", ".join(f"{part} {size:.2f}" for part, size in memory.items())
        + (f"; more than the {here:,.0f} GiB of this machine" if sum(memory.values()) > (here := memory_gib()) else ""),
    }


def precision(dry: DryRun) -> dict[str, str]:
    """Return the types of the weights and of the matrix products."""
    describe = provided("align.models", "precision")
    return describe(innermost(dry.loaded.model), dry.plan.config) if describe else {}


def _processes(config: RunConfig) -> dict[str, str]:
    """Return the lines about several processes: their number, their strategy, and the keys of ``train:`` it sets."""
    if (total := processes_of(config)) == 1:
        return {}
    keys = {key: config.train.arguments[key] for key in SHARDING if key in config.train.arguments}
    stands_for = "".join(f"; train.{key}: {json.dumps(value)}" for key, value in keys.items())
    nodes = f"{config.run.nodes} node{'s' * (config.run.nodes > 1)}"
    return {"processes": f"{total} on {nodes}", "strategy": f"{strategy_name(config)}{stands_for}"}


def estimate_memory(dry: DryRun) -> dict[str, float]:
    """Estimate the peak memory of one process by part, in GiB, with one micro-batch's activations.

    Activations: per token and layer about ten vectors of the hidden size and three of the feed-forward's, kept for the
    backward pass; with gradient checkpointing one vector a layer. Other optimizers keep less, attention masks more, and a
    strategy that divides the weights needs one layer whole at a time.
    """
    config, loaded, rows = dry.plan.config, dry.loaded, dry.data.train
    arguments, shape = dry.plan.arguments, dry.plan.shape
    weights = list(loaded.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in weights if p.requires_grad)
    per_weight = QUANTIZED_BYTES.get(config.model.quantization or "")
    frozen = sum(p.numel() * (per_weight or p.element_size()) for p in weights if not p.requires_grad)
    model = loaded.model.config
    hidden = int(getattr(model, "hidden_size", 0))
    feed_forward = int(getattr(model, "intermediate_size", None) or 4 * hidden)
    layers = int(getattr(model, "num_hidden_layers", 0))
    longest = int(rows.lengths().max(initial=0))
    mean = float(rows.lengths().mean()) if len(rows) else 0.0
    tokens = max(longest, min(shape.tokens_per_micro_batch, shape.rows_per_micro_batch * mean))
    kept = hidden if getattr(arguments, "gradient_checkpointing", False) else 10 * hidden + 3 * feed_forward
    ranks, shared = processes_of(config), SHARED.get(strategy_name(config), ())
    plain_sgd = str(getattr(arguments.optim, "value", arguments.optim)) == "sgd"  # keeps no state
    half = "16" in precision(dry).get("products", "")
    sizes = {
        "weights": frozen + trained,
        "gradients": trained,
        "optimizer": 0 if plain_sgd else loaded.trainable * ADAM_STATES,
        "activations": tokens * layers * kept * (2 if half else 4),
    }
    return {part: size / 2**30 / (ranks if part in shared else 1) for part, size in sizes.items()}
