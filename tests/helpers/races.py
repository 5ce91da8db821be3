"""Simulated races: items in clusters, seeds, and rungs whose results depend on one another; decided by the real code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from alignkit_eval.comparison.racing import Measured, levels, stops
from alignkit_eval.statistics import effect


@dataclass(frozen=True)
class World:
    """What a simulated race is drawn from. Defaults: all arms are equal at all rungs."""

    arms: int = 12
    seeds: int = 2
    clusters: int = 40
    per_cluster: int = 3
    rungs: tuple[float, ...] = (0.25, 0.5, 0.75)
    alpha: float = 0.05
    spending: str = "pocock"
    item_noise: float = 0.3
    """Of a model's score on an item; a third of it is shared by the items of a cluster."""
    seed_noise: float | tuple[float, ...] = 0.03
    """Of a model's mean; one for all arms, or one each."""
    effects: tuple[float, ...] = ()
    """True means of the arms relative to the first rung's; empty: all equal."""
    correct: bool = False
    """Whether items are right or wrong, as for accuracies."""


def stopped(world: World, draw: np.random.Generator) -> list[set[int]]:
    """Return the arms stopped at each rung of one race."""
    clusters = np.repeat(np.arange(world.clusters), world.per_cluster)
    shape = (world.arms, world.seeds)
    effects = np.array(world.effects or [0.0] * world.arms)
    difficulty = draw.normal(0, 1, len(clusters))  # shared by all models
    lasting = _scores(world, draw, clusters)  # what an arm's rungs have in common
    noise = np.broadcast_to(world.seed_noise, world.arms)[:, None]
    luck = draw.normal(0, 1, shape) * noise
    active, left = list(range(world.arms)), []
    for level in levels(world.rungs, world.alpha, world.spending):
        means = effects[:, None] + 0.7 * luck + 0.7 * draw.normal(0, 1, shape) * noise
        scores = means[..., None] + 0.7 * lasting + 0.7 * _scores(world, draw, clusters) + 0.3 * difficulty
        if world.correct:
            scores = (scores > 0).astype(float)
        measured = Measured("accuracy", True, [effect(scores[i]) for i in active], clusters.tolist())
        gone = {active[stop.arm] for stop in stops([measured], level, world.arms, len(active))}
        active = [arm for arm in active if arm not in gone]
        left.append(gone)
    return left


def _scores(world: World, draw: np.random.Generator, clusters: np.ndarray) -> np.ndarray:
    shape = (world.arms, world.seeds)
    shared = draw.normal(0, 1, (*shape, world.clusters))[..., clusters]
    found: np.ndarray = world.item_noise * (
        np.sqrt(1 / 3) * shared + np.sqrt(2 / 3) * draw.normal(0, 1, (*shape, len(clusters)))
    )
    return found


def wrong_stops(world: World, races: int, seed: int = 0) -> float:
    """Return the share of races in which an arm with the largest true mean is stopped."""
    draw = np.random.default_rng(seed)
    effects = world.effects or (0.0,) * world.arms
    best = {arm for arm in range(world.arms) if effects[arm] == max(effects)}
    return sum(any(gone & best for gone in stopped(world, draw)) for _ in range(races)) / races
