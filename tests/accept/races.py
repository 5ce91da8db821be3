"""Acceptance checks of racing sweeps: wrong stops in races of equal arms, and what a race on the demo saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, command

NULLS: dict[str, dict[str, Any]] = {
    "12 arms, 2 seeds": {},
    "12 arms, 1 seed": {"seeds": 1, "seed_noise": 0.0},
    "4 arms, 3 seeds, noisy seeds": {"arms": 4, "seeds": 3, "seed_noise": 0.15},
    "2 arms, 2 seeds, noisy seeds": {"arms": 2, "seed_noise": 0.15},
    "6 arms, right or wrong": {"arms": 6, "correct": True},
    "half of 12 arms worse": {"effects": (0.0,) * 6 + (-0.3,) * 6},
    "obrien-fleming": {"arms": 6, "spending": "obrien-fleming", "seed_noise": 0.1},
}
"""Races in which all arms, or the best half of them, are equal."""

RACES = 2000
STEPS, ARMS = 120, ["--over", "lambda=0,0.1,1,5", "--over", "train.learning_rate=1e-5,1e-4,1e-3", "--seeds", "0,1"]


def null_races(work: Path) -> dict[str, Any]:
    """In 2,000 simulated races of equal arms at most 5 % stop one, with one to three seeds, noisy seeds, and worse arms beside them."""
    from tests.helpers.races import World, wrong_stops

    found = {name: wrong_stops(World(**about), RACES) for name, about in NULLS.items()}
    worst = max(found, key=found.__getitem__)
    assert found[worst] <= 0.05, f"{worst}: {found[worst]:.3f}"
    return {name: round(share, 4) for name, share in found.items()}


def demo_race(work: Path) -> dict[str, Any]:
    """12 arms with 2 seeds on the demo: a race ends with the winners of the whole grid for at most 60 % of its training tokens."""
    sets = [f"train.max_steps={STEPS}", "eval.before=false", "eval.suites=[prefs]"]
    options = [*ARMS, "--method", "orpo", *(word for text in sets for word in ("--set", text))]
    command(ALIGN, "sweep", *options, "--name", "race", "--race", cwd=work)
    command(ALIGN, "sweep", *options, "--name", "grid", cwd=work)
    race, grid = (json.loads((work / f"runs/{name}/sweep.json").read_text()) for name in ("race", "grid"))
    return race_found(race, grid, tokens(work / "runs/grid"))


def tokens(directory: Path) -> float:
    """Return the training tokens of all cells of a sweep."""
    records = [json.loads(path.read_text()) for path in directory.glob("*/run.json")]
    return float(sum(record["train"]["tokens"] for record in records))


def race_found(race: dict[str, Any], grid: dict[str, Any], whole: float) -> dict[str, Any]:
    """Compare a race with the grid of the same arms."""
    spent = race["race"]["spent_tokens"] / whole
    winners = {name: winner_group(sweep["comparison"]) for name, sweep in (("race", race), ("grid", grid))}
    left = {gone["arm"]: look["rung"] for look in race["race"]["looks"] for gone in look["stopped"]}
    assert winners["race"] == winners["grid"], f"winners {winners}"
    assert spent <= 0.6, f"{spent:.0%} of the tokens"
    return {"share of tokens": round(spent, 3), "winners": winners["race"], "stopped at": left}


def winner_group(comparison: dict[str, Any]) -> list[str]:
    """Return the arms that cannot be told apart from the one with the best accuracy."""
    arms = {arm["name"]: arm["metrics"]["prefs"]["accuracy_sum"]["value"] for arm in comparison["arms"]}
    letters = comparison["letters"]
    best = max(arms, key=arms.__getitem__)
    return sorted(name for name in arms if set(letters[name]) & set(letters[best]))
