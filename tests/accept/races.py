"""Acceptance checks of racing sweeps: wrong stops in races of equal arms, and what a race on the demo saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignkit_eval.statistics import Effect

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
    return race_found(work / "runs/race", work / "runs/grid")


def race_found(race: Path, grid: Path) -> dict[str, Any]:
    """Compare a race with the grid of the same arms."""
    stored = json.loads((race / "sweep.json").read_text())["race"]
    records = [json.loads(path.read_text()) for path in grid.glob("*/run.json")]
    spent = stored["spent_tokens"] / sum(record["train"]["tokens"] for record in records)
    left = {gone["arm"]: look["rung"] for look in stored["looks"] for gone in look["stopped"]}
    winners = {path.name: best_group(path, len(stored["arms"])) for path in (race, grid)}
    assert winners["race"] == winners["grid"], f"winners {winners}"
    assert spent <= 0.6, f"{spent:.0%} of the tokens"
    return {"share of tokens": round(spent, 3), "winners": winners["race"], "stopped at": left}


def best_group(sweep: Path, planned: int) -> list[str]:
    """Return the finished arms whose trained models are not significantly worse than another's, at 5 % over all planned arms.

    Items are chance here and seeds are not, so that the answer for two arms does not depend on how many others are left.
    """
    from alignkit_eval.comparison.arms import group, read_run
    from alignkit_eval.comparison.items import item_values, shared_items
    from alignkit_eval.comparison.racing import Measured, stops

    cells = json.loads((sweep / "sweep.json").read_text())["cells"]
    groups = group([read_run(Path(cell["run"])) for cell in cells if cell["status"] == "finished"])
    contrasts = [c for c in groups[0].runs[0].results["prefs"].contrasts if c.verdict and not c.guard]
    items = shared_items("prefs", groups)
    values = [[item_values(found, "prefs", contrast, items) for found in groups] for contrast in contrasts]
    measured = [Measured("accuracy", True, [_over_seeds(v.effect) for v in of], of[0].clusters) for of in values]
    gone = {stop.arm for stop in stops(measured, 0.05, planned, planned)}
    return [Path(g.runs[0].path).name.rpartition("-seed")[0] for i, g in enumerate(groups) if i not in gone]


def _over_seeds(effect: Effect) -> Effect:
    """Return the mean of an arm's models as one model."""
    return Effect(effect.seeds.mean(keepdims=True), effect.influence.mean(0, keepdims=True), effect.share)
