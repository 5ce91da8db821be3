"""Policy losses of sampled answers, as pure functions. ``S``: answers, ``N``: tokens of all answers."""

from __future__ import annotations

from typing import Literal

import torch


def importance_weights(
    log_ratios: torch.Tensor, sequence: torch.Tensor, lengths: torch.Tensor, *, level: Literal["token", "sequence"]
) -> torch.Tensor:
    """Return the logarithm of the importance weight of every token, ``[N]``.

        token     log w_t = log pi(y_t|s_t) - log pi_old(y_t|s_t)                      PPO, GRPO
        sequence  log w_t = (1 / |y|) sum_t log(pi(y_t|s_t) / pi_old(y_t|s_t))         GSPO, arXiv:2507.18071, eq. 7

    The weight of a sequence has the gradient of GSPO-token (its section 4.3): the value of the sequence, and the gradient of
    the token's own log-probability. It is the gradient of GSPO if the tokens of an answer have one advantage.

    Args:
        log_ratios: ``[N]`` log pi - log pi_old of every token.
        sequence: ``[N]`` index of every token's answer.
        lengths: ``[S]`` tokens of each answer.
        level: one weight per token, or one per answer.

    >>> importance_weights(torch.tensor([0.1, 0.3]), torch.tensor([0, 0]), torch.tensor([2]), level="sequence")
    tensor([0.2000, 0.2000])
    """
    if level == "token":
        return log_ratios
    means = log_ratios.detach().new_zeros(len(lengths)).index_add(0, sequence, log_ratios.detach()) / lengths
    return means[sequence] + (log_ratios - log_ratios.detach())


def clipped_loss(log_weights: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float) -> torch.Tensor:
    """Return the clipped surrogate loss of every token, ``[N]`` (PPO, arXiv:1707.06347, eq. 7, negated).

        L = max(-w A, -clamp(w, 1 - low, 1 + high) A)        separate bounds: DAPO, arXiv:2503.14476, eq. 8

    >>> clipped_loss(torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0]), low=0.2, high=0.28)
    tensor([-1.2800,  0.8000])
    """
    weights = log_weights.exp()
    return torch.maximum(-weights * advantages, -weights.clamp(1 - low, 1 + high) * advantages)


def cispo_loss(
    log_weights: torch.Tensor, advantages: torch.Tensor, logps: torch.Tensor, *, low: float, high: float
) -> torch.Tensor:
    """Return the loss of every token, ``[N]``, with the importance weight clipped and without its gradient.

        L = -sg(clamp(w, 1 - low, 1 + high)) A log pi(y_t|s_t)       CISPO, arXiv:2506.13585, eq. 4 and 5

    No token loses its gradient, as it does in the clipped surrogate. With ``low`` of 1 there is no lower bound.

    >>> cispo_loss(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([-0.5]), low=1.0, high=4.0)
    tensor([2.5000])
    """
    return -log_weights.detach().exp().clamp(1 - low, 1 + high) * advantages * logps


def kl_estimate(log_ratios: torch.Tensor, kind: str) -> torch.Tensor:
    """Return an estimate of KL(pi, ref) for every token, ``[N]``, given r = log pi - log ref (Schulman 2020, joschu.net/blog/kl-approx.html).

        k1  r                          unbiased; as a loss its expected gradient is 0
        k2  r^2 / 2                    its gradient is an unbiased one of the KL
        k3  exp(-r) - 1 + r            unbiased, never negative

    >>> [kl_estimate(torch.tensor([1.0]), kind).item() for kind in ("k1", "k2")]
    [1.0, 0.5]
    """
    if kind == "k1":
        return log_ratios
    if kind == "k2":
        return log_ratios.square() / 2
    return (-log_ratios).expm1() + log_ratios
