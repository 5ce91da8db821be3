"""Pure functions of PPO. ``S``: answers, ``T``: tokens of the longest answer, ``N``: tokens of all answers."""

from __future__ import annotations

import torch
from alignkit_onpolicy import clipped_loss


def gae(
    rewards: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, *, gamma: float, lam: float
) -> torch.Tensor:
    """Return the generalised advantage estimates (arXiv:1506.02438, eq. 16), ``[N]``.

        delta_t = r_t + gamma V(s_t+1) - V(s_t),   V = 0 after an answer's last token
        A_t     = delta_t + gamma lambda A_t+1

    Args:
        rewards: ``[N]`` reward of every token, answers concatenated.
        values: ``[N]`` value of the state before each token.
        lengths: ``[S]`` tokens of each answer.
        gamma: discount factor.
        lam: 0 uses one-step errors of the values, 1 the rewards to the end of the answer.

    >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([2]), gamma=1.0, lam=1.0)
    tensor([0.5000, 0.7500])
    """
    if not len(lengths):
        return rewards
    pad = torch.nn.utils.rnn.pad_sequence
    parts: list[int] = lengths.tolist()
    r, v = (pad(list(torch.split(flat, parts)), batch_first=True) for flat in (rewards, values))  # (S, T)
    inside = torch.arange(r.shape[1]) < lengths[:, None]  # (S, T)
    following = torch.cat([v[:, 1:], v.new_zeros(len(v), 1)], dim=1)  # padding is 0: no value after the last token
    deltas = r + gamma * following - v
    advantages, later = torch.zeros_like(r), r.new_zeros(len(r))
    for t in reversed(range(r.shape[1])):
        later = torch.where(inside[:, t], deltas[:, t] + gamma * lam * later, 0.0)
        advantages[:, t] = later
    return advantages[inside]


def clipped_policy_loss(log_ratios: torch.Tensor, advantages: torch.Tensor, *, clip: float) -> torch.Tensor:
    """Return the clipped surrogate loss of every token, ``[N]`` (arXiv:1707.06347, eq. 7, negated).

        rho = pi(y_t | s_t) / pi_old(y_t | s_t)
        L   = max(-rho A, -clamp(rho, 1 - clip, 1 + clip) A)

    >>> clipped_policy_loss(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0]), clip=0.2)
    tensor([-2.0000, -2.4000])
    """
    return clipped_loss(log_ratios, advantages, low=clip, high=clip)


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, clip: float
) -> torch.Tensor:
    """Return half the squared error of every value, ``[N]``: the larger of the plain error and that of the clipped value.

    >>> clipped_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0.2)
    tensor([0.3200])
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def explained_variance(unexplained: float, variance: float) -> float:
    """Return ``1 - Var(returns - values) / Var(returns)``, given both: 1 for a perfect critic, 0 for a constant one.

    It is 0 where the returns do not vary.

    >>> explained_variance(0.5, 2.0)
    0.75
    """
    return 1.0 - unexplained / variance if variance > 1e-12 else 0.0
