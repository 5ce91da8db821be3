"""Sampling in which an answer depends on its own seed alone, not on the batch, the process or the device that generates it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_GAMMA, _FIRST, _SECOND = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def answer_seeds(key: Sequence[int], answers: int) -> list[int]:
    """Return a seed (63 bits) for each of several answers; another ``key`` gives other seeds."""
    return [int(seed) >> 1 for seed in np.random.SeedSequence(key).generate_state(answers, np.uint64)]


def split_mix(state: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Return the outputs ``number`` (from 0) of the SplitMix64 generators with these states, both int64 (Steele et al. 2014)."""
    bits = state + (number + 1) * _GAMMA  # int64 wraps around
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits ^= (bits >> shift).bitwise_and_(2 ** (64 - shift) - 1)  # a shift of int64 copies the sign
        bits *= factor
    return bits ^ (bits >> 31).bitwise_and_(2**33 - 1)


def noisy(logits: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
    """Return log-probabilities ``[B, V]`` with noise, the highest of which is a sample; ``seeds`` are int64 ``[B]``.

    ``argmax_v(log p_v + G_v)`` has the distribution p (the Gumbel-max trick; Maddison et al. 2014, arXiv:1411.0030). The noise G
    follows from the row's seed, the number ``step`` of tokens generated before, and the token v.
    """
    streams = split_mix(seeds, torch.full_like(seeds, step))  # (B,)
    bits = split_mix(streams[:, None], torch.arange(logits.shape[1], device=logits.device))  # (B, V)
    return logits.log_softmax(-1).add_(gumbel(bits))


def gumbel(bits: torch.Tensor) -> torch.Tensor:
    """Return Gumbel noise, ``-log(-log(1 - u))``, for 64 random bits each (int64)."""
    uniform = (bits >> 11).bitwise_and_(2**53 - 1).to(torch.float32).mul_(2.0**-53)
    # Small numbers decide, and there float32 is dense; the bounds keep both logarithms finite.
    return uniform.clamp_(2.0**-54, 1 - 2.0**-24).neg_().log1p_().neg_().log_().neg_()
