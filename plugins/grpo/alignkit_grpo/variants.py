"""The published algorithms that are settings of grpo: the value of each paper's objective by name.

How much is sampled (``num_generations`` where a baseline does not fix it, ``max_new_tokens``, the batch) is not set by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Variant = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo", "gdpo", "reinforce_pp", "remax"]

_SHARED: dict[str, Any] = {
    "baseline": "mean",
    "scale": "group",
    "per_reward": False,
    "kl_coef": 0.0,
    "kl_in": "loss",
    "kl_estimator": None,
    "importance": "token",
    "surrogate": "clipped",
    "clip": 0.2,
    "clip_high": None,
    "reduction": "token",
    "refill_rounds": 0,
    "overlong_buffer": 0.0,
    "overlong_penalty": 1.0,
    "minibatches": 1,
}

_PAPERS: dict[Variant, dict[str, Any]] = {
    # DeepSeekMath, arXiv:2402.03300, eq. 3, 4 and section 4.2: one update per rollout, the KL in the loss
    "grpo": {"reduction": "sequence", "kl_coef": 0.04},
    # arXiv:2503.14476, eq. 8 and 13, section 4.1: 16 updates per rollout, a buffer of 4,096 of 20,480 tokens
    "dapo": {
        "clip_high": 0.28,
        "refill_rounds": 10,
        "overlong_buffer": 0.2,
        "overlong_penalty": 1.0,
        "minibatches": 16,
    },
    # arXiv:2503.20783, section 3.2: neither the length of an answer nor the deviation of its group divides
    "dr_grpo": {"scale": "none", "reduction": "constant"},
    # arXiv:2507.18071, eq. 5 to 7 and section 5.1: 4 updates per rollout
    "gspo": {
        "importance": "sequence",
        "clip": 3e-4,
        "clip_high": 4e-4,
        "reduction": "sequence",
        "minibatches": 4,
    },
    # arXiv:2506.13585, eq. 4 and 5: 16 updates per rollout, no lower bound; the upper one, 5, is that of arXiv:2510.13786
    "cispo": {"surrogate": "cispo", "clip": 1.0, "clip_high": 4.0, "minibatches": 16},
    # arXiv:2402.14740, eq. 8 and appendix B (TL;DR): the whole answer is one action, the KL in its reward
    "rloo": {
        "baseline": "leave_one_out",
        "scale": "none",
        "kl_coef": 0.03,
        "kl_in": "reward",
        "reduction": "sum",
    },
    # arXiv:2601.05242, eq. 4 to 6: each reward normalised by group, their sum by rollout
    "gdpo": {"per_reward": True, "scale": "whiten"},
    # arXiv:2501.03262, section 3: no baseline, the KL of later tokens in every token's reward, advantages normalised by rollout
    "reinforce_pp": {
        "group": 1,
        "baseline": "none",
        "scale": "whiten",
        "kl_coef": 0.01,
        "kl_in": "tokens",
        "kl_estimator": "k1",
    },
    # arXiv:2310.10505, algorithm 1 (kl_coef: the authors' code): the baseline is the reward of the greedy answer
    "remax": {
        "group": 1,
        "baseline": "greedy",
        "scale": "none",
        "kl_coef": 0.1,
        "kl_in": "tokens",
        "kl_estimator": "k1",
        "reduction": "sum",
    },
}

VARIANTS: Mapping[str, Mapping[str, Any]] = {name: _SHARED | values for name, values in _PAPERS.items()}
