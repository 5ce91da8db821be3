"""The embedded demo: a tiny base model and preference data with known correct answers, shipped in the package.

``model_path`` and ``data_path`` return their places; ``PRESET`` is the configuration of demo runs. The package ``alignkit_demo``
defines the synthetic world and rebuilds model and data (``align demo build``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from alignkit.errors import DataError

DataSplit = Literal["train", "dev", "test", "neutral"]
"""Preference pairs for training, for choosing settings and for reporting; texts for perplexity."""

PRESET: Mapping[str, Any] = MappingProxyType(
    {
        "data.max_length": 256,
        "eval.sample_tokens": 32,
        "eval.settings.generate.checker": "alignkit.demo.world:quality",
        "eval.settings.lm-eval.tasks": ["demo_facts", "demo_agreement"],
        "model.dtype": "float32",  # the same numbers on every machine
        "eval.settings.perplexity.text": "demo",  # texts that are not answers: shows what training costs elsewhere
        "train.learning_rate": 1e-3,
        "train.logging_steps": 10,
        "train.lr_scheduler_type": "linear",
        "train.max_steps": 150,
        "train.per_device_train_batch_size": 16,
        "train.warmup_steps": 0,
        "train.weight_decay": 0.0,
    }
)
"""Default configuration of demo runs by dotted key; chosen on the dev split, never on test.

It replaces a method's defaults, which are meant for models a thousand times larger.
"""

ASSETS = Path(__file__).parent / "assets"
"""Directory of the demo's model and data, as ``align demo build`` writes it."""


def model_path() -> Path:
    """Return the directory of the demo's base model and tokenizer."""
    return ASSETS / "model"


def data_path(split: str) -> Path:
    """Return the JSON-lines file of a split; raises :class:`DataError` if the demo has no such split."""
    if split not in get_args(DataSplit):
        raise DataError(f"the demo has no split {split!r}: use one of {', '.join(get_args(DataSplit))}")
    return ASSETS / "data" / f"{split}.jsonl"
