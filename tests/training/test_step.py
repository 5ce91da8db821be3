"""The optimizer step: independent of how it is cut, equal to closed forms, loud about numbers that are not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract.batch import Example
from alignkit.contract.types import LossTerm
from alignkit.errors import DataError, RunFailedError

from tests.helpers.engine import build_trainer, configuration, random_pairs, tiny_llama, weights

ROUNDING = {"cpu": 1e-6, "cuda": 1e-5}
METHODS = ["orpo", {"name": "orpo", "convention": "trl", "lambda": 0.5}, "dpo", "sft"]


def rows_for(method: str | dict[str, Any], n: int) -> list[Example]:
    rows = random_pairs(n)
    return [row.narrow(0) for row in rows] if method == "sft" else rows


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("method", METHODS, ids=["orpo", "orpo-trl", "dpo", "sft"])
@pytest.mark.parametrize(("rows", "accumulation", "tokens"), [(4, 2, 8192), (1, 8, 8192), (8, 1, 60)])
def test_cutting_a_step_changes_nothing(
    device: str, tmp_path: Path, method: str | dict[str, Any], rows: int, accumulation: int, tokens: int
) -> None:
    """(8, 1), (4, 2), (1, 8) and a token budget: loss, gradient and weights after SGD agree, the short last step included."""
    data = rows_for(method, 20)  # two full steps and one of four rows
    whole = configuration(method, max_grad_norm=0.5)
    cut = configuration(
        method,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        tokens_per_micro_batch=tokens,
        max_grad_norm=0.5,
    )
    one, seen_one = build_trainer(whole, tmp_path / "one", data, device=device)
    other, seen_other = build_trainer(cut, tmp_path / "other", data, device=device)
    one.train()
    other.train()
    assert seen_other.losses() == pytest.approx(seen_one.losses(), rel=ROUNDING[device])
    assert len(seen_one.gradients) == 3
    for a, b in zip(seen_other.gradients, seen_one.gradients, strict=True):
        assert relative(a, b) < ROUNDING[device]
    assert relative(weights(other.model), weights(one.model)) < ROUNDING[device]


def test_lambda_zero_is_sft_bit_for_bit(tmp_path: Path) -> None:
    pairs = random_pairs(24)
    settings: dict[str, Any] = {"optim": "adamw_torch", "max_steps": 6, "tokens_per_micro_batch": 100}
    orpo, seen = build_trainer(configuration({"name": "orpo", "lambda": 0}, **settings), tmp_path / "orpo", pairs)
    sft, _ = build_trainer(configuration("sft", **settings), tmp_path / "sft", [row.narrow(0) for row in pairs])
    orpo.train()
    sft.train()
    assert torch.equal(weights(orpo.model), weights(sft.model))
    assert seen.logs[0]["loss/odds_ratio"] > 0  # the rejected answers are still watched
    assert seen.logs[0]["loss"] == pytest.approx(seen.logs[0]["loss/nll"])


def test_lambda_that_grows_from_zero_reaches_the_rejected_answers(device: str, tmp_path: Path) -> None:
    config = configuration({"name": "orpo", "lambda": 1.0, "lambda_schedule": "linear"}, max_steps=4)
    trainer, seen = build_trainer(config, tmp_path, random_pairs(32), device=device)
    trainer.train()
    assert [record["lambda"] for record in seen.logs[:4]] == [0.0, 0.25, 0.5, 0.75]
    for record in seen.logs[:4]:
        expected = record["loss/nll"] + record["lambda"] * record["loss/odds_ratio"]
        assert record["loss"] == pytest.approx(expected, rel=1e-6)


def test_dpo_starts_at_ln_two(device: str, tmp_path: Path) -> None:
    trainer, seen = build_trainer(configuration("dpo"), tmp_path, random_pairs(24), device=device)
    trainer.train()
    assert seen.losses()[0] == pytest.approx(math.log(2), abs=1e-6)
    assert seen.losses()[-1] != pytest.approx(math.log(2), abs=1e-6)


def test_order_of_rows_within_a_step_changes_nothing(device: str, tmp_path: Path) -> None:
    pairs = random_pairs(8)
    one, seen_one = build_trainer(configuration("orpo", max_steps=1), tmp_path / "a", pairs, device=device)
    other, seen_other = build_trainer(configuration("orpo", max_steps=1), tmp_path / "b", pairs[::-1], device=device)
    one.train()
    other.train()
    assert relative(seen_other.gradients[0], seen_one.gradients[0]) < ROUNDING[device]


def test_loss_of_a_step_against_a_plain_forward(device: str, tmp_path: Path) -> None:
    """SFT's first loss is the mean token NLL over the whole step, computed here sequence by sequence."""
    rows = [row.narrow(0) for row in random_pairs(8)]
    model = tiny_llama()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([[*row.prompt, *row.completions[0]]])
            logps = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            picked = logps.gather(1, ids[0, 1:, None])[len(row.prompt) - 1 :]
            total, count = total - float(picked.sum()), count + len(picked)
    trainer, seen = build_trainer(configuration("sft", max_steps=1), tmp_path, rows, model=model, device=device)
    trainer.train()
    assert seen.losses()[0] == pytest.approx(total / count, rel=ROUNDING[device])


