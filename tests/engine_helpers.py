"""A tiny real model, random rows and a trainer built as a run builds it, for tests of the engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from alignkit.arguments import training_arguments
from alignkit.config import RunConfig
from alignkit.data.rows import Row
from alignkit.onpolicy import ModelSampler, OnPolicySettings
from alignkit.reference import StartWeights, score_rows
from alignkit.rewarding import OpenReward
from alignkit.rewards import Answered
from alignkit.rollouts import RolloutParts
from alignkit.scoring.critic import add_critic
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import install
from alignkit.session import Session
from alignkit.settings import check
from alignkit.trainer import AlignTrainer, TrainerParts
from alignkit.types import Example
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

VOCAB = 128


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | changes)))


def random_pairs(n: int, seed: int = 0, longest: int = 24) -> list[Example]:
    draw = random.Random(seed)
    tokens = lambda: [draw.randrange(3, VOCAB) for _ in range(draw.randint(2, longest))]
    return [Example(f"row-{i}", tokens(), (tokens(), tokens()), index=i) for i in range(n)]


class Recorder(TrainerCallback):
    """Keeps every step's gradient and every log record."""

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
    """Saves a checkpoint at a step and stops there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().flatten().clone() for t in tensors])


def weights(model: torch.nn.Module) -> torch.Tensor:
    return flat(model.parameters())


def configuration(method: str | dict[str, Any], **train: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "use_cpu": True,
    }
    config = RunConfig.model_validate(
        {"method": method, "model": "unused", "data": "unused", "train": defaults | train, "eval": {"suites": []}}
    )
    return check(config)


Reward_ = Callable[[Sequence[Answered]], Sequence[float]]


class Words:
    """A tokenizer as rollouts use one: token 7 is the word w7, 2 ends a text."""

    pad_token_id, eos_token_id = 0, 2

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(f"w{token}" for token in tokens)


def even_share(answers: Sequence[Answered]) -> list[float]:
    """A reward that can be learned: the share of an answer's tokens with an even id."""
    return [sum(token % 2 == 0 for token in a.answer_ids) / len(a.answer_ids) for a in answers]


def random_prompts(n: int, seed: int = 0) -> list[Example]:
    return [replace(example, completions=()) for example in random_pairs(n, seed, longest=9)]


def on_policy_parts(
    settings: OnPolicySettings, model: torch.nn.Module, config: RunConfig, rewards: Sequence[Reward_] = ()
) -> RolloutParts:
    rows = [Row(i, f"row-{i}", f"ask {i}", (), f"c{i}") for i in range(200)]
    return RolloutParts(
        settings=settings,
        sampler=ModelSampler(model, Words(), settings, ()),  # type: ignore[arg-type]
        rewards=[OpenReward(f"r{i}", 1.0, reward) for i, reward in enumerate(rewards or [even_share])],
        tokenizer=Words(),  # type: ignore[arg-type]
        rows={"train": lambda: rows, "eval": lambda: rows},
        start=StartWeights(model),
        max_tokens=300,
        seed=config.run.seed,
    )


def build_trainer(
    config: RunConfig,
    output: Path,
    rows: Sequence[Example],
    *,
    model: torch.nn.Module | None = None,
    held_out: Sequence[Example] = (),
    callbacks: Sequence[TrainerCallback] = (),
    scorer: str = "auto",
    rewards: Sequence[Reward_] = (),
) -> tuple[AlignTrainer, Recorder]:
    session = Session.open(config)
    arguments, shape = training_arguments(config, output)
    model = model if model is not None else tiny_llama()
    if "value_head" in session.method.needs:
        add_critic(model, session.method.settings.critic)
    policy = ModelPolicy(model, install(model, scorer))  # type: ignore[arg-type]
    references = {}
    rollouts = None
    if "reward" in session.method.needs:
        rollouts = on_policy_parts(session.method.settings, model, config, rewards)
    elif "reference" in session.method.needs:
        references = {"train": score_rows(policy, rows, 512), "eval": score_rows(policy, held_out, 512)}
    recorder = Recorder()
    parts = TrainerParts(
        session=session,
        model=model,  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        policy=policy,
        train=rows,
        eval=held_out,
        arguments=arguments,
        rows_per_step=shape.rows,
        rows_per_micro_batch=shape.rows_per_micro_batch,
        tokens_per_micro_batch=shape.tokens_per_micro_batch,
        seed=config.run.seed,
        references=references,
        rollouts=rollouts,
        callbacks=[recorder, *callbacks],
    )
    trainer = AlignTrainer(parts)
    from transformers.trainer_callback import PrinterCallback

    trainer.pop_callback(PrinterCallback)
    return trainer, recorder
