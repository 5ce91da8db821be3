"""Advantages of sampled answers, as pure functions. ``G``: prompts, ``K``: answers per prompt, ``R``: rewards, ``N``: tokens."""

from __future__ import annotations

import torch

EPSILON = 1e-4


def group_advantages(
    rewards: torch.Tensor, *, baseline: str, scale: str, spread: float = 1.0, greedy: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the advantage of every answer, ``[G, K]``.

        mean          A_k = r_k - mean(r)                    GRPO, arXiv:2402.03300, section 4.1.2
        leave_one_out A_k = r_k - mean(r_j, j != k)          RLOO, arXiv:2402.14740, eq. 8
        greedy        A_k = r_k - r(greedy answer)           ReMax, arXiv:2310.10505, algorithm 1
        none          A_k = r_k                              REINFORCE

    Args:
        rewards: ``[G, K]``, K at least 2 for the first two baselines and for ``scale="group"``.
        baseline: one of the four.
        scale: ``group`` divides by the group's standard deviation, ``batch`` by ``spread``, ``none`` does not divide (Dr. GRPO,
            arXiv:2503.20783), nor does ``whiten``, which is done for the whole rollout.
        spread: standard deviation of the rewards of the whole rollout.
        greedy: ``[G]`` rewards of the greedy answers.

    >>> group_advantages(torch.tensor([[1.0, 0.0]]), baseline="leave_one_out", scale="none")
    tensor([[ 1., -1.]])
    """
    advantages = rewards
    if baseline in ("mean", "leave_one_out"):
        advantages = rewards - rewards.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        advantages = advantages * (rewards.shape[1] / (rewards.shape[1] - 1))  # r_k - (sum - r_k) / (K - 1)
    if greedy is not None:
        advantages = rewards - greedy[:, None]
    if scale == "group":
        return advantages / (rewards.std(1, keepdim=True) + EPSILON)
    return advantages / (spread + EPSILON) if scale == "batch" else advantages


def normalised_sum(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of rewards that are normalised by group, ``[G, K]`` (GDPO, arXiv:2601.05242, eq. 4 and 5).

        A_k = sum_i w_i (r_ik - mean(r_i)) / std(r_i)

    So a reward of a large range does not drown the others. Answers that a reward does not judge (NaN) count for the others.

    Args:
        rewards: ``[R, G, K]``.
        weights: ``[R]``.

    >>> normalised_sum(torch.tensor([[[0.0, 100.0]], [[1.0, 0.0]]]), torch.tensor([1.0, 0.5]))
    tensor([[-0.3536,  0.3536]])
    """
    judged = ~rewards.isnan()
    count = judged.sum(2, keepdim=True)
    apart = rewards - rewards.nanmean(2, keepdim=True)
    squares = torch.where(judged, apart, 0.0).square().sum(2, keepdim=True)
    normalised = apart / ((squares / (count - 1).clamp(min=1)).sqrt() + EPSILON)
    return (weights[:, None, None] * torch.where(judged, normalised, 0.0)).sum(0)


def later_sums(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return for every token the sum of ``values [N]`` from it to the end of its answer, ``[N]``; ``lengths [S]`` are the answers'.

    >>> later_sums(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2, 1]))
    tensor([3., 2., 5.])
    """
    parts = torch.split(values.double(), lengths.tolist())
    return torch.cat([part.flip(0).cumsum(0).flip(0) for part in parts] or [values]).to(values.dtype)
