"""Corpus perplexity and bits per byte of held-out text.

Perplexity is ``exp(total NLL / total tokens)`` over the corpus, not a mean of per-document values, and comparable only
between models with the same tokenizer. Bits per byte, ``total NLL / (ln 2 * total bytes)``, is comparable across tokenizers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from alignkit import Contrast, Estimate, Example, Settings, Suite, SuiteResult, Target
from pydantic import Field

from alignkit_eval.statistics import clustered_ratio, nonnegative, transformed
from alignkit_eval.suites.documents import document_windows, read_documents
from alignkit_eval.suites.scores import cluster_of, finite_scores, require_rows, rows_digest, suite_result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTRASTS = (
    Contrast("perplexity", "nll", "tokens", higher_is_better=False, log=True, one_tokenizer=True),
    Contrast("bits_per_byte", "bits", "bytes", higher_is_better=False),
)


class PerplexitySettings(Settings):
    """Settings of the perplexity suite."""

    text: str | None = Field(
        None,
        description='plain documents to score in place of held-out completions: a .jsonl with "text", a .txt, or demo',
    )
    max_length: int = Field(1024, ge=2, description="maximum window of a plain document, in tokens")
    tokens_per_batch: int = Field(16384, ge=1, description="maximum tokens per forward pass")


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
    settings_type = PerplexitySettings

    def content(self, target: Target) -> str:
        if self.settings.text is None:
            return rows_digest(target.rows("completion"))
        return hashlib.sha256(repr(read_documents(self.settings.text)).encode()).hexdigest()

    def evaluate(self, target: Target) -> SuiteResult:
        documents = self._completions(target) if self.settings.text is None else self._texts(target, self.settings.text)
        items = [document.item() for document in documents]
        return suite_result(self, items, perplexity_metrics(documents), CONTRASTS)

    def _completions(self, target: Target) -> list[Document]:
        """Score the first completion of each held-out row, given its prompt."""
        examples = [example.narrow(0) for example in target.examples("completion")]
        require_rows(self.name, "completion", examples)
        return [
            Document(
                example.id, cluster_of(example), -score.logp, score.tokens, completion_bytes(example, target.tokenizer)
            )
            for example, (score,) in zip(examples, finite_scores(self, target, examples), strict=True)
        ]

    def _texts(self, target: Target, source: str) -> list[Document]:
        """Score plain documents, a long one in several windows."""
        texts = read_documents(source)
        windows = [
            (i, window)
            for i, text in enumerate(texts)
            for window in document_windows(text, target.tokenizer, self.settings.max_length)
        ]
        scores = finite_scores(self, target, [window for _, window in windows])
        nll, tokens = [0.0] * len(texts), [0] * len(texts)
        for (i, _), (score,) in zip(windows, scores, strict=True):
            nll[i] -= score.logp
            tokens[i] += score.tokens
        return [
            Document(text.id, text.cluster, nll[i], tokens[i], len(text.text.encode()))
            for i, text in enumerate(texts)
            if tokens[i]
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
