"""PPO and GRPO computed by hand: advantages, clipping, group baselines, KL estimates."""

from __future__ import annotations

import random

import pytest
import torch
from alignkit_grpo import group_advantages
from alignkit_onpolicy import kl_estimate
from alignkit_ppo import clipped_policy_loss, explained_variance, gae


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 as printed: a sum over later errors, without recursion."""
    following = [*values[1:], 0.0]
    errors = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** k * error for k, error in enumerate(errors[t:])) for t in range(len(errors))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.97, 0.9), (0.0, 0.5)])
def test_advantages_equal_the_definition(gamma: float, lam: float) -> None:
    draw = random.Random(0)
    lengths = [1, 7, 3, 12, 1]
    answers = [[(draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(n)] for n in lengths]
    flat = [pair for answer in answers for pair in answer]
    found = gae(
        torch.tensor([r for r, _ in flat]),
        torch.tensor([v for _, v in flat]),
        torch.tensor(lengths),
        gamma=gamma,
        lam=lam,
    )
    expected = [a for answer in answers for a in plain_gae([r for r, _ in answer], [v for _, v in answer], gamma, lam)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    # On its own, without padding to longer answers, an answer has the same advantages.
    alone = gae(
        torch.tensor([r for r, _ in answers[2]]),
        torch.tensor([v for _, v in answers[2]]),
        torch.tensor([3]),
        gamma=gamma,
        lam=lam,
    )
    torch.testing.assert_close(alone, found[8:11])


def test_clipping_binds_on_one_side_only() -> None:
    log_ratios = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    clipped_policy_loss(log_ratios, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip=0.2).sum().backward()
    assert log_ratios.grad is not None
    assert log_ratios.grad[0] == 0, "above the clip range with a positive advantage: no gradient"
    assert log_ratios.grad[3] == 0, "below the clip range with a negative advantage: no gradient"
    assert log_ratios.grad[1] < 0 < log_ratios.grad[2], "outside the clip range on the wrong side: pulled back"


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]])
    found = group_advantages(rewards, baseline="leave_one_out", scale="none")
    expected = torch.tensor([[1 - 0.25, 0 - 0.75, 0.5 - 0.5], [0, 0, 0]])
    torch.testing.assert_close(found, expected)
    scaled = group_advantages(rewards, baseline="mean", scale="group")
    torch.testing.assert_close(scaled[0], (rewards[0] - 0.5) / (0.5 + 1e-4))
    assert torch.equal(scaled[1], torch.zeros(3)), "equal rewards: no gradient"


def test_k3_is_positive_and_right_on_average() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    k3 = kl_estimate(p - q, "k3")
    assert bool((k3 >= 0).all())
    torch.testing.assert_close((p.exp() * k3).sum(), (p.exp() * (p - q)).sum())


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0])
    variance = float(returns.var(unbiased=False))
    for values, expected in ((returns, 1.0), (torch.zeros(3), 0.0), (returns / 2, 0.75)):
        assert explained_variance(float((returns - values).var(unbiased=False)), variance) == pytest.approx(expected)
    assert explained_variance(0.0, 0.0) == 0.0


def test_no_rows_have_no_advantages() -> None:
    """A process may have no held-out rows."""
    none = torch.empty(0)
    assert len(gae(none, none, torch.empty(0, dtype=torch.long), gamma=1.0, lam=1.0)) == 0
