"""Divergences between the teacher's and the student's distribution of a token. ``n``: tokens, ``V``: outcomes."""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """Return the generalised Jensen-Shannon divergence of every token, ``[n]`` (GKD, arXiv:2306.13649, eq. 1 and section 2).

        D = beta KL(p, m) + (1 - beta) KL(q, m)        m = beta p + (1 - beta) q
        beta = 0: KL(p, q), forward KL                 beta = 1: KL(q, p), reverse KL

    ``p`` is the teacher and ``q`` the student. The gradient is that of the student alone, in closed form, and exactly 0 where
    the two distributions are equal.

    Args:
        student: log-probabilities, ``[n, V]``.
        teacher: log-probabilities, ``[n, V]``.
        beta: interpolation between the two, from 0 to 1.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> [round(divergence(q.log(), p.log(), beta=beta).item(), 4) for beta in (0, 0.5, 1)]
    [0.1438, 0.0338, 0.1308]
    """
    s, t = student.detach(), teacher.detach()
    p, q = t.exp(), s.exp()
    # Each outcome's term has q - p or p - q added, which sums to 0: terms are then never negative, and rounding is small.
    if beta == 0:
        values, slope = p * (t - s) + (q - p), q - p
    elif beta == 1:
        slope = q * (s - t)
        values = slope + (p - q)
    else:
        gap = s - t
        rare = -torch.log1p(beta * (-gap).clamp(max=0).expm1())  # log q - log m where q >= p
        often = gap - torch.log1p((1 - beta) * gap.clamp(max=0).expm1())
        ratio = torch.where(gap >= 0, rare, often)
        slope = (1 - beta) * q * ratio
        values = slope + beta * p * (ratio - gap)
    return values.sum(-1) + (slope * (student - s)).sum(-1)


def coarsened(logps: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of the outcomes ``ids [n, k]`` and of all others together, ``[n, k + 1]``.

    The divergence of two distributions coarsened alike is a lower bound of theirs, and 0 if they are equal.

    >>> coarsened(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.5000, 0.5000]])
    """
    rest = logps.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logps.gather(1, ids), rest], 1)


def within(logps: Tensor, width: int) -> Tensor:
    """Return the distribution over the first ``width`` tokens: embeddings of one tokenizer may be padded to other sizes."""
    return logps if logps.shape[1] == width else logps[:, :width].log_softmax(1)
