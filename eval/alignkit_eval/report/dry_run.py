"""What a planned run comes to, for ``align run --dry-run``: parameters, rows, steps, tokens and an estimate of memory."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from alignkit import RunConfig
from alignkit.contract.registry import provided
from alignkit.data.order import RowOrder, row_order
from alignkit.display.console import Console
from alignkit.rundir.directory import child_of
from alignkit.scoring.backends import innermost
from alignkit.settings.strategies import SHARDING, processes_of, strategy_name
from alignkit.system.distributed import rank
from alignkit.system.environment import memory_gib, peak_memory_gb

from alignkit_eval.report.extrapolation import Measured, Work, evaluations, extrapolate
from alignkit_eval.report.planned import DryRun, plan_without_weights


def print_dry_run(config: RunConfig, *, measure: bool = False) -> None:
    """Print what ``config`` comes to; ``measure``: run a few real steps as well, in all processes of the run."""
    from rich.table import Table

    console = Console(quiet=rank() > 0)
    if config.run.name is not None:
        child_of(Path(config.run.output), config.run.name)
    dry = plan_without_weights(config)
    libraries = 0 if dry.plan.arguments.device.type == "cuda" else resident_bytes()
    found = _measured(config) if measure else None
    for line in [*dry.data.report.lines(), *dry.findings]:
        console.info(line)
    title = f"dry run: {len(found.steps)} steps were tried, nothing is kept" if found else "dry run: nothing is trained"
    table = Table(title=title, title_justify="left", show_header=False)
    lines = describe_dry_run(dry, libraries)
    for name, value in (lines | describe_trial(dry, found) if found else lines).items():
        table.add_row(name, value)
    console.table(table)


def _measured(config: RunConfig) -> Measured:
    from alignkit_eval.report.trial import measure  # imports what training does

    return measure(config)


def describe_trial(dry: DryRun, found: Measured) -> dict[str, str]:
    """Return the lines of the table that the trial of a run adds."""
    config, method = dry.plan.config, dry.plan.session.method
    steps = steps_of(dry)
    suites, held_out = evaluations(config, dry.plan.arguments, steps)
    tokens = float(dry.data.train.lengths().mean()) * dry.plan.shape.rows if "reward" not in method.needs else 0.0
    work = Work(steps, method.reuse.steps, suites, held_out, tokens, processes_of(config), config.run.price_per_hour)
    return {
        "measured memory": f"{found.memory:.2f} GiB of {'each' if work.processes > 1 else 'the'} process"
    } | extrapolate(found, work)


def describe_dry_run(dry: DryRun, libraries: int) -> dict[str, str]:
    """Return what the run comes to, by subject: parameters, trained share, rows, tokens, steps and an estimate of memory."""
    config, loaded, train = dry.plan.config, dry.loaded, dry.data.train
    arguments, shape, method = dry.plan.arguments, dry.plan.shape, dry.plan.session.method
    order, steps = _order(dry), steps_of(dry)
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
        **({"engine": config.run.engine} if config.run.engine != "torch" else {}),
        "parameters": f"{loaded.parameters:,}, {loaded.trainable:,} trained ({loaded.trainable / loaded.parameters:.2%})",
        **({"precision": ", ".join(map(" ".join, types.items()))} if (types := precision(dry)) else {}),
        "rows": f"{len(train):,} to train on, {len(dry.data.eval):,} held out",
        **({"mix": "; ".join(mixed)} if (mixed := list(order.described(config.data.names))) else {}),
        "step": f"{shape.rows} rows, cut into micro-batches of at most {shape.rows_per_micro_batch} rows "
        f"and {shape.tokens_per_micro_batch:,} tokens",
        **_processes(config),
        "steps": f"{steps:,} ({passes / method.reuse.epochs:.2f} epochs)",
        "tokens": tokens,
        "learning rate": f"{arguments.learning_rate:g}, {getattr(arguments.lr_scheduler_type, 'value', arguments.lr_scheduler_type)}",
        "suites": ", ".join(dry.plan.suites) or "none",
        "memory": describe_memory(dry, libraries),
    }


def precision(dry: DryRun) -> dict[str, str]:
    """Return the types of the weights and of the matrix products."""
    describe = provided("align.models", "precision") if dry.plan.config.run.engine == "torch" else None
    return describe(innermost(dry.loaded.model), dry.plan.config) if describe else {}


def _order(dry: DryRun) -> RowOrder:
    train = dry.data.train
    return row_order(dry.plan.config.data, train, dry.plan.config.run.seed, lambda: np.zeros(len(train)))


def steps_of(dry: DryRun) -> int:
    """Return the optimizer steps of the run."""
    arguments, method = dry.plan.arguments, dry.plan.session.method
    per_epoch = _order(dry).per_epoch(dry.plan.shape.rows, method.reuse, whole="reward" in method.needs)
    return int(arguments.max_steps) if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * per_epoch)


def describe_memory(dry: DryRun, libraries: int) -> str:
    """Return the estimated peak of one process and its parts; ``libraries`` are the bytes of a process that trains nothing."""
    if (engine := dry.plan.config.run.engine) != "torch":
        return f"not estimated for engine {engine}: --measure tries a few steps"
    # Imported when the libraries are measured already, because a run does not import it.
    from alignkit_eval.report.memory import estimate_memory

    found, here = estimate_memory(dry, libraries), memory_gib()
    text = f"about {found.gib:.2f} GiB: " + ", ".join(
        f"{part} {size / 2**30:.2f}" for part, size in found.parts.items()
    )
    if not found.traced:
        text += " (activations by a rule of thumb: the model could not be traced without its weights)"
    return text + (f"; more than the {here:,.0f} GiB of this machine" if found.gib > here else "")


def resident_bytes() -> int:
    """Return the memory of this process, once it has imported what training imports."""
    importlib.import_module("alignkit.training.trainer")
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return round(peak_memory_gb() * 2**30)


def _processes(config: RunConfig) -> dict[str, str]:
    """Return the lines about several processes: their number, their strategy, and the keys of ``train:`` it sets."""
    if (total := processes_of(config)) == 1:
        return {}
    keys = {key: config.train.arguments[key] for key in SHARDING if key in config.train.arguments}
    stands_for = "".join(f"; train.{key}: {json.dumps(value)}" for key, value in keys.items())
    nodes = f"{config.run.nodes} node{'s' * (config.run.nodes > 1)}"
    return {"processes": f"{total} on {nodes}", "strategy": f"{strategy_name(config)}{stands_for}"}
