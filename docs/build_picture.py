"""Draw the pictures of the README from ``images/comparison.json``, what ``align compare --json`` printed of real runs.

``python docs/build_picture.py [COMPARISON.json]`` takes another comparison, keeps of it what is drawn, and draws it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from alignkit import Estimate
from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult, Cost
from alignkit_eval.report.forest import description, picture

IMAGES = Path(__file__).parent / "images"
RESULTS = IMAGES / "comparison.json"
NAMES = {False: "forest-light.svg", True: "forest-dark.svg"}
_KEPT = {field.name for field in fields(ContrastResult)} - {"models"}


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Return what is drawn of a comparison: the objective, the guards, and the baseline's metrics."""
    ruled = [c for c in found["contrasts"] if c["deciding"] or c["guard"]]
    baseline = next(arm for arm in found["arms"] if arm["name"] == found["baseline"])
    return {
        "baseline": found["baseline"],
        "verdict": found["verdict"],
        "contrasts": [_numbers(c) | {"models": c["models"] and _numbers(c | c["models"])} for c in ruled],
        "metrics": {c["suite"]: {} for c in ruled}
        | {suite: baseline["metrics"][suite] for suite in dict.fromkeys(c["suite"] for c in ruled)},
    }


def _numbers(contrast: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a contrast; ``seeds``, which are listed for its arm, as the number of pairs."""
    return {key: contrast[key] for key in sorted(_KEPT - {"seeds"})} | {"seeds": contrast["pairs"]}


def _contrast(found: dict[str, Any]) -> ContrastResult:
    models = found["models"] and ContrastResult(**found["models"])
    return ContrastResult(**found | {"models": models})


def comparison() -> Comparison:
    """Return the committed comparison."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    metrics = {
        suite: {name: Estimate(**values) for name, values in of.items()} for suite, of in found["metrics"].items()
    }
    baseline = Arm(found["baseline"], (), (), {}, Cost(), metrics)
    contrasts = tuple(map(_contrast, found["contrasts"]))
    return Comparison(found["baseline"], (baseline,), contrasts, found["verdict"], None)


def alt() -> str:
    """Return the alternative text of the picture."""
    return description(comparison())


def main(arguments: list[str]) -> None:
    """Keep what is drawn of a comparison, if one is given, and draw the committed one."""
    if arguments:
        given = kept(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        RESULTS.write_text(json.dumps(given, indent=1) + "\n", encoding="utf-8")
    for dark, name in NAMES.items():
        (IMAGES / name).write_text(picture(comparison(), dark=dark), encoding="utf-8")
    print(alt())


if __name__ == "__main__":
    main(sys.argv[1:])
