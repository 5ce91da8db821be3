"""Comparisons say where held-out items were looked at during training, and where they chose the saved model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit_eval.comparison.compare import compare


def configured(**sections: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        config = record["config"]
        return record | {"config": config | {name: config[name] | values for name, values in sections.items()}}

    return change


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"eval": {"during": {"prefs": 50}}}, "looked at during training (prefs every 50 steps)"),
        ({"run": {"pause_at": [0.25, 0.5]}}, "looked at during training (pauses at 25%, 50% of the steps)"),
        ({"train": {"stop_on": "prefs/accuracy_sum"}}, "saved at the best prefs/accuracy_sum on held-out rows"),
        ({"train": {"early_stopping_patience": 2}}, "saved at the best eval_loss on held-out rows"),
        (
            {"train": {"load_best_model_at_end": True, "metric_for_best_model": "eval_nll"}},
            "saved at the best eval_nll",
        ),
    ],
)
def test_peeking_is_labelled(
    sections: dict[str, Any], words: str, grid: dict[str, Path], edited: Callable[..., Path]
) -> None:
    peeked = edited("l5-s0", "run.json", configured(**sections))
    (note,) = [note for note in compare([grid["l0-s0"], peeked]).notes if words in note]
    assert note.startswith("orpo lambda=5.0 ")


def test_nothing_is_said_where_nobody_looked(grid: dict[str, Path]) -> None:
    notes = compare(list(grid.values())).notes
    assert not [note for note in notes if "looked at" in note or "saved at the best" in note]
