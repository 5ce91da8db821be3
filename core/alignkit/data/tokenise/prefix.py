"""Token ids of a prompt and of prompt + answer, each tokenised as one text, without encoding a long prompt repeatedly.

A byte-level BPE tokenizer with a common splitting rule never forms a token across a letter followed by a space and another
letter. The prompt is cut at the last such place: the part before it is encoded once, the rest with every answer. The ids equal
those of the whole texts. Tokenizers not known to have this property, or that fail a probe, encode whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BORDER = re.compile(r"[A-Za-z](?= [A-Za-z])")
_LAST_BORDER = re.compile(f".*{_BORDER.pattern}", re.DOTALL)
_PROBES = (
    "It's 12345 apples,  and\n\n two\tpears !? foo Bar",
    "def f(x):\n    return x  # caf\u00e9 na\u00efve \u4f60\u597d \U0001f642 end of it",
    " leading and trailing space ",
)
_ANSWERS = ("", "s", " and more", "\n", "'s", "12", "\u0301")


class PrefixEncoder:
    """Tokenises prompts with their answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, rows: Sequence[tuple[str, Sequence[str]]]) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Yield for each row the ids of the prompt and of prompt + answer for every answer, without special tokens."""
        cuts = [self._cut(prompt) if self.cuts and len(answers) else 0 for prompt, answers in rows]
        texts: list[str] = []
        for (prompt, answers), cut in zip(rows, cuts, strict=True):
            if cut:
                texts.append(prompt[:cut])
            texts.append(prompt[cut:])
            texts += [prompt[cut:] + answer for answer in answers]
        ids = iter(self.ids(texts))
        for (_, answers), cut in zip(rows, cuts, strict=True):
            head = next(ids) if cut else []
            yield head + next(ids), [head + next(ids) for _ in answers]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of whole texts."""
        if not texts:
            return []
        return self._by_backend(texts) if self.direct else self._by_tokenizer(texts)

    def _by_tokenizer(self, texts: list[str]) -> list[list[int]]:
        encoding = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoding["input_ids"])

    def _by_backend(self, texts: list[str]) -> list[list[int]]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    @staticmethod
    def _cut(prompt: str) -> int:
        """Return where to cut the prompt: after the last letter followed by a space and a letter; 0 if there is none."""
        last = _LAST_BORDER.match(prompt)
        return last.end() if last else 0

    @cached_property
    def direct(self) -> bool:
        """Whether the tokenizer's fast backend alone gives the same ids, so that it can be called directly."""
        texts = [*_PROBES, *_ANSWERS, *map(str, self.tokenizer.all_special_tokens)]
        return bool(self.tokenizer.is_fast) and self._by_tokenizer(texts) == self._by_backend(texts)

    @cached_property
    def cuts(self) -> bool:
        """Whether the tokenizer is known never to form a token across a cut, and the probes confirm it."""
        if not self.direct:
            return False
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        known = _splits_at_words(backend.get("pre_tokenizer")) and _is_local(backend.get("normalizer"))
        model = backend.get("model") or {}
        known = known and model.get("type") == "BPE" and not model.get("dropout")
        if not known or not all(_stands_alone(token) for token in backend.get("added_tokens") or ()):
            return False
        return all(self._keeps_ids(probe, cut.end()) for probe in _PROBES for cut in _BORDER.finditer(probe))

    def _keeps_ids(self, probe: str, cut: int) -> bool:
        head, *tails = self.ids([probe[:cut], *(probe[cut:] + answer for answer in _ANSWERS)])
        return self.ids([probe + answer for answer in _ANSWERS]) == [head + tail for tail in tails]


def _splits_at_words(rule: dict[str, Any] | None) -> bool:
    """Return whether a pre-tokenizer is byte-level and splits by one of the common rules."""
    parts = rule.get("pretokenizers", []) if rule and rule.get("type") == "Sequence" else [rule or {}]
    if not parts or parts[-1].get("type") != "ByteLevel":
        return False
    for part in parts[:-1]:
        common = (part.get("pattern") or {}).get("Regex") in _COMMON_RULES
        split = part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part.get("invert")
        if part.get("type") != "Digits" and not (split and common):
            return False
    splitting = any(part.get("type") == "Split" for part in parts[:-1])
    return splitting or bool(parts[-1].get("use_regex", True))


_COMMON_RULES = frozenset(
    {
        # GPT-2
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # GPT-4 (cl100k), Llama 3
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        # Qwen 2, 2.5 and 3
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # GPT-4o (o200k)
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # Mistral (Tekken)
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
"""Splitting rules in which a run of letters includes at most one preceding character and ends at a space."""


def _is_local(normaliser: dict[str, Any] | None) -> bool:
    """Return whether a normaliser never changes text across a cut: none, or NFC, which needs a combining mark."""
    return normaliser is None or normaliser.get("type") == "NFC"


def _stands_alone(token: dict[str, Any]) -> bool:
    """Return whether a special token neither contains a space nor absorbs an adjacent one."""
    return not (
        token.get("lstrip") or token.get("rstrip") or token.get("single_word") or " " in token.get("content", "")
    )
