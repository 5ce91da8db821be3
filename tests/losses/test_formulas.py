"""Every built-in loss against its closed form, its gradient against differences of that form, and both against TRL."""

from __future__ import annotations

import doctest
from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from alignkit import Answers, Pairs, Scores
from alignkit.contract import registry

from tests.losses.table import ROWS, Numbers, nls

FAMILIES = ("margins", "answers", "tokens", "steps", "free")
TOKENS = np.random.default_rng(0)
LENGTHS = TOKENS.integers(2, 9, (6, 2))  # of chosen and rejected answers
LOGPS = [[-TOKENS.exponential(0.9, n) for n in row] for row in LENGTHS]
REFERENCE = [[-TOKENS.exponential(0.9, n) for n in row] for row in LENGTHS]


def numbers() -> Numbers:
    sums = [np.array([row[k].sum() for row in of]) for of in (LOGPS, REFERENCE) for k in (0, 1)]
    return Numbers(sums[0], sums[1], sums[2], sums[3], *LENGTHS.T.astype(float))


def scores(of: list[list[np.ndarray]]) -> Scores:
    flat = torch.tensor(np.concatenate([tokens for row in of for tokens in row]), requires_grad=of is LOGPS)
    lengths = torch.tensor(LENGTHS.reshape(-1))
    nothing = torch.zeros(0)
    return Scores(flat, torch.repeat_interleave(lengths), lengths, nothing, nothing.long(), len(LENGTHS))


def pairs(p: Numbers) -> tuple[Pairs, list[torch.Tensor]]:
    leaves = [torch.tensor(x, requires_grad=True) for x in (p.w, p.l)]
    sides = zip(leaves, map(torch.tensor, (p.rw, p.rl)), map(torch.tensor, (p.nw, p.nl)), strict=True)
    chosen, rejected = (Answers(*side) for side in sides)
    return Pairs(chosen, rejected), leaves


def loss(row: str) -> Any:
    return registry.load(registry.find("align.losses", row.partition(",")[0]))


def test_every_loss_has_a_row() -> None:
    assert {row.partition(",")[0] for row in ROWS} | {"ld-dpo", "tdpo", "tdpo1"} == {
        e.name for e in registry.entries("align.losses")
    }


@pytest.mark.parametrize("row", ROWS)
def test_value_and_gradient_are_those_of_the_closed_form(row: str) -> None:
    p, form = numbers(), ROWS[row].form
    given, leaves = pairs(p)
    values = loss(row)(given, **ROWS[row].settings)
    assert values.shape == p.w.shape
    assert sorted(values.tolist()) == pytest.approx(sorted(form(p, p)), rel=1e-6, abs=1e-9)
    for side, found in zip("wl", torch.autograd.grad(values.sum(), leaves, materialize_grads=True), strict=True):
        for i in range(len(p.w)):
            step = np.eye(len(p.w))[i] * 1e-5
            up, down = (form(replace(p, **{side: getattr(p, side) + s * step}), p).sum() for s in (1, -1))
            assert found[i].item() == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-6), f"{side}{i}"


@pytest.mark.parametrize("row", ROWS)
def test_the_order_of_pairs_changes_nothing(row: str) -> None:
    p = numbers()
    turned = Numbers(*(x[::-1].copy() for x in vars(p).values()))
    one, other = (loss(row)(pairs(x)[0], **ROWS[row].settings).sum().item() for x in (p, turned))
    assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("tail", [0.0, 0.3, 1.0])
def test_ld_dpo(tail: float) -> None:
    expected = []
    for row, reference, lengths in zip(LOGPS, REFERENCE, LENGTHS, strict=True):
        shorter = lengths.min()
        ratios = [a - b for a, b in zip(row, reference, strict=True)]
        w, l = (x[:shorter].sum() + tail * x[shorter:].sum() for x in ratios)
        expected.append(nls(0.1 * (w - l)))
    given = replace(pairs(numbers())[0], tokens=scores(LOGPS), tokens_reference=scores(REFERENCE))
    values = loss("ld-dpo")(given, tail=tail)
    assert values.tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.grad(values.sum(), given.tokens.logps)[0].abs().sum() > 0  # type: ignore[union-attr]
    assert values.mean().item() == pytest.approx(trl(loss_types=["sigmoid"], ld_alpha=tail), abs=1e-6)


