"""From rows to token ids: the border between prompt and completion, begin and end tokens, truncation.

The rules, in the order they are applied:

1. Prompt and prompt + answer are tokenised each as one text; the completion is what follows the prompt's own tokens. Where a
   token spans the border (a *border merge*, counted), the completion begins with it, so that every character of the answer
   is scored and both answers of a pair keep the same prompt.
2. What the tokenizer puts in front of a text (BOS) stands there once, also where the text already writes it.
3. A prompt without tokens gets the BOS token, or the EOS token where there is none, or the first token of its completions.
4. A completion that does not end in an end-of-text or end-of-turn token gets the EOS token (``append_eos``; counted).
5. Beyond ``max_length`` the prompt loses its left first, down to one token, then the completions lose their right (counted).
   The longest completion decides, so both answers of a pair keep the same prompt.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignkit.data.render import Rendered, common_prefix, render
from alignkit.data.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TOKENS = "completion without tokens of its own"
ONLY_SPECIAL = "completion of special tokens alone"
SAME_TOKENS = "chosen and rejected are the same tokens (after truncation)"
NO_START = "empty prompt, and no token to begin with"

Ids: TypeAlias = list[int]
_BATCH = 1000


@dataclass(frozen=True)
class TokenRules:
    """The settings that tokenisation depends on."""

    max_length: int
    append_eos: bool = True


class Truncated(NamedTuple):
    """A prompt and its completions within the length, and how many of them were cut."""

    prompt: Ids
    completions: tuple[Ids, ...]
    cut_prompts: int
    cut_completions: int


@dataclass(frozen=True)
class Tokenised:
    """Token ids of the usable rows, and why others are not.

    ``tokens [T]`` int32 holds the rows one after another, each its prompt and then its completions; ``offsets
    [K * segments + 1]`` int64 where each of these begins; ``kept [K]`` int64 which rows they are; ``dropped`` maps the other
    rows to the reason. ``counts``: ``truncated_prompts``, ``truncated_completions``, ``border_merges``, ``eos_added``,
    ``eos_missing`` (completions that end without one), and ``shortest_prompt`` in tokens before truncation.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    kept: NDArray[np.int64]
    dropped: dict[int, str]
    counts: dict[str, int]


def tokenise(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, rules: TokenRules, where: Callable[[int], str]
) -> Tokenised:
    """Tokenise ``rows``, all of one kind and none marked unusable.

    Args:
        rows: normalised rows.
        tokenizer: fast tokenizers work on a thousand rows at a time.
        rules: length and end token.
        where: position of a row in its source -> the place (file:line) errors name.

    Raises:
        DataError: a conversation meets a tokenizer without a chat template, or one that refuses it.
    """
    encoder = Encoder(tokenizer, rules)
    tokens, ends = array("i"), array("q", [0])
    kept: list[int] = []
    dropped: dict[int, str] = {}
    for begin in _progress(range(0, len(rows), _BATCH)):
        batch = [render(row, tokenizer, where(row.position)) for row in rows[begin : begin + _BATCH]]
        for index, parts in enumerate(encoder.encode(batch), begin):
            if isinstance(parts, str):
                dropped[index] = parts
                continue
            kept.append(index)
            for segment in parts:
                tokens.extend(segment)
                ends.append(len(tokens))
    return Tokenised(
        tokens=np.array(tokens, dtype=np.int32),
        offsets=np.array(ends, dtype=np.int64),
        kept=np.array(kept, dtype=np.int64),
        dropped=dropped,
        counts=encoder.report(),
    )


