"""Random rows, and a trainer that records gradients and logs, for tests of the engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from alignkit.config import RunConfig
from alignkit.contract.batch import Example
from alignkit.data.order import RowOrder
from alignkit.system.sharded import reshard, whole
from alignkit.testing import engine
from alignkit.testing.engine import RewardFunction, configuration, rollout_parts
from alignkit.testing.tiny import VOCABULARY as VOCAB
from alignkit.testing.tiny import Words, tiny_llama
from alignkit.training.trainer import AlignTrainer
from transformers import TrainerCallback

__all__ = ["VOCAB", "Words", "build_trainer", "configuration", "rollout_parts", "tiny_llama"]


def random_pairs(n: int, seed: int = 0, longest: int = 24) -> list[Example]:
    draw = random.Random(seed)
    tokens = lambda: [draw.randrange(3, VOCAB) for _ in range(draw.randint(2, longest))]
    return [Example(f"row-{i}", tokens(), (tokens(), tokens()), index=i) for i in range(n)]


def random_prompts(n: int, seed: int = 0) -> list[Example]:
    return [replace(example, completions=()) for example in random_pairs(n, seed, longest=9)]


def random_answers(n: int, seed: int = 0) -> list[Example]:
    """Return answers of which every third one is labelled bad."""
    pairs = enumerate(random_pairs(n, seed, longest=9))
    return [replace(pair.narrow(0), fields={"label": i % 3 > 0}) for i, pair in pairs]


def random_rankings(n: int, seed: int = 0) -> list[Example]:
    """Return rankings of two to five answers, of which the middle ones are rated alike."""
    draw = random.Random(seed)
    tokens = lambda: [draw.randrange(3, VOCAB) for _ in range(draw.randint(2, 9))]
    rows = []
    for i in range(n):
        ratings = [9, *[5] * (i % 4), 1]
        rows.append(Example(f"row-{i}", tokens(), tuple(tokens() for _ in ratings), i, fields={"ratings": ratings}))
    return rows


class Recorder(TrainerCallback):
    """Records the gradient of every step and every log record."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.logs: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients.append(flat(p.grad for p in model.parameters() if p.grad is not None))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({"step": state.global_step, **logs})

    def losses(self) -> list[float]:
        return [record["loss"] for record in self.logs if "loss" in record]


class StopAt(TrainerCallback):
    """Saves a checkpoint at a step and stops training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([whole(t).flatten().clone() for t in tensors])


def weights(model: torch.nn.Module) -> torch.Tensor:
    reshard(model)
    return flat(model.parameters())


def build_trainer(
    config: RunConfig,
    output: Path,
    rows: Sequence[Example],
    *,
    model: torch.nn.Module | None = None,
    held_out: Sequence[Example] = (),
    callbacks: Sequence[TrainerCallback] = (),
    scorer: str = "auto",
    rewards: Sequence[RewardFunction] = (),
    row_order: RowOrder | None = None,
    device: str = "cpu",
) -> tuple[AlignTrainer, Recorder]:
    recorder = Recorder()
    if device != "cpu":
        config = config.model_copy(update={"train": config.train.model_copy(update={"use_cpu": False})})
        model = (model or tiny_llama()).to(device)
    trainer = engine.build_trainer(
        config,
        output,
        rows,
        model=model,
        held_out=held_out,
        callbacks=[recorder, *callbacks],
        scorer=scorer,
        rewards=rewards,
        row_order=row_order,
    )
    return trainer, recorder
