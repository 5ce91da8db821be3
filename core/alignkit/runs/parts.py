"""Assemble what the trainer is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit.contract import LoadedModel, Row
from alignkit.data.order import RowOrder
from alignkit.onpolicy.rewards import open_rewards
from alignkit.onpolicy.rollouts import RolloutParts
from alignkit.onpolicy.samplers import make_sampler
from alignkit.runs.prepare import PreparedRun, RunPlan, load_start_policy
from alignkit.runs.references import References
from alignkit.scoring.reference import keeps_start
from alignkit.training.parts import EngineParts


def engine_parts(
    plan: RunPlan, run: PreparedRun, references: References, order: RowOrder, callbacks: Sequence[Any]
) -> EngineParts:
    """Return the trainer's parts; the model must still hold its start weights, which on-policy methods keep a copy of."""
    method, data = plan.session.method, run.data
    if keeps_start(method.needs) and (keep := getattr(run.policy, "keep_start", None)):
        keep()
    rows = {"train": lambda: data.train_rows, "eval": lambda: data.held_out.rows(data.kind)}
    return EngineParts(
        session=plan.session,
        model=run.loaded.model,
        tokenizer=run.loaded.tokenizer,
        policy=run.policy,
        train=data.train,
        eval=data.eval,
        arguments=plan.arguments,
        rows_per_step=plan.shape.rows,
        rows_per_micro_batch=plan.shape.rows_per_micro_batch,
        tokens_per_micro_batch=plan.shape.tokens_per_micro_batch,
        seed=plan.config.run.seed,
        references=references if "reference" in method.needs else {},
        rollouts=_rollout_parts(plan, run.loaded, rows) if "reward" in method.needs else None,
        row_order=order,
        source_rows=rows,
        callbacks=callbacks,
        load_start=lambda: load_start_policy(plan.config, plan.session, run.loaded),
    )


def _rollout_parts(plan: RunPlan, loaded: LoadedModel, rows: Mapping[str, Callable[[], Sequence[Row]]]) -> RolloutParts:
    """Return what a method that needs a reward samples and scores with."""
    settings = plan.session.method.settings
    return RolloutParts(
        settings=settings,
        sampler=make_sampler(loaded.model, loaded.tokenizer, settings, loaded.path),
        rewards=open_rewards(settings.rewards),
        tokenizer=loaded.tokenizer,
        rows=rows,
        max_tokens=plan.shape.tokens_per_micro_batch,
        seed=plan.config.run.seed,
    )
