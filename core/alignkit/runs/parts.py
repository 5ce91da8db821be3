"""Part of prepare: source_rows, rollout_parts, trainer_parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from alignkit.onpolicy.rewards import open_rewards

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from alignkit.contract.rows import Row
    from alignkit.data.order.row_order import RowOrder
    from alignkit.onpolicy.rollouts import RolloutParts
    from alignkit.settings.training_arguments import StepShape
    from alignkit.training.parts import EngineParts
from alignkit.runs.prepare import PreparedRun


def source_rows(prepared: PreparedRun) -> dict[str, Callable[[], Sequence[Row]]]:
    """Return the rows of both splits as text or messages, the training rows where they were kept."""
    data = prepared.data
    return {"train": lambda: data.train_rows, "eval": lambda: data.held_out.rows(data.kind)}


def rollout_parts(prepared: PreparedRun) -> RolloutParts | None:
    """Put together what a method that needs a reward samples with; None for the others."""
    method, loaded = prepared.session.method, prepared.loaded
    if "reward" not in method.needs:
        return None
    from alignkit.onpolicy.rollouts import RolloutParts
    from alignkit.onpolicy.samplers import make_sampler

    return RolloutParts(
        settings=method.settings,
        sampler=make_sampler(loaded.model, loaded.tokenizer, method.settings, loaded.path),
        rewards=open_rewards(method.settings.rewards),
        tokenizer=loaded.tokenizer,
        rows=source_rows(prepared),
        max_tokens=prepared.config.train.tokens_per_micro_batch,
        seed=prepared.config.run.seed,
    )


def trainer_parts(
    prepared: PreparedRun,
    arguments: TrainingArguments,
    shape: StepShape,
    references: dict[str, Sequence[Any]],
    callbacks: Sequence[Any],
    order: RowOrder,
) -> EngineParts:
    """Put together what a trainer is built from; the model must hold its start weights, which the reference is made of."""
    from alignkit.scoring.policy import ModelPolicy
    from alignkit.scoring.reference import StartWeights, keeps_start
    from alignkit.training.parts import EngineParts

    needs = prepared.session.method.needs
    if keeps_start(needs) and isinstance(prepared.policy, ModelPolicy):
        prepared.policy.start = StartWeights(prepared.loaded.model)
    return EngineParts(
        session=prepared.session,
        model=prepared.loaded.model,
        tokenizer=prepared.loaded.tokenizer,
        policy=prepared.policy,
        train=prepared.data.train,
        eval=prepared.data.eval,
        arguments=arguments,
        rows_per_step=shape.rows,
        rows_per_micro_batch=shape.rows_per_micro_batch,
        tokens_per_micro_batch=shape.tokens_per_micro_batch,
        seed=prepared.config.run.seed,
        references=references if "reference" in needs else {},
        rollouts=rollout_parts(prepared),
        row_order=order,
        source_rows=source_rows(prepared),
        callbacks=callbacks,
    )