def test_evaluation_is_exact_and_leaves_random_numbers_alone(device: str, tmp_path: Path) -> None:
    """Held-out loss over uneven batches equals the training loss of one step over the same rows at the same weights."""
    pairs = random_pairs(8)
    config = configuration("orpo", max_steps=1, learning_rate=0.0, tokens_per_micro_batch=50)
    trainer, seen = build_trainer(config, tmp_path, pairs, held_out=pairs, device=device)
    trainer.train()
    before = torch.random.get_rng_state()
    metrics = trainer.evaluate()
    assert torch.equal(before, torch.random.get_rng_state())
    assert metrics["eval_loss"] == pytest.approx(seen.losses()[0], rel=ROUNDING[device])
    assert metrics["eval_rewards/accuracies"] == pytest.approx(seen.logs[0]["rewards/accuracies"])


def test_a_gradient_whose_norm_overflows_stops_the_run(device: str, tmp_path: Path) -> None:
    """Every number is finite but the norm is not: clipping would turn such a gradient into zeros without a word."""
    rows = [row.narrow(0) for row in random_pairs(8)]
    trainer, _ = build_trainer(configuration("sft", max_steps=1), tmp_path, rows, device=device)
    compute = trainer.parts.session.compute_loss

    def steep(policy: Any, batch: Any, progress: float) -> Any:
        output = compute(policy, batch, progress)
        (term,) = output.terms
        steep_part = (term.sum - term.sum.detach()) * 3e34  # finite gradients whose squares overflow, a loss of 0
        return type(output)([LossTerm(term.name, steep_part, term.per)], output.metrics)

    object.__setattr__(trainer.parts.session, "compute_loss", steep)
    before = weights(trainer.model)
    with pytest.raises(RunFailedError, match=r"non-finite gradient \(norm inf\) at step 1"):
        trainer.train()
    assert torch.equal(weights(trainer.model), before)


@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
def test_non_finite_numbers_stop_the_run_before_the_weights_change(
    device: str, tmp_path: Path, poisoned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = random_pairs(24)
    config = configuration("orpo", max_steps=3, optim="adamw_torch")
    trainer, _ = build_trainer(config, tmp_path, pairs, device=device)
    compute = trainer.parts.session.compute_loss
    guilty = trainer.steps.rows_of_step(1).examples[3].id

    def poison(policy: Any, batch: Any, progress: float) -> Any:
        output = compute(policy, batch, progress)
        if all(example.id != guilty for example in batch.examples):
            return output
        first, *rest = output.terms
        nothing = 0.0 * first.sum.detach()
        bad = first.sum + (float("nan") if poisoned == "loss" else (first.sum * 0.0 + nothing).sqrt())
        terms = [LossTerm(first.name, bad, first.per, first.weight), *rest]
        return type(output)(terms, output.metrics)

    object.__setattr__(trainer.parts.session, "compute_loss", poison)
    before: list[torch.Tensor] = []
    step = trainer.training_step
    monkeypatch.setattr(
        trainer, "training_step", lambda *a, **k: (before.append(weights(trainer.model)), step(*a, **k))[1]
    )
    with pytest.raises(RunFailedError, match=f"non-finite {poisoned}.* at step 2, rows ") as caught:
        trainer.train()
    assert guilty in str(caught.value)
    assert torch.equal(weights(trainer.model), before[1])


def test_rows_are_read_ahead_and_a_row_that_fails_ends_its_own_step(tmp_path: Path) -> None:
    trainer, seen = build_trainer(configuration("sft", max_steps=3), tmp_path, [r.narrow(0) for r in random_pairs(24)])
    read, rows_of_step = [], trainer.steps.rows_of_step

    def failing(step: int) -> Any:
        read.append((trainer.state.global_step, step))
        if step == 2:
            raise DataError("rows.jsonl:17: damaged")
        return rows_of_step(step)

    trainer.steps.rows_of_step = failing  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"^rows.jsonl:17: damaged$"):
        trainer.train()
    assert read == [(0, 0), (0, 1), (1, 2), (2, 2)]
    assert len(seen.losses()) == 2
