"""The embedded demo: a tiny base model and preference data with known truth, in the package, offline.

``model_path`` and ``data_path`` say where they are, ``PRESET`` how the demo is trained. :mod:`alignkit.demo.world` is the
world they are made of, :mod:`alignkit.demo.build` makes all of it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from alignkit.errors import DataError

DataSplit = Literal["train", "dev", "test", "neutral"]
"""Preference pairs to train on, to choose settings on and to report; texts to measure perplexity on."""

PRESET: Mapping[str, Any] = MappingProxyType(
    {
        "data.max_length": 256,
        "eval.sample_tokens": 32,
        "eval.settings.generate.checker": "alignkit.demo.world:quality",
        "eval.settings.lm-eval.tasks": ["demo_facts", "demo_agreement"],
        "eval.settings.perplexity.text": "demo",  # of texts that are no answers: what training costs elsewhere
        "train.learning_rate": 1e-3,
        "train.logging_steps": 10,
        "train.lr_scheduler_type": "linear",
        "train.max_steps": 150,
        "train.per_device_train_batch_size": 16,
        "train.warmup_steps": 0,
        "train.weight_decay": 0.0,
    }
)
"""Configuration of a demo run where the user says nothing, by dotted key; chosen on the dev split, never on test.

It stands in for a method's own defaults, which are meant for models a thousand times larger.
"""

_ASSETS = Path(__file__).parent / "assets"


def model_path() -> Path:
    """Return the directory of the demo's base model and tokenizer."""
    return _ASSETS / "model"


def data_path(split: str) -> Path:
    """Return the JSON-lines file of a split: ``train``, ``dev``, ``test`` or ``neutral``.

    Raises:
        DataError: the demo has no such split.
    """
    if split not in get_args(DataSplit):
        raise DataError(f"the demo has no split {split!r}: choose one of {', '.join(get_args(DataSplit))}")
    return _ASSETS / "data" / f"{split}.jsonl"
