"""Embeddings of texts: the mean of a model's last hidden states, or those of sentence-transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from alignkit import build_model
from alignkit.config import ModelConfig
from alignkit.errors import ConfigError, ModelError, RunFailedError, first_line
from alignkit.models.positions import position_limit
from alignkit.scoring.backends import innermost
from alignkit_eval.evaluation.targets import find_target

TOKENS = 8192
"""Tokens of a batch."""


class Embedded(NamedTuple):
    """Unit vectors of texts, ``[texts, size]``."""

    vectors: Any
    cut: int
    """Number of texts that were longer than the model's positions."""


def check_embedder(model: str, *, sentences: bool, place: str) -> None:
    """Raise ``ConfigError`` or ``ModelError`` for a model that cannot embed; nothing is loaded."""
    if not sentences:
        find_target(model)
        if (Path(model) / "modules.json").is_file():
            raise ConfigError(f"{place}: {model} is a model of sentence-transformers: set sentences: true")
    elif importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError(
            f'{place}: sentences needs sentence-transformers, which is not installed: pip install "alignkit-rag[sentences]"'
        )
    elif Path(model).is_dir() and not (Path(model) / "modules.json").is_file():
        raise ConfigError(f"{place}: {model} is not a model of sentence-transformers: remove sentences: true")


def embed(texts: Sequence[str], model: str, *, sentences: bool = False) -> Embedded:
    """Embed texts with a run or model, or with a model of sentence-transformers."""
    if not sentences:
        loaded = build_model(ModelConfig(name=model, dtype="float32"))
        loaded.model.eval()
        return mean_states(texts, loaded.model, loaded.tokenizer)
    from sentence_transformers import SentenceTransformer

    try:
        encoder = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise ModelError(f"sentence-transformers cannot load {model}: {first_line(error)}") from error
    limit = encoder.max_seq_length
    cut = sum(len(ids) > limit for ids in encoder.tokenizer(list(texts), verbose=False)["input_ids"]) if limit else 0
    vectors = encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
    return Embedded(_finite(np.asarray(vectors, dtype=np.float32), model), cut)


def mean_states(texts: Sequence[str], model: Any, tokenizer: Any, tokens_per_batch: int = TOKENS) -> Embedded:
    """Embed texts with the mean over tokens of the last hidden states of a model."""
    import torch

    base = innermost(model)
    trunk, device = base.base_model, next(base.parameters()).device
    precision = vars(base).get("forward_context", nullcontext)
    given = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    limit = position_limit(base)
    ids = [one[:limit] for one in given]
    vectors: dict[int, Any] = {}
    for batch in _batches(ids, tokens_per_batch):
        longest = max(len(ids[i]) for i in batch)
        padded = torch.tensor([[*ids[i], *[0] * (longest - len(ids[i]))] for i in batch], device=device)  # (B, T)
        mask = torch.tensor([[int(t < len(ids[i])) for t in range(longest)] for i in batch], device=device)
        with torch.no_grad(), precision():
            states = trunk(input_ids=padded, attention_mask=mask).last_hidden_state.float()  # (B, T, D)
        weights = mask.unsqueeze(-1).float()
        means = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
        vectors.update(zip(batch, means.cpu().numpy(), strict=True))
    cut = sum(len(one) > len(kept) for one, kept in zip(given, ids, strict=True))
    return Embedded(_finite(np.stack([vectors[i] for i in range(len(ids))]), type(base).__name__), cut)


def _batches(ids: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Return the numbers of texts of similar length whose padded tokens are at most ``tokens``."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(ids)), key=lambda i: -len(ids[i])):
        if batches[-1] and len(ids[batches[-1][0]]) * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def _finite(vectors: Any, name: str) -> Any:
    if not np.isfinite(vectors).all():
        raise RunFailedError(f"embeddings of {name} are not finite")
    return vectors