class Known(torch.nn.Module):
    """A model whose log-probabilities are given: all chosen answers, then all rejected ones, padded."""

    is_gradient_checkpointing = False

    def __init__(self, of: list[list[np.ndarray]], squares: list[list[np.ndarray]] | None = None) -> None:
        super().__init__()
        self.logps, own = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(row[k]).float() for k in (0, 1) for row in given], True)
            for given in (of, squares or of)
        )
        self.squares = own if squares else torch.zeros_like(own)  # 0: the weights of WPO without alignment

    def forward(self, **_: Any) -> SimpleNamespace:
        zero = torch.zeros_like(self.logps)
        others = {"log_sum_sq_probs": self.squares, "entropy": zero, "mean_logits": zero, "is_top1": zero.bool()}
        return SimpleNamespace(log_probs=self.logps, **others)


def trl(**settings: Any) -> float:
    """Return the loss that TRL's DPOTrainer computes from the same log-probabilities of tokens."""
    from trl.trainer.dpo_trainer import DPOTrainer

    lengths = torch.tensor(LENGTHS.T.reshape(-1, 1))
    mask = (torch.arange(LENGTHS.max() + 1) <= lengths) & (torch.arange(LENGTHS.max() + 1) > 0)
    trainer = SimpleNamespace(
        model=Known(LOGPS), ref_model=Known(REFERENCE), aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False,
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05), f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5, loss_weights=[1.0], beta=0.1, label_smoothing=0.0, use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    vars(trainer).update(settings)
    inputs = dict.fromkeys(("input_ids", "attention_mask", "completion_mask"), mask.long())
    return float(DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False))


@pytest.mark.parametrize("row", [name for name, row in ROWS.items() if row.trl is not None])
def test_it_equals_trls(row: str) -> None:
    chosen = ROWS[row]
    values = loss(row)(pairs(numbers())[0], **chosen.settings)
    mean = values.sum() / (LENGTHS[:, 0].sum() if loss(row).per == "tokens" else len(values))
    assert mean.item() == pytest.approx(trl(**(chosen.trl or {})), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("row", "mean", "settings"),
    [
        ("cpo", False, {"loss_type": "sigmoid", "beta": 0.1}),
        ("simpo", True, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
        ("alphapo", True, {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.1, "alpha": 0.25}),
    ],
)
def test_it_equals_trls_without_a_reference(row: str, mean: bool, settings: dict[str, Any]) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    given, _ = pairs(numbers())
    sides = (given.chosen.means, given.rejected.means) if mean else (given.chosen, given.rejected)
    own = {"accelerator": SimpleNamespace(device="cpu"), "alpha": 0.0, "label_smoothing": 0.0, **settings}
    losses, *rewards = CPOTrainer.cpo_loss(SimpleNamespace(**own), *(side.logps for side in sides))
    assert loss(row)(given).tolist() == pytest.approx(losses.tolist(), rel=1e-6)
    reward = loss(row).reward
    if reward is not None:
        names = ("beta",) if row == "cpo" else ("beta", "gamma", "shape")
        mine = reward(given, **dict(zip(names, (settings["beta"], 0.1, 0.25), strict=False)))
        assert [x.tolist() for x in mine] == [pytest.approx(x.tolist()) for x in rewards]


@pytest.mark.parametrize("family", FAMILIES)
def test_doctests(family: str) -> None:
    result = doctest.testmod(import_module(f"alignkit_losses.{family}"))
    assert result.attempted > 0
    assert result.failed == 0
