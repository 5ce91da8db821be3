"""Contrasts and evaluated models for the tests of comparisons."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from alignkit_eval.comparison.result import Comparison, ContrastResult


def evaluated(results: Path, edited: Callable[..., Path]) -> Path:
    """Return a directory as made by ``align eval --output``, with results only."""
    model = edited("l0-s0", "run.json", lambda record: record, "model")
    (model / "run.json").unlink()
    shutil.rmtree(model / "eval")
    shutil.copytree(results, model / "eval")
    return model


def contrast(comparison: Comparison, metric: str) -> ContrastResult:
    (found,) = [c for c in comparison.contrasts if c.metric == metric]
    return found
