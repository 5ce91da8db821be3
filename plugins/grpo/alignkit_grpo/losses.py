"""Pure functions of GRPO and RLOO. ``G``: prompts, ``K``: answers per prompt, ``N``: tokens of all answers."""

from __future__ import annotations

import torch

EPSILON = 1e-4


def group_advantages(rewards: torch.Tensor, *, baseline: str, scale: str, spread: float = 1.0) -> torch.Tensor:
    """Return the advantage of every answer over the others to the same prompt, ``[G, K]``.

        mean          A_k = r_k - mean(r)                    GRPO, arXiv:2402.03300, section 4.1.2
        leave-one-out A_k = r_k - mean(r_j, j != k)          RLOO, arXiv:2402.14740, eq. 8

    Args:
        rewards: ``[G, K]``, K at least 2.
        baseline: ``mean`` or ``leave_one_out``.
        scale: ``group`` divides by the group's standard deviation, ``batch`` by ``spread``, ``none`` does not divide (Dr. GRPO,
            arXiv:2503.20783).
        spread: standard deviation of the rewards of the whole rollout.

    >>> group_advantages(torch.tensor([[1.0, 0.0]]), baseline="leave_one_out", scale="none")
    tensor([[ 1., -1.]])
    """
    others = rewards.shape[1] - 1
    advantages = rewards - rewards.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        advantages = advantages * ((others + 1) / others)  # r_k - (sum - r_k) / (K - 1)
    if scale == "group":
        return advantages / (rewards.std(1, keepdim=True) + EPSILON)
    return advantages / (spread + EPSILON) if scale == "batch" else advantages


def clipped_loss(log_ratios: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float) -> torch.Tensor:
    """Return the clipped surrogate loss of every token, ``[N]``, with separate bounds (DAPO, arXiv:2503.14476, eq. 8).

    >>> clipped_loss(torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0]), low=0.2, high=0.28)
    tensor([-1.2800,  0.8000])
    """
    ratios = log_ratios.exp()
    return torch.maximum(-ratios * advantages, -ratios.clamp(1 - low, 1 + high) * advantages)


def kl_k3(logps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the KL to the reference of every token, ``[N]``: the k3 estimate ``exp(-r) - 1 + r >= 0`` of the log-ratio r.

    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    difference = reference - logps
    return difference.expm1() - difference
