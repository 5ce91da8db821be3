"""Every built-in loss, written a second time with numpy, and what it is called in TRL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import expit, log_expit


@dataclass(frozen=True)
class Numbers:
    """Pairs as numpy arrays ``[G]``: log-probabilities of chosen and rejected answers by policy and reference, and lengths."""

    w: np.ndarray
    l: np.ndarray
    rw: np.ndarray
    rl: np.ndarray
    nw: np.ndarray
    nl: np.ndarray

    @property
    def h(self) -> np.ndarray:
        return self.w - self.rw - self.l + self.rl

    @property
    def mean(self) -> Numbers:
        nw, nl = self.nw, self.nl
        return replace(self, w=self.w / nw, l=self.l / nl, rw=self.rw / nw, rl=self.rl / nl)


def nls(x):
    """-log sigmoid(x)."""
    return -log_expit(x)


def smooth(x, e):
    return (1 - e) * nls(x) + e * nls(-x)


def log_odds(x):
    return x - np.log1p(-np.exp(x))


def exo(p, s, beta=0.1, e=1e-3):
    q = expit(beta * p.h)
    return q * np.log(q / (1 - e)) + (1 - q) * np.log((1 - q) / e)


def discopop(p, s, beta=0.05, tau=0.05):
    z = beta * p.h
    return (1 - expit(z / tau)) * nls(z) + expit(z / tau) * np.exp(-z)


def nca(p, s, beta=0.01):
    c, r = beta * (p.w - p.rw), beta * (p.l - p.rl)
    return nls(c) + nls(-c) / 2 + nls(-r) / 2


def divergence(slope):
    return lambda p, s: nls(0.1 * (slope(np.exp(p.w - p.rw)) - slope(np.exp(p.l - p.rl))))


def aot(p, s):
    """The pair of the i-th smallest log-ratio of the policy has the i-th smallest of the reference."""
    return nls(0.1 * (np.sort(p.w - p.l) - np.sort(p.rw - p.rl)))


def bco(p, s, beta=0.01):
    delta = beta * np.concatenate([s.w - s.rw, s.l - s.rl]).mean()
    return nls(beta * (p.w - p.rw) - delta) + nls(delta - beta * (p.l - p.rl))


def kto(p, s, beta=0.1):
    zw, zl = max((s.w - s.rw).mean(), 0), max((s.l - s.rl).mean(), 0)
    return (1 - expit(beta * (p.w - p.rw - zl))) / 2 + (1 - expit(beta * (zw - p.l + p.rl))) / 2


def beta_dpo(p, s):
    return nls(max(0.1 * (1 + 0.6 * (s.h.mean() - 0.1 * s.h.mean())), 1e-3) * p.h)


def alpha_dpo(p, s):
    h = s.mean.h
    target = 0.6 + 0.2 * (h - 0.1 * h.mean()) / (0.1 * h.std(ddof=1))
    return nls(2.5 * (p.mean.w - p.mean.l - target))


@dataclass(frozen=True)
class Row:
    """A loss: its closed form ``(pairs, pairs whose statistics have no gradient)``, settings that differ from the defaults,
    and the settings of TRL's DPOTrainer that give it."""

    form: Callable[[Numbers, Numbers], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    trl: dict[str, Any] | None = None


ROWS: dict[str, Row] = {
    "sigmoid": Row(lambda p, s: nls(0.1 * p.h), trl={"loss_types": ["sigmoid"]}),
    "sigmoid, means": Row(
        lambda p, s: nls(2 * p.mean.h), {"beta": 2.0, "ratio": "mean"}, {"loss_types": ["sigmoid_norm"], "beta": 2.0}
    ),
    "ipo": Row(lambda p, s: (p.mean.h - 5) ** 2, trl={"loss_types": ["ipo"]}),
    "hinge": Row(lambda p, s: np.maximum(0, 1 - 0.1 * p.h), trl={"loss_types": ["hinge"]}),
    "robust": Row(
        lambda p, s: (0.8 * nls(0.1 * p.h) - 0.2 * nls(-0.1 * p.h)) / 0.6,
        {"label_smoothing": 0.2},
        {"loss_types": ["robust"], "label_smoothing": 0.2},
    ),
    "cdpo": Row(lambda p, s: smooth(0.1 * p.h, 0.1)),
    "exo_pair": Row(exo, trl={"loss_types": ["exo_pair"], "label_smoothing": 1e-3}),
    "nca_pair": Row(nca, trl={"loss_types": ["nca_pair"], "beta": 0.01}),
    "sppo_hard": Row(
        lambda p, s: (p.w - p.rw - 500) ** 2 + (p.l - p.rl + 500) ** 2, trl={"loss_types": ["sppo_hard"], "beta": 0.001}
    ),
    "aot": Row(aot, trl={"loss_types": ["aot"]}),
    "aot_unpaired": Row(
        lambda p, s: nls(0.1 * (np.sort(p.w - p.rw) - np.sort(p.l - p.rl))), trl={"loss_types": ["aot_unpaired"]}
    ),
    "apo_zero": Row(
        lambda p, s: 1 - expit(0.1 * (p.w - p.rw)) + expit(0.1 * (p.l - p.rl)), trl={"loss_types": ["apo_zero"]}
    ),
    "apo_down": Row(lambda p, s: expit(0.1 * (p.w - p.rw)) + 1 - expit(0.1 * p.h), trl={"loss_types": ["apo_down"]}),
    "discopop": Row(discopop, trl={"loss_types": ["discopop"], "beta": 0.05}),
    "bco": Row(bco),
    "bco, no shift": Row(
        lambda p, s: nls(0.01 * (p.w - p.rw)) + nls(-0.01 * (p.l - p.rl)),
        {"shift": "none"},
        {"loss_types": ["bco_pair"], "beta": 0.01},
    ),
    "dpop": Row(lambda p, s: nls(0.3 * (p.h - 50 * np.maximum(0, p.rw - p.w)))),
    "wpo, no alignment": Row(
        lambda p, s: np.exp(s.mean.w + s.mean.l) * nls(0.1 * p.h),
        {"alignment": "none"},
        {"loss_types": ["sigmoid"], "use_weighting": True},
    ),
    "r-dpo": Row(lambda p, s: nls(0.1 * p.h + 0.01 * (p.nw - p.nl))),
    "beta-dpo": Row(beta_dpo, {"dropped": 0.0}),
    "alpha-dpo": Row(alpha_dpo),
    "forward_kl": Row(
        divergence(lambda u: 1 - 1 / u), trl={"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"}
    ),
    "js_divergence": Row(
        divergence(lambda u: np.log(2 * u / (1 + u))),
        trl={"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"},
    ),
    "alpha_divergence": Row(
        divergence(lambda u: (u**-0.5 - 1) / -0.5),
        trl={"loss_types": ["sigmoid"], "f_divergence_type": "alpha_divergence"},
    ),
    "kto": Row(kto),
    "cpo": Row(lambda p, s: nls(0.1 * (p.w - p.l))),
    "simpo": Row(lambda p, s: nls(2 * (p.mean.w - p.mean.l) - 1)),
    "alphapo": Row(lambda p, s: nls(10 * (np.exp(-0.25 * p.mean.l) - np.exp(-0.25 * p.mean.w)) - 0.1)),
    "slic": Row(lambda p, s: np.maximum(0, 1 - p.w + p.l)),
    "odds_ratio": Row(lambda p, s: 0.1 * nls(log_odds(p.mean.w) - log_odds(p.mean.l))),
    "nll": Row(lambda p, s: -p.w, trl={"loss_types": ["sft"]}),
}
"""Losses of answers' log-probabilities; ld-dpo, which needs those of tokens, is in the test."""
