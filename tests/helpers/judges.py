"""Simulated experiments in the demo world with a judge of planted biases, and the coverage of intervals for the true win rate.

Answers are those of the world's questions, with their true grades and lengths. The judge's letter for one order of showing is
drawn with

    logit P(it prefers the target) = skill S + length tanh(difference / 12) + own  +- position

with S = 1 where the target's answer is truly better, -1 where it is worse; both orders are averaged.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from alignkit.demo.world import _graded
from alignkit_eval.statistics import Estimate, clustered_proportion
from alignkit_judge.estimates import UncorrectableError, Verdicts, bounded, corrected_win_rate, rated_win_rate


class Biases(NamedTuple):
    skill: float = 1.2
    position: float = 0.0
    length: float = 0.0
    own: float = 0.0


class World(NamedTuple):
    """Every comparison of two answers to a question: its probability, truth (1, 0.5, 0), and how many characters longer."""

    share: np.ndarray
    truth: np.ndarray
    longer: np.ndarray

    @property
    def win_rate(self) -> float:
        return float(self.share @ self.truth)


def compared(lengthy: float = 0.04) -> World:
    """The target's answers against the baseline's: it gives good and long answers more often."""
    rows = []
    for answers in _graded().values():
        sizes = np.array([len(answer) for answer in answers], float)
        grades = np.arange(len(answers))
        ours = np.exp(0.8 * grades + lengthy * sizes)
        theirs = np.exp(0.2 * grades)
        chance = np.outer(ours / ours.sum(), theirs / theirs.sum())
        rows += [(chance[i, j], (1 + np.sign(i - j)) / 2, sizes[i] - sizes[j]) for i in grades for j in grades]
    share, truth, longer = np.array(rows).T
    return World(share / share.sum(), truth, longer)


def known() -> World:
    """Pairs of neighbouring answers, the better one first, as in the world's held-out rows."""
    found = [len(better) - len(worse) for answers in _graded().values() for worse, better in pairwise(answers)]
    return World(np.full(len(found), 1 / len(found)), np.ones(len(found)), np.array(found, float))


def judged(
    draw: np.random.Generator, world: World, biases: Biases, n: int, scale: float, own: bool
) -> tuple[Verdicts, np.ndarray]:
    which = draw.choice(len(world.share), n, p=world.share)
    truth, longer = world.truth[which], world.longer[which]
    logit = biases.skill * (2 * truth - 1) + biases.length * np.tanh(longer / 12) + biases.own * own
    orders = [draw.random(n) < 1 / (1 + np.exp(-(logit + sign * biases.position))) for sign in (1, -1)]
    credits = np.where(truth == 0.5, 0.5, np.mean(orders, axis=0))  # the same answer twice is a tie
    return Verdicts(credits, bounded(longer, scale), range(n)), truth


def covers(estimate: Estimate, value: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= value <= estimate.high


def coverage(
    trials: int, biases: Biases, *, n: int = 400, m: int = 400, rated: int = 120, seed: int = 0
) -> dict[str, float]:
    """Return the share of experiments whose interval contains the true win rate, for each estimator."""
    draw = np.random.default_rng(seed)
    ours, pairs = compared(), known()
    scale = float(np.std(draw.choice(ours.longer, 10000, p=ours.share)))
    found: dict[str, list[bool]] = {"raw": [], "corrected": [], "rated": []}
    none = 0
    for _ in range(trials):
        verdicts, truth = judged(draw, ours, biases, n, scale, own=True)
        calibration, _ = judged(draw, pairs, biases, m, scale, own=False)
        calibration = calibration._replace(clusters=range(n, n + m))
        found["raw"].append(covers(clustered_proportion(verdicts.credits, verdicts.clusters), ours.win_rate))
        try:
            found["corrected"].append(covers(corrected_win_rate(verdicts, calibration), ours.win_rate))
        except UncorrectableError:
            none += 1
        ratings = [float(z) if i < rated else None for i, z in enumerate(truth)]
        found["rated"].append(covers(rated_win_rate(verdicts, ratings), ours.win_rate))
    return {name: float(np.mean(values)) for name, values in found.items()} | {"none": none / trials}