@dataclass
class Encoder:
    """A tokenizer with the rules of this module; it counts what it had to do."""

    tokenizer: PreTrainedTokenizerBase
    rules: TokenRules
    counts: Counter[str] = field(default_factory=Counter)
    shortest_prompt: int | None = None

    def encode(self, batch: Sequence[Rendered]) -> list[tuple[Ids, ...] | str]:
        """Return prompt and completions of every row, or the reason why it is unusable."""
        texts = [text for prompt, answers in batch for text in (prompt, *(prompt + answer for answer in answers))]
        encoded = iter(self._ids(texts))
        return [self._row(next(encoded), [next(encoded) for _ in answers]) for _, answers in batch]

    def report(self) -> dict[str, int]:
        """Return the counts of everything encoded so far."""
        names = ("truncated_prompts", "truncated_completions", "border_merges", "eos_added", "eos_missing")
        return {name: self.counts[name] for name in names} | {"shortest_prompt": self.shortest_prompt or 0}

    def _ids(self, texts: list[str]) -> list[Ids]:
        if not texts:
            return []
        encoding = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[Ids] = encoding["input_ids"]
        return ids

    def _row(self, prompt: Ids, wholes: list[Ids]) -> tuple[Ids, ...] | str:
        prompt, wholes = self._begin(prompt, wholes)
        shared = [common_prefix(prompt, whole) for whole in wholes]
        merges = sum(length < len(prompt) for length in shared)
        parts = self._start(prompt[: min(shared, default=len(prompt))], wholes)
        if isinstance(parts, str):
            return parts
        prompt, completions = parts
        if not all(completions):
            return NO_TOKENS
        if any(all(self._is_silent(token) for token in completion) for completion in completions):
            return ONLY_SPECIAL
        ended = [self._end(completion) for completion in completions]
        self.shortest_prompt = min(len(prompt), self.shortest_prompt or len(prompt))
        fitted = truncate(prompt, tuple(ids for ids, _ in ended), self.rules.max_length)
        if len(fitted.completions) == 2 and fitted.completions[0] == fitted.completions[1]:
            return SAME_TOKENS
        self.counts.update(
            border_merges=merges,
            truncated_prompts=fitted.cut_prompts,
            truncated_completions=fitted.cut_completions,
            **{name: sum(what == name for _, what in ended) for name in ("eos_added", "eos_missing")},
        )
        return (fitted.prompt, *fitted.completions)

    def _begin(self, prompt: Ids, wholes: list[Ids]) -> tuple[Ids, list[Ids]]:
        """Put in front what the tokenizer puts in front of a text, unless the text has it already."""
        prefix = self._prefix
        if not prefix or all(ids[: len(prefix)] == prefix for ids in wholes or [prompt]):
            return prompt, wholes
        return prefix + prompt, [prefix + whole for whole in wholes]

    def _start(self, prompt: Ids, wholes: list[Ids]) -> tuple[Ids, list[Ids]] | str:
        """Cut the completions off, and see to it that the prompt has a token."""
        if prompt:
            return prompt, [whole[len(prompt) :] for whole in wholes]
        first = {whole[0] for whole in wholes if whole}
        one = next(iter(first)) if len(first) == 1 else None
        bos = self.tokenizer.bos_token_id
        start = self._eos if bos is None else bos
        if one is not None and (one == start or start is None):
            return [one], [whole[1:] for whole in wholes]
        return NO_START if start is None else ([start], wholes)

    def _end(self, completion: Ids) -> tuple[Ids, str]:
        """Return the completion with its end token, and whether one was added, is missing, or stood there."""
        last = next((token for token in reversed(completion) if not self._is_space(token)), None)
        if last in self._ends:
            return completion, ""
        if not self.rules.append_eos or self._eos is None:
            return completion, "eos_missing"
        return [*completion, self._eos], "eos_added"

    def _is_silent(self, token: int) -> bool:
        return token in self._special or self._is_space(token)

    def _is_space(self, token: int) -> bool:
        if token not in self._spaces:
            self._spaces[token] = not str(self.tokenizer.decode([token])).strip()
        return self._spaces[token]

    @cached_property
    def _spaces(self) -> dict[int, bool]:
        # Special tokens are never white space, whatever they decode to.
        return dict.fromkeys(self._special, False)

    @cached_property
    def _eos(self) -> int | None:
        token: int | None = self.tokenizer.eos_token_id
        return token

    @cached_property
    def _prefix(self) -> Ids:
        bare, full = self._ids(["a"])[0], list(self.tokenizer("a")["input_ids"])
        starts = range(len(full) - len(bare) + 1)
        return next((full[:start] for start in starts if full[start : start + len(bare)] == bare), [])

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset(self.tokenizer.all_special_ids) | {token for token, about in added.items() if about.special}

    @cached_property
    def _ends(self) -> frozenset[int]:
        # Chat templates close a turn with a special token that need not be the EOS token (<|im_end|>, <end_of_turn>).
        others = {self.tokenizer.bos_token_id, self.tokenizer.pad_token_id, self.tokenizer.unk_token_id}
        return self._special - (others - {self._eos})


def truncate(prompt: Ids, completions: tuple[Ids, ...], max_length: int) -> Truncated:
    """Cut to ``max_length`` tokens of prompt and longest completion.

    The prompt loses its left first and keeps at least one token, then the completions lose their right.

    >>> truncate([1, 2, 3], ([4, 5], [6]), 4)
    Truncated(prompt=[2, 3], completions=([4, 5], [6]), cut_prompts=1, cut_completions=0)
    >>> truncate([1, 2, 3], ([4, 5, 6, 7], [8]), 4)
    Truncated(prompt=[3], completions=([4, 5, 6], [8]), cut_prompts=1, cut_completions=1)
    """
    left = max(1, max_length - max(map(len, completions), default=0))
    kept = prompt[-left:]
    cut = tuple(completion[: max_length - len(kept)] for completion in completions)
    shorter = sum(len(new) < len(old) for new, old in zip(cut, completions, strict=True))
    return Truncated(kept, cut, int(len(kept) < len(prompt)), shorter)


def _progress(batches: range) -> Iterable[int]:
    """Show a progress bar on a terminal where there is enough to wait for."""
    import sys

    if len(batches) < 5 or not sys.stderr.isatty():
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, "tokenising", console=Console(stderr=True), transient=True)
