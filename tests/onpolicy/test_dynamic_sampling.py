"""Dynamic sampling: groups of equal rewards are replaced by those of further prompts, counted, and resumed exactly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract.rewards import Answered
from alignkit.training.checkpoints import last_checkpoint

from tests.helpers.engine import StopAt, build_trainer, configuration, random_prompts, weights
from tests.helpers.onpolicy import GRPO, TRAIN, constant

REFILLED = GRPO | {"refill_rounds": 8}


def of_every_third(answers: Sequence[Answered]) -> list[float]:
    """Reward the answers to two thirds of the prompts alike."""
    return [a.answer_ids[0] % 11 / 11 if sum(a.prompt_ids) % 3 == 0 else 0.5 for a in answers]


def make(output: Path, method: dict[str, Any], reward: Any = of_every_third, *callbacks: Any, **train: Any) -> Any:
    config = configuration(method, **TRAIN | train)
    return build_trainer(config, output, random_prompts(40), callbacks=callbacks, rewards=[reward])


def test_every_group_has_a_signal(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, REFILLED)
    rows = random_prompts(40)
    batch = trainer.steps.batch(0, 0.0)
    assert len(batch) == 4
    assert not any(batch.columns["alike"])
    assert all(sum(example.prompt) % 3 == 0 for example in batch.examples)
    # The prompts are those of the run's order: the rollout's own, then those that follow.
    order = [int(i) for i in trainer.parts.order.epoch(0)]
    informative = [i for i in order if sum(rows[i].prompt) % 3 == 0]
    assert {example.index for example in batch.examples} == {*informative[:4]}
    drawn = max(order.index(i) for i in informative[:4]) + 1 - 4
    assert drawn <= trainer.steps.drawn <= drawn + 3
    assert batch.shared["groups_refilled"] == trainer.steps.drawn
    assert 1 <= batch.shared["refill_rounds"] <= 8
    after = trainer.steps.rows_of_step(1).examples[0].index
    assert after == order[4 + trainer.steps.drawn], "the next rollout begins after them"


def test_the_rewards_of_a_replaced_group_are_its_own(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, REFILLED)
    batch = trainer.steps.batch(0, 0.0)
    for example, rewards in zip(batch.examples, batch.columns["reward"], strict=True):
        assert rewards == [answer[0] % 11 / 11 for answer in example.completions]
    assert {"reward/r0", "ended", "lengths", "advantages"} <= {*batch.columns}
    assert len(batch.row_counts["judged/r0"]) == 4


def test_a_bound_on_rounds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer, seen = make(tmp_path, REFILLED | {"refill_rounds": 3}, constant, max_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if "dynamic sampling" in record.getMessage()]
    assert len(said) == 1
    assert "after 3 rounds (method.refill_rounds)" in said[0]
    first = seen.logs[0]
    assert (first["groups_alike"], first["refill_rounds"], first["groups_refilled"]) == (1.0, 3.0, 12.0)
    assert trainer.steps.drawn == 2 * 12


def test_an_evaluation_keeps_its_prompts(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, REFILLED)
    found = trainer.evaluate(random_prompts(6, seed=3))
    assert found["eval_groups_alike"] > 0
    assert "eval_groups_refilled" not in found
    assert trainer.steps.drawn == 0


@pytest.mark.parametrize("stop", [3, 4])
def test_resume_is_exact(tmp_path: Path, stop: int) -> None:
    method = REFILLED | {"epochs": 2, "minibatches": 2}
    whole, seen_whole = make(tmp_path / "whole", method)
    whole.train()
    first, seen_first = make(tmp_path / "cut", method, of_every_third, StopAt(stop))
    first.train()
    torch.rand(3)
    second, seen_second = make(tmp_path / "cut", method)
    second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    assert torch.equal(weights(second.model), weights(whole.model))
    assert second.steps.drawn == whole.steps.drawn > 0
    mine = [(r["reward"], r["groups_refilled"]) for r in seen_first.logs + seen_second.logs if "reward" in r]
    assert mine == [(r["reward"], r["groups_refilled"]) for r in seen_whole.logs if "reward" in r]
