"""The engine around a method and a tiny model, without data on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignkit.config import RunConfig
from alignkit.contract import Engine, Example, LoadedModel, Row
from alignkit.data.order import RowOrder
from alignkit.onpolicy.rewards import LoadedReward, RewardFunction
from alignkit.onpolicy.rollouts import RolloutParts
from alignkit.onpolicy.samplers import model_sampler
from alignkit.onpolicy.settings import OnPolicySettings
from alignkit.scoring.critic import add_critic
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.reference import StartWeights, keeps_start, score_rows
from alignkit.scoring.scorer import install
from alignkit.settings import check_config
from alignkit.settings.training_arguments import training_arguments
from alignkit.testing.tiny import Words, good_share, tiny_llama
from alignkit.training.parts import EngineParts
from alignkit.training.session import Session
from alignkit.training.trainer import AlignTrainer

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

TRAIN: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "use_cpu": True,
}


def configuration(method: str | dict[str, Any], **train: Any) -> RunConfig:
    """Return the checked configuration of a short run without data and suites."""
    values: dict[str, Any] = {"method": method, "train": TRAIN | train, "eval": {"suites": []}}
    return check_config(RunConfig.model_validate({"model": "unused", "data": "unused", **values}))


def rollout_parts(
    settings: OnPolicySettings, model: torch.nn.Module, seed: int = 0, rewards: Sequence[RewardFunction] = ()
) -> RolloutParts:
    """Return the parts of rollouts, with rewards as plain functions (default: the share of even tokens)."""
    rows = [Row(i, f"row-{i}", f"ask {i}", (), f"c{i}") for i in range(1000)]
    tokenizer: Any = Words()
    return RolloutParts(
        settings=settings,
        sampler=model_sampler(model, tokenizer, settings, ()),
        rewards=[LoadedReward(f"r{i}", 1.0, reward) for i, reward in enumerate(rewards or [good_share])],
        tokenizer=tokenizer,
        rows={"train": lambda: rows, "eval": lambda: rows},
        max_tokens=300,
        seed=seed,
    )


def build_trainer(
    config: RunConfig,
    output: Path,
    rows: Sequence[Example],
    *,
    model: torch.nn.Module | None = None,
    held_out: Sequence[Example] = (),
    callbacks: Sequence[TrainerCallback] = (),
    scorer: Any = "auto",
    rewards: Sequence[RewardFunction] = (),
    row_order: RowOrder | None = None,
    engine: Engine | None = None,
) -> AlignTrainer:
    """Return the trainer of a run with ``config`` for the given rows, model (default: a tiny Llama) and engine (torch)."""
    from transformers.trainer_callback import PrinterCallback

    session = Session.open(config)
    arguments, shape = training_arguments(config, output)
    trained: Any = tiny_llama() if model is None else model
    needs, settings = session.method.needs, session.method.settings
    if "value_head" in needs:
        add_critic(trained, getattr(settings, "critic", "shared"))
    policy: Any
    if engine is None:
        policy = ModelPolicy(trained, install(trained, scorer))
        policy.start = StartWeights(trained) if keeps_start(needs) else None
    else:
        loaded = LoadedModel(trained, Words(), "tiny", "", is_adapter=False)
        policy = engine.policy(loaded, config, trained.device)
    references: dict[str, Any] = {}
    if "reference" in needs and "reward" not in needs:
        references = {"train": score_rows(policy, rows, 512), "eval": score_rows(policy, held_out, 512)}
    parts = EngineParts(
        session=session,
        model=trained,
        tokenizer=None,  # rows are tokens already
        policy=policy,
        train=rows,
        eval=held_out,
        arguments=arguments,
        rows_per_step=shape.rows,
        rows_per_micro_batch=shape.rows_per_micro_batch,
        tokens_per_micro_batch=shape.tokens_per_micro_batch,
        seed=config.run.seed,
        references=references,
        rollouts=rollout_parts(settings, trained, config.run.seed, rewards) if "reward" in needs else None,
        callbacks=callbacks,
        row_order=row_order,
    )
    trainer = AlignTrainer(parts) if engine is None else cast("AlignTrainer", engine.trainer(parts))
    trainer.pop_callback(PrinterCallback)
    return trainer
