r"""Corpus perplexity of held-out text, per token, per word and per byte.

Perplexity is ``exp(total NLL / total tokens)`` over the corpus, not a mean of per-document values, and comparable only
between models with the same tokenizer. Bits per byte, ``total NLL / (ln 2 * total bytes)``, is comparable across tokenizers,
and so are ``byte_perplexity = exp(total NLL / total bytes)`` and ``word_perplexity = exp(total NLL / total words)``, as lm-eval
defines them; they say the same as bits per byte about two models on one corpus.

A text longer than ``data.max_length`` (a document: than ``max_length``) or the model's positions is scored whole, in windows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from alignkit import Contrast, Estimate, Example, Omission, Settings, Suite, SuiteResult, Target
from alignkit.errors import ConfigError
from alignkit.models.positions import position_limit
from pydantic import Field, model_validator

from alignkit_eval.statistics import clustered_ratio, nonnegative, transformed
from alignkit_eval.suites.documents import document_rows, first_token, read_documents, windows
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
    bos: Literal["first", "every", "none"] = Field(
        "first",
        description="windows that begin with the BOS token (EOS without one): a plain document's first, every window of a longer "
        "text, or none, so that a document's first token is not scored",
    )
    tokens_per_batch: int = Field(16384, ge=1, description="maximum tokens per forward pass")

    @model_validator(mode="after")
    def _of_documents(self) -> PerplexitySettings:
        if self.text is None and self.bos == "none":
            raise ValueError("bos: none has no effect without text: completions follow their prompts")
        if self.bos == "every" and self.max_length < 3:
            raise ValueError("bos: every needs a max_length of 3 or more")
        if self.text is None and self.max_length != DOCUMENT:
            raise ValueError("max_length has no effect without text: completions are scored to data.max_length")
        return self


class Document(NamedTuple):
    """A scored document: negative log-likelihood in nats, scored tokens, UTF-8 bytes, words (0: not known)."""

    id: str
    cluster: str
    nll: float
    tokens: int
    bytes: int
    words: int = 0

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
        limit, before = position_limit(target.policy.model), self._before(target)
        parts = [
            windows(t.row, min((n for n in (t.window, limit) if n), default=None), self.settings.stride, before)
            for t in texts
        ]
        scores = iter(finite_scores(self, target, [window for part in parts for window in part]))
        documents = []
        for text, part in zip(texts, parts, strict=True):
            found = [next(scores)[0] for _ in part]
            nll, tokens = -sum(score.logp for score in found), sum(score.tokens for score in found)
            documents.append(Document(text.row.id, cluster_of(text.row), nll, tokens, text.bytes, text.words))
        items = [document.item() for document in documents]
        result = suite_result(self, items, perplexity_metrics(documents), CONTRASTS)
        return replace(result, left_out=left_out, notes=_notes(texts, parts, self.settings.stride))

    def _before(self, target: Target) -> list[int]:
        """Return the tokens that begin every window of a longer text but its first."""
        if self.settings.bos != "every":
            return []
        token = first_token(target.tokenizer)
        if token is None:
            raise ConfigError(
                f"eval.settings.perplexity.bos: every: the tokenizer of {target.name} has no BOS or EOS token"
            )
        return [token]

    def _completions(self, target: Target) -> tuple[list[_Text], list[Omission]]:
        """Return the first completion of each held-out row, given its prompt, whole where ``data.max_length`` truncates it."""
        examples = [example.narrow(0) for example in target.examples("completion")]
        require_rows(self.name, "completion", examples)
        whole = iter(examples if target.whole is None else target.whole("completion"))
        texts = []
        for example in examples:
            row = next(row for row in whole if row.id == example.id).narrow(0)  # the same rows, and some more
            window = None if row.tokens == example.tokens else example.tokens
            texts.append(_Text(row, *completion_size(row, target.tokenizer), window))
        return texts, []

    def _documents(self, target: Target) -> tuple[list[_Text], list[Omission]]:
        """Return plain documents; one of which no token can be scored is left out."""
        texts, lost = [], []
        documents = read_documents(str(self.settings.text))
        rows = document_rows(documents, target.tokenizer, bos=self.settings.bos != "none")
        for document, row in zip(documents, rows, strict=True):
            if row is None:
                lost.append(document.id)
            else:
                texts.append(
                    _Text(row, len(document.text.encode()), count_words(document.text), self.settings.max_length)
                )
        omission = Omission(
            "documents", len(lost), len(documents), "left out: no token can be scored", "".join(lost[:1])
        )
        return texts, [omission] if lost else []


class _Text(NamedTuple):
    """A text to score: the completion of ``row``, its UTF-8 bytes and words, and the longest window (None: no limit)."""

    row: Example
    bytes: int
    words: int
    window: int | None


def _notes(texts: Sequence[_Text], parts: Sequence[Sequence[Example]], stride: int | None) -> list[str]:
    """Return a sentence on the texts that are scored in several windows."""
    long = [part for text, part in zip(texts, parts, strict=True) if part[0].tokens < text.row.tokens]
    if not long:
        return []
    longest = max(window.tokens for part in long for window in part)
    notes = [
        f"texts longer than {longest:,} tokens are scored in windows, each token once: {len(long):,} of {len(parts):,}"
    ]
    if stride is not None and stride >= longest:
        notes.append(
            f"stride {stride:,} is longer than these windows: they advance by {longest - 1:,}, with one token of context"
        )
    return notes


def completion_size(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the numbers of UTF-8 bytes and of words of a row's first completion, after truncation.

    Special tokens, such as the end-of-sequence token, are scored but have no text. The completion is decoded together
    with its prompt, because some tokenizers drop the space before the first token they decode.
    """
    tokens = list(example.completions[0])
    if example.masks and (mask := example.masks[0]) is not None:
        text = _decoded(tokenizer, [token for token, scored in zip(tokens, mask, strict=True) if scored])
        return len(text.encode()), count_words(text.strip())
    prompt = list(example.prompt)
    before, whole = (_decoded(tokenizer, ids) for ids in (prompt, prompt + tokens))
    text = whole[len(before) :] if whole.startswith(before) else _decoded(tokenizer, tokens)
    return max(0, len(whole.encode()) - len(before.encode())), count_words(text.strip())


def count_words(text: str) -> int:
    """Return the number of words as lm-eval counts them (``Task.count_words``).

    >>> count_words("two  words"), count_words(" a space first")
    (2, 4)
    """
    return len(re.split(r"\s+", text))


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def perplexity_metrics(documents: Sequence[Document]) -> dict[str, Estimate]:
    """Return ``perplexity`` and, unless the corpus has no bytes or words, ``bits_per_byte`` and the perplexities by them.

    All are ratios of sums over documents. Intervals are clustered t intervals in nats per token, byte and word; those of
    perplexities are then exponentiated.
    """
    _, clusters, nll, tokens, sizes, words = zip(*documents, strict=True)
    metrics = {"perplexity": transformed(nonnegative(clustered_ratio(nll, tokens, clusters)), _exp)}
    if any(sizes):
        per_byte = nonnegative(clustered_ratio(nll, sizes, clusters))
        metrics["bits_per_byte"] = transformed(per_byte, lambda nats: nats / math.log(2))
        metrics["byte_perplexity"] = transformed(per_byte, _exp)
    if any(words):
        metrics["word_perplexity"] = transformed(nonnegative(clustered_ratio(nll, words, clusters)), _exp)
    return metrics


def _exp(x: float) -> float:
    with np.errstate(over="ignore"):  # the perplexity of a diverged model may be infinite (above e^709)
        return float(np.exp(x))
