"""The trial of ``align run --dry-run --measure``: three real optimizer steps, and one batch of every evaluation."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from alignkit import RunConfig
from alignkit.contract import RowKind, Suite, Target
from alignkit.data.load import Data
from alignkit.data.order import RowOrder
from alignkit.data.table.tokenised_rows import TokenisedRows
from alignkit.errors import AlignError
from alignkit.runs.parts import engine_parts
from alignkit.runs.prepare import PreparedRun, RunPlan, load_start_policy, plan_run, prepare
from alignkit.runs.references import References, scored_splits
from alignkit.runs.saving import release
from alignkit.scoring.evaluating import undisturbed
from alignkit.scoring.ranks import share
from alignkit.scoring.reference import score_rows
from alignkit.system.environment import forget_peak_memory, peak_memory_gb
from alignkit.system.together import gathered, together
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from alignkit_eval.report.extrapolation import Measured

STEPS = 3
"""Optimizer steps of a trial: one with the longest rows, then ordinary ones."""

ROWS = 32
"""Held-out rows that a suite is tried on which does not say how many tokens it takes at once."""

LIMITS = ("prompts", "calibration_pairs")
"""Settings of suites that limit how many held-out rows are used; a trial makes all of them smaller by one factor."""


def measure(config: RunConfig) -> Measured:
    """Run the trial in a directory that is removed; every process of the run calls this."""
    with tempfile.TemporaryDirectory(prefix="align-measure-") as scratch:
        plan = _trial_plan(config, Path(scratch))
        forget_peak_memory()
        run = prepare(plan)
        suites, missing = _time_suites(plan, run)
        small = replace(run, data=_rows_of_trial(plan, run))
        references, per_row = _time_reference(plan, small)
        scored = scored_splits(plan.config, plan.session.method.needs, plan.arguments, run.data)
        clock, held_out = _train(plan, small, references)
        peaks = gathered("the peak of memory", peak_memory_gb())
    return Measured(
        steps=clock.seconds,
        memory=max(peaks),
        suites=suites,
        held_out=held_out * len(run.data.eval),
        reference=per_row * sum(map(len, scored.values())),
        not_measured=missing,
    )


def _trial_plan(config: RunConfig, scratch: Path) -> RunPlan:
    """Return the plan of a run of a few steps that writes, reports and saves nothing."""
    config = config.model_copy(deep=True)
    config.run.services = []
    plan = plan_run(config)
    arguments = plan.arguments
    arguments.output_dir = str(scratch)
    arguments.max_steps = STEPS
    arguments.save_strategy = type(arguments.save_strategy)("no")
    arguments.load_best_model_at_end = False
    arguments.report_to = []
    arguments.push_to_hub = False
    return plan


def _rows_of_trial(plan: RunPlan, run: PreparedRun) -> Data:
    """Return the data with the longest rows for the first step, ordinary ones for the others, and few held-out rows."""
    method, train = plan.session.method, run.data.train
    size = plan.shape.rows * method.reuse.minibatches
    longest = np.argsort(-train.lengths(), kind="stable")[:size]
    ordinary = np.random.default_rng(plan.config.run.seed).permutation(len(train))[: (STEPS - 1) * size]
    rows = np.concatenate([np.resize(longest, size), np.resize(ordinary, (STEPS - 1) * size)])
    few = range(min(plan.shape.rows_per_micro_batch, len(run.data.eval)))
    return replace(run.data, train=train.select(rows), eval=run.data.eval.select(few))


def _time_suites(plan: RunPlan, run: PreparedRun) -> tuple[dict[str, float], list[str]]:
    """Return the seconds of each suite for all held-out rows, by those for one batch, and the suites this does not tell."""
    seconds: dict[str, float] = {}
    missing: list[str] = []
    for name, suite in plan.suites.items():
        if "tasks" in suite.settings_type.model_fields:  # items of its own
            missing.append(name)
            continue
        try:
            seconds[name] = _time_suite(name, suite, plan, run)
        except AlignError:  # rows it cannot use: the run skips it, too
            missing.append(name)
    return seconds, missing


def _time_suite(name: str, suite: Suite[Any], plan: RunPlan, run: PreparedRun) -> float:
    """Return the seconds of a suite for all held-out rows."""
    total = len(run.data.eval)
    limits = {key: min(getattr(suite.settings, key), total) for key in LIMITS if hasattr(suite.settings, key)}
    if limits:
        share = min(ROWS / max(*limits.values(), 1), 1.0)
        small = {key: math.ceil(limit * share) for key, limit in limits.items()}
        suite, rows = type(suite)(suite.settings.model_copy(update=small)), total
        together(f"suite {name}", partial(_evaluate, suite, plan, run, 1))  # it loads what it needs: once in a run
    else:
        rows = _rows_of_batch(suite, run.data.eval)
        share = rows / max(total, 1)
    started = time.perf_counter()
    used = together(f"suite {name}", partial(_evaluate, suite, plan, run, rows))
    return (time.perf_counter() - started) / (share if used else 1.0)


def _rows_of_batch(suite: Suite[Any], rows: TokenisedRows) -> int:
    tokens = getattr(suite.settings, "tokens_per_batch", None)
    count = ROWS if tokens is None else int(tokens / max(float(rows.lengths().mean()), 1.0)) if len(rows) else 1
    return max(min(count, len(rows)), 1)


def _evaluate(suite: Suite[Any], plan: RunPlan, run: PreparedRun, count: int) -> bool:
    """Evaluate the start model on ``count`` held-out rows; return whether the suite asked for any."""
    held_out, asked = run.data.held_out.unused(), list[str]()

    def first(of: Callable[[RowKind], Sequence[Any]], kind: RowKind) -> Sequence[Any]:
        asked.append(kind)
        return of(kind)[:count]

    target = Target(
        name="trial",
        policy=share(run.policy),
        tokenizer=run.loaded.tokenizer,
        examples=partial(first, held_out.examples),
        rows=partial(first, held_out.rows),
        start_policy=lambda: share(load_start_policy(plan.config, plan.session, run.loaded)),
        whole=partial(first, held_out.whole),
    )
    with undisturbed(run.loaded.model):
        suite.evaluate(target)
    return bool(asked)


def _time_reference(plan: RunPlan, run: PreparedRun) -> tuple[References, float]:
    """Return the reference log-probabilities of the trial's rows, and the seconds of a row."""
    splits = scored_splits(plan.config, plan.session.method.needs, plan.arguments, run.data)
    started = time.perf_counter()
    budget = plan.shape.tokens_per_micro_batch
    found: References = {name: score_rows(share(run.policy), rows, budget) for name, rows in splits.items()}
    rows = sum(map(len, splits.values()))
    return found, (time.perf_counter() - started) / max(rows, 1)


def _train(plan: RunPlan, run: PreparedRun, references: References) -> tuple[Clock, float]:
    """Train the steps of the trial; return their seconds, and those of the held-out loss of a row."""
    from alignkit.training.trainer import AlignTrainer

    clock, evaluates = Clock(), plan.arguments.eval_strategy != "no"
    plan.arguments.eval_strategy = type(plan.arguments.eval_strategy)("no")  # it is timed on its own
    order = RowOrder(len(run.data.train), plan.config.run.seed, shuffle=False)
    parts = engine_parts(plan, run, references, order, [clock])
    trainer = plan.session.build_trainer(parts) or plan.engine.trainer(parts)
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    held_out = 0.0
    if evaluates and len(run.data.eval) and isinstance(trainer, AlignTrainer):
        started = time.perf_counter()
        trainer.evaluate()
        held_out = (time.perf_counter() - started) / len(run.data.eval)
    release(trainer)
    return clock, held_out


class Clock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)
