"""Corpus perplexity and bits per byte of held-out text.

Perplexity is ``exp(total NLL / total tokens)`` over the corpus, not a mean of per-document values, and comparable only
between models with the same tokenizer. Bits per byte, ``total NLL / (ln 2 * total bytes)``, is comparable across tokenizers.

A text longer than ``data.max_length`` (a document: than ``max_length``) or the model's positions is scored whole, in windows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from alignkit import Contrast, Estimate, Example, Omission, Settings, Suite, SuiteResult, Target
from alignkit.models.positions import position_limit
from pydantic import Field, model_validator

from alignkit_eval.statistics import clustered_ratio, nonnegative, transformed
from alignkit_eval.suites.documents import document_rows, read_documents, windows
from alignkit_eval.suites.scores import cluster_of, finite_scores, require_rows, rows_digest, suite_result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTRASTS = (
    Contrast(
        "perplexity", "nll", "tokens", higher_is_better=False, log=True, one_tokenizer=True, guard=True, margin=0.05
    ),
    Contrast("bits_per_byte", "bits", "bytes", higher_is_better=False),
)


DOCUMENT = 1024
"""Default window of plain documents, in tokens."""


class PerplexitySettings(Settings):
    """Settings of the perplexity suite."""

    text: str | None = Field(
        None,
        description='plain documents to score in place of held-out completions: a .jsonl with "text", a .txt, or demo',
    )
    max_length: int = Field(DOCUMENT, ge=2, description="maximum window of a plain document, in tokens")
    stride: int | None = Field(
        None, ge=1, description="tokens by which the windows of a longer text advance (default: half a window)"
    )
    tokens_per_batch: int = Field(16384, ge=1, description="maximum tokens per forward pass")

    @model_validator(mode="after")
    def _of_documents(self) -> PerplexitySettings:
        if self.text is None and self.max_length != DOCUMENT:
            raise ValueError("max_length has no effect without text: completions are scored to data.max_length")
        return self


class Document(NamedTuple):
    """A scored document: negative log-likelihood in nats, scored tokens, UTF-8 bytes."""

    id: str
    cluster: str
    nll: float
    tokens: int
    bytes: int

    def item(self) -> dict[str, Any]:
        """Return the document's line of ``perplexity.items.jsonl``."""
        return self._asdict() | {"bits": self.nll / math.log(2)}


class PerplexitySuite(Suite[PerplexitySettings]):
    """Perplexity and bits per byte of held-out completions given their prompts, or of plain documents."""

    name = "perplexity"
    metrics = tuple(contrast.metric for contrast in CONTRASTS)
    settings_type = PerplexitySettings

    def content(self, target: Target) -> str:
        if self.settings.text is None:
            return rows_digest(target.rows("completion"))
        return hashlib.sha256(repr(read_documents(self.settings.text)).encode()).hexdigest()

    def evaluate(self, target: Target) -> SuiteResult:
        texts, left_out = self._completions(target) if self.settings.text is None else self._documents(target)
        limit = position_limit(target.policy.model)
        parts = [
            windows(t.row, min((n for n in (t.window, limit) if n), default=None), self.settings.stride) for t in texts
        ]
        scores = iter(finite_scores(self, target, [window for part in parts for window in part]))
        documents = []
        for text, part in zip(texts, parts, strict=True):
            found = [next(scores)[0] for _ in part]
            nll, tokens = -sum(score.logp for score in found), sum(score.tokens for score in found)
            documents.append(Document(text.row.id, cluster_of(text.row), nll, tokens, text.bytes))
        items = [document.item() for document in documents]
        result = suite_result(self, items, perplexity_metrics(documents), CONTRASTS)
        return replace(result, left_out=left_out, notes=_notes(texts, parts))

    def _completions(self, target: Target) -> tuple[list[_Text], list[Omission]]:
        """Return the first completion of each held-out row, given its prompt, whole where ``data.max_length`` truncates it."""
        examples = [example.narrow(0) for example in target.examples("completion")]
        require_rows(self.name, "completion", examples)
        whole = iter(examples if target.whole is None else target.whole("completion"))
        texts = []
        for example in examples:
            row = next(row for row in whole if row.id == example.id).narrow(0)  # the same rows, and some more
            window = None if row.tokens == example.tokens else example.tokens
            texts.append(_Text(row, completion_bytes(row, target.tokenizer), window))
        return texts, []

    def _documents(self, target: Target) -> tuple[list[_Text], list[Omission]]:
        """Return plain documents; one of which no token can be scored is left out."""
        texts, lost = [], []
        documents = read_documents(str(self.settings.text))
        for document, row in zip(documents, document_rows(documents, target.tokenizer), strict=True):
            if row is None:
                lost.append(document.id)
            else:
                texts.append(_Text(row, len(document.text.encode()), self.settings.max_length))
        omission = Omission(
            "documents", len(lost), len(documents), "left out: no token can be scored", "".join(lost[:1])
        )
        return texts, [omission] if lost else []


class _Text(NamedTuple):
    """A text to score: the completion of ``row``, its UTF-8 bytes, and the longest window (None: no limit)."""

    row: Example
    bytes: int
    window: int | None


def _notes(texts: Sequence[_Text], parts: Sequence[Sequence[Example]]) -> list[str]:
    """Return a sentence on the texts that are scored in several windows."""
    long = [part for text, part in zip(texts, parts, strict=True) if part[0].tokens < text.row.tokens]
    if not long:
        return []
    longest = max(window.tokens for part in long for window in part)
    return [
        f"texts longer than {longest:,} tokens are scored in windows, each token once: {len(long):,} of {len(parts):,}"
    ]


def completion_bytes(example: Example, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of UTF-8 bytes of a row's first completion, after truncation.

    Special tokens, such as the end-of-sequence token, are scored but have no text. The completion is decoded together
    with its prompt, because some tokenizers drop the space before the first token they decode.
    """
    tokens = list(example.completions[0])
    if example.masks and (mask := example.masks[0]) is not None:
        return _decoded_bytes(tokenizer, [token for token, scored in zip(tokens, mask, strict=True) if scored])
    prompt = list(example.prompt)
    return max(0, _decoded_bytes(tokenizer, prompt + tokens) - _decoded_bytes(tokenizer, prompt))


def _decoded_bytes(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> int:
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode())


def perplexity_metrics(documents: Sequence[Document]) -> dict[str, Estimate]:
    """Return ``perplexity`` and, unless the corpus has no bytes, ``bits_per_byte``.

    Both are ratios of sums over documents. Intervals are clustered t intervals in nats per token and bits per byte;
    those of perplexity are then exponentiated.
    """
    _, clusters, nll, tokens, sizes = zip(*documents, strict=True)
    metrics = {"perplexity": transformed(nonnegative(clustered_ratio(nll, tokens, clusters)), _exp)}
    if any(sizes):
        per_byte = nonnegative(clustered_ratio(nll, sizes, clusters))
        metrics["bits_per_byte"] = transformed(per_byte, lambda nats: nats / math.log(2))
    return metrics


def _exp(x: float) -> float:
    with np.errstate(over="ignore"):  # the perplexity of a diverged model may be infinite (above e^709)
        return float(np.exp(x))
