"""Assemble what the trainer is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit.onpolicy.rewards import open_rewards
from alignkit.training.parts import EngineParts

if TYPE_CHECKING:
    from alignkit.contract.model import LoadedModel
    from alignkit.contract.rows import Row
    from alignkit.contract.types import Method
    from alignkit.data.load import Data
    from alignkit.data.order.row_order import RowOrder
    from alignkit.onpolicy.rollouts import RolloutParts
    from alignkit.runs.prepare import PreparedRun, RunPlan
    from alignkit.runs.references import References


def engine_parts(
    plan: RunPlan, run: PreparedRun, references: References, order: RowOrder, callbacks: Sequence[Any]
) -> EngineParts:
    """Return the trainer's parts; the model must still hold its start weights, which on-policy methods keep a copy of."""
    from alignkit.scoring.policy import ModelPolicy
    from alignkit.scoring.reference import StartWeights, keeps_start

    method = plan.session.method
    if keeps_start(method.needs) and isinstance(run.policy, ModelPolicy):
        run.policy.start = StartWeights(run.loaded.model)
    rows = source_rows(run.data)
    budget = plan.shape.tokens_per_micro_batch
    return EngineParts(
        session=plan.session,
        model=run.loaded.model,
        tokenizer=run.loaded.tokenizer,
        policy=run.policy,
        train=run.data.train,
        eval=run.data.eval,
        arguments=plan.arguments,
        rows_per_step=plan.shape.rows,
        rows_per_micro_batch=plan.shape.rows_per_micro_batch,
        tokens_per_micro_batch=budget,
        seed=plan.config.run.seed,
        references=references if "reference" in method.needs else {},
        rollouts=_rollout_parts(method, run.loaded, rows, budget, plan.config.run.seed),
        row_order=order,
        source_rows=rows,
        callbacks=callbacks,
    )


def source_rows(data: Data) -> dict[str, Callable[[], Sequence[Row]]]:
    """Return the rows of both splits as text or messages, read when they are asked for."""
    return {"train": lambda: data.train_rows, "eval": lambda: data.held_out.rows(data.kind)}


def _rollout_parts(
    method: Method[Any],
    loaded: LoadedModel,
    rows: Mapping[str, Callable[[], Sequence[Row]]],
    max_tokens: int,
    seed: int,
) -> RolloutParts | None:
    """Return what a method that needs a reward samples and scores with; None for the others."""
    if "reward" not in method.needs:
        return None
    from alignkit.onpolicy.rollouts import RolloutParts
    from alignkit.onpolicy.samplers import make_sampler

    return RolloutParts(
        settings=method.settings,
        sampler=make_sampler(loaded.model, loaded.tokenizer, method.settings, loaded.path),
        rewards=open_rewards(method.settings.rewards),
        tokenizer=loaded.tokenizer,
        rows=rows,
        max_tokens=max_tokens,
        seed=seed,
    )
