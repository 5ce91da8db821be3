"""Losses of the margin ``h``: the log-ratio of the chosen answer to the reference minus that of the rejected one.

    h = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))

Log-ratios are sums over an answer's tokens, or means with ``ratio="mean"``. All return ``[G]``, one number per pair.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from alignkit import Pairs, loss
from pydantic import Field

Beta = Annotated[float, Field(gt=0, description="strength of the implicit KL penalty to the reference")]
Smoothing = Annotated[
    float, Field(ge=0, lt=0.5, description="assumed share of flipped labels", json_schema_extra={"neutral": 0})
]
Ratio = Annotated[
    Literal["sum", "mean"], Field(description="log-ratio of an answer: sum or mean (length-normalised) over its tokens")
]
RAFAILOV = "Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290"
REFERENCE = frozenset({"reference"})


def margins(pairs: Pairs, ratio: str) -> torch.Tensor:
    """Return ``h`` of each pair, ``[G]``, from sums or means."""
    return pairs.chosen.means.ratios - pairs.rejected.means.ratios if ratio == "mean" else pairs.margins


@loss(RAFAILOV, equation="7", needs=REFERENCE)
def sigmoid(pairs: Pairs, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0, ratio: Ratio = "sum") -> torch.Tensor:
    """Return ``log(1 + exp(-beta h))`` (DPO); with label smoothing, cDPO.

    >>> from alignkit_losses.examples import pairs
    >>> sigmoid(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)  # -log sigmoid(0.2)
    tensor([0.5981])
    """
    z = beta * margins(pairs, ratio)
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


@loss("Ray Chowdhury et al. 2024, Provably Robust DPO, https://arxiv.org/abs/2403.00409", equation="7", needs=REFERENCE)
def robust(pairs: Pairs, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0, ratio: Ratio = "sum") -> torch.Tensor:
    """Return the sigmoid loss corrected for flipped labels: ``(-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e)``.

    >>> from alignkit_losses.examples import pairs
    >>> robust(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1, label_smoothing=0.1)
    tensor([0.5731])
    """
    z, e = beta * margins(pairs, ratio), label_smoothing
    kept, flipped = (1 - e) * F.logsigmoid(z), e * F.logsigmoid(-z)
    return (flipped - kept) / (1 - 2 * e)


@loss("Zhao et al. 2023, SLiC-HF, https://arxiv.org/abs/2305.10425, normalised as in RSO (2309.06657)", needs=REFERENCE)
def hinge(pairs: Pairs, *, beta: Beta = 0.1, ratio: Ratio = "sum") -> torch.Tensor:
    """Return ``max(0, 1 - beta h)``.

    >>> from alignkit_losses.examples import pairs
    >>> hinge(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.25)
    tensor([0.5000])
    """
    return torch.relu(1 - beta * margins(pairs, ratio))


@loss(
    "Azar et al. 2023, A General Theoretical Paradigm, https://arxiv.org/abs/2310.12036", equation="17", needs=REFERENCE
)
def ipo(pairs: Pairs, *, beta: Beta = 0.1, ratio: Ratio = "mean") -> torch.Tensor:
    """Return ``(h - 1 / (2 beta))^2``; ``beta`` is the paper's tau. TRL and HALOs take means, the original code sums.

    >>> from alignkit_losses.examples import pairs
    >>> ipo(pairs(chosen=[3.0], rejected=[1.0]), beta=0.5)
    tensor([1.])
    """
    return (margins(pairs, ratio) - 1 / (2 * beta)) ** 2


@loss(
    "Mitchell 2023, A note on DPO with noisy preferences, https://ericmitchell.ai/cdpo.pdf",
    equation="3",
    needs=REFERENCE,
)
def cdpo(pairs: Pairs, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.1, ratio: Ratio = "sum") -> torch.Tensor:
    """Return ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``, e the share of flipped labels.

    >>> from alignkit_losses.examples import pairs
    >>> cdpo(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.6181])
    """
    z, e = beta * margins(pairs, ratio), label_smoothing
    return -(1 - e) * F.logsigmoid(z) - e * F.logsigmoid(-z)


@loss("Ji et al. 2024, Efficient Exact Optimization, https://arxiv.org/abs/2402.00856", equation="16", needs=REFERENCE)
def exo_pair(
    pairs: Pairs,
    *,
    beta: Beta = 0.1,
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5, description="assumed share of flipped labels")] = 1e-3,
) -> torch.Tensor:
    """Return the KL of ``(sigmoid(beta h), sigmoid(-beta h))`` to ``(1 - e, e)``, e the share of flipped labels.

    >>> from alignkit_losses.examples import pairs
    >>> exo_pair(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([2.4220])
    """
    z, e = beta * pairs.margins, label_smoothing
    kept = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-e))
    return kept + torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(e))


@loss("Lu et al. 2024, DiscoPOP, https://arxiv.org/abs/2406.08414", equation="5", needs=REFERENCE)
def discopop(
    pairs: Pairs,
    *,
    beta: Beta = 0.05,
    tau: Annotated[
        float, Field(gt=0, description="width of the passage from the logistic to the exponential loss")
    ] = 0.05,
) -> torch.Tensor:
    """Return ``(1 - s) log(1 + exp(-beta h)) + s exp(-beta h)`` with ``s = sigmoid(beta h / tau)``.

    >>> from alignkit_losses.examples import pairs
    >>> discopop(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.8148])
    """
    z = beta * pairs.margins
    share = torch.sigmoid(z / tau)
    return (1 - share) * -F.logsigmoid(z) + share * torch.exp(-z)


@loss(
    "Park et al. 2024, Disentangling Length from Quality, https://arxiv.org/abs/2403.19159",
    needs=REFERENCE,
)
def r_dpo(
    pairs: Pairs,
    *,
    beta: Beta = 0.1,
    length_weight: Annotated[
        float,
        Field(
            ge=0,
            description="penalty of a token (alpha of the paper, which tunes it)",
            json_schema_extra={"neutral": 0},
        ),
    ] = 0.01,
) -> torch.Tensor:
    """Return ``log(1 + exp(-(beta h + length_weight (|y_w| - |y_l|))))``: a longer chosen answer needs a smaller margin.

    >>> from alignkit_losses.examples import pairs
    >>> r_dpo(pairs(chosen=[1.0], rejected=[-1.0], lengths=([3], [2])), beta=0.1, length_weight=0.1)
    tensor([0.5544])
    """
    return -F.logsigmoid(beta * pairs.margins + length_weight * (pairs.chosen.lengths - pairs.rejected.lengths))


@loss("Pal et al. 2024, Smaug: DPO-Positive, https://arxiv.org/abs/2402.13228", needs=REFERENCE)
def dpop(
    pairs: Pairs,
    *,
    beta: Beta = 0.3,
    penalty: Annotated[
        float,
        Field(
            ge=0,
            description="weight of a chosen answer less likely than by the reference (lambda)",
            json_schema_extra={"neutral": 0},
        ),
    ] = 50.0,
) -> torch.Tensor:
    """Return ``log(1 + exp(-beta (h - penalty max(0, log ref(y_w|x) - log pi(y_w|x)))))``.

    >>> from alignkit_losses.examples import pairs
    >>> dpop(pairs(chosen=[-1.0], rejected=[-3.0]), beta=0.1, penalty=2.0)
    tensor([0.6931])
    """
    return -F.logsigmoid(beta * (pairs.margins - penalty * torch.relu(-pairs.chosen.ratios)))
