"""An optimizer step waits for the device once: at the guard against numbers that are not finite."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract.batch import Example
from alignkit.models.generate import GeneratedAnswer
from alignkit.scoring.classifier import ClassifierPolicy
from alignkit.scoring.reference import score_rows
from alignkit.training.trainer import AlignTrainer
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.helpers.engine import build_trainer, configuration, random_pairs, random_prompts
from tests.helpers.onpolicy import GRPO, PPO
from tests.helpers.waits import Waits, on_a_device, own_frames

METHODS: dict[str, Any] = {
    "sft": "sft",
    "sft-full": {"name": "sft", "nll_scope": "full", "nll_reduction": "sequence"},
    "dpo": {"name": "dpo", "nll_weight": 0.1},
    "orpo": "orpo",
    "orpo-trl": {"name": "orpo", "convention": "trl"},
    "orpo-lambda-0": {"name": "orpo", "lambda": 0},
    "reward": {"name": "reward", "margin": "better", "center": 0.1},
    "ppo": PPO,
    "grpo": {**GRPO, "kl_coef": 0.1, "reduction": "sequence"},
}


CASES = [(name, "rows") for name in METHODS] + [("sft", "padded"), ("orpo-trl", "plain"), ("ppo", "padded")]


def trainer_of(method: Any, scorer: str, directory: Path, device: str = "cpu", **train: Any) -> AlignTrainer:
    """Return a trainer whose first step has several micro-batches, and one of whose rows is shorter than the others."""
    name = method if isinstance(method, str) else method["name"]
    rows: list[Example] = random_prompts(8) if name in ("ppo", "grpo") else random_pairs(8)
    rows = [replace(row.narrow(0) if name == "sft" else row, fields={"better": 1.0}) for row in rows]
    train |= {"max_steps": 1, "per_device_train_batch_size": 6, "tokens_per_micro_batch": 40}
    config = configuration(method, **train)
    trainer, _ = build_trainer(config, directory, rows, scorer=scorer, held_out=rows[:3], device=device)
    if name == "reward":
        shape = LlamaConfig(**trainer.model.config.to_dict() | {"num_labels": 1, "pad_token_id": 0})
        trainer.parts.model = trainer.model = LlamaForSequenceClassification(shape).to(device)
        trainer.parts.policy = ClassifierPolicy(trainer.model)
    trainer.state.max_steps = 1
    return trainer


@pytest.mark.parametrize(("name", "scorer"), CASES)
def test_a_step_waits_for_the_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scorer: str
) -> None:
    trainer = trainer_of(METHODS[name], scorer, tmp_path)
    scored = []
    monkeypatch.setattr(
        trainer, "_loss_of", partial(lambda real, cut: (scored.append(cut), real(cut))[1], trainer._loss_of)
    )
    with on_a_device(trainer, monkeypatch) as waits:
        trainer.training_step(trainer.model, {})
    assert len(scored) > 1
    assert [wait for wait in waits if "check_finite" not in wait] == []
    assert len(waits) == 1


@pytest.mark.parametrize(("name", "scorer"), CASES)
def test_nothing_is_computed_on_another_device_than_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scorer: str
) -> None:
    """The step with what a method prepares for it, reference log-probabilities and the held-out loss."""
    trainer = trainer_of(METHODS[name], scorer, tmp_path)
    if trainer.parts.rollouts is not None:  # sampling needs numbers
        answer = GeneratedAnswer([5, 6, 7], 2)
        trainer.parts.rollouts.sampler = lambda prompts, seeds: [answer for _ in prompts]
    with on_a_device(trainer, monkeypatch, prepared=False) as waits:
        trainer.training_step(trainer.model, {})
        trainer.evaluate()
        if name != "reward":
            score_rows(trainer.parts.policy, trainer.parts.train, 64)
    assert [wait for wait in waits if wait.startswith("on two devices")] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its waits are counted on the meta device above")
@pytest.mark.parametrize(("name", "bf16"), [*((name, True) for name in METHODS), ("orpo", False)])
def test_a_step_on_a_gpu_waits_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bf16: bool) -> None:
    trainer = trainer_of(METHODS[name], "auto", tmp_path, "cuda", bf16=bf16)
    batch = trainer.steps.batch(0, 0.0)
    monkeypatch.setattr(trainer.steps, "batch", lambda step, progress: batch)
    trainer.training_step(trainer.model, {})  # the first step also loads libraries and compiles kernels
    waits = []

    def note(message: Warning | str, *_: Any) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            waits.append(own_frames())

    monkeypatch.setattr(warnings, "showwarning", note)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.training_step(trainer.model, {})
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [wait for wait in waits if "check_finite" not in wait] == []
    assert len(waits) == 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        lambda x: x.cpu(),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(2).to(x.device),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_the_counter_sees_every_kind_of_wait(wait: Any) -> None:
    with Waits() as waits:
        wait(torch.ones(2, device="meta"))
    assert len(waits.seen) == 1


@pytest.mark.parametrize("wait", [lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.numpy()])
def test_other_waits_fail(wait: Any) -> None:
    with pytest.raises((RuntimeError, TypeError, NotImplementedError)), Waits():
        wait(torch.ones(2, device="meta"))
