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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from alignkit.data.tokenise.prefix import PrefixEncoder
from alignkit.data.tokenise.render import Rendered, common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TOKENS = "completion without tokens of its own"
ONLY_SPECIAL = "completion of special tokens alone"
SAME_TOKENS = "chosen and rejected are the same tokens (after truncation)"
NO_START = "empty prompt, and no token to begin with"
NOTHING_SCORED = "no token of an assistant's turn is left (after truncation)"

Ids: TypeAlias = list[int]


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


class TokenRow(NamedTuple):
    """One row as token ids, and what had to be done to it; all numbers but ``prompt_tokens`` are 0 for a row as it should be."""

    parts: tuple[Ids, ...] = ()
    """The prompt, then its completions; empty where the row is unusable."""
    scored: list[bool] | None = None
    """Which tokens of the one completion are scored (None: all)."""
    unusable: str | None = None
    prompt_tokens: int = -1
    """Tokens of the prompt before truncation; -1 where it has no tokens."""
    prompt_lost: int = 0
    """Tokens the prompt lost to ``max_length``."""
    completion_lost: int = 0
    """Tokens the completions lost to ``max_length``."""
    truncated_completions: int = 0
    border_merges: int = 0
    eos_added: int = 0
    eos_missing: int = 0
    double_bos: int = 0


@dataclass
class Encoder:
    """A tokenizer with the rules of this module."""

    tokenizer: PreTrainedTokenizerBase
    rules: TokenRules

    def encode(self, batch: Sequence[Rendered]) -> list[TokenRow]:
        """Return prompt and completions of every row, or the reason why it is unusable."""
        encoded = self._joint.encode([(row.prompt, row.answers) for row in batch])
        return [self._row(prompt, wholes, row) for (prompt, wholes), row in zip(encoded, batch, strict=True)]

    @cached_property
    def _joint(self) -> PrefixEncoder:
        return PrefixEncoder(self.tokenizer)

    def _row(self, prompt: Ids, wholes: list[Ids], row: Rendered) -> TokenRow:
        turns = self._turns(wholes[0], row.turns) if row.turns else None
        before = len(prompt)
        prompt, wholes = self._begin(prompt, wholes)
        added = len(prompt) - before
        shared = [common_prefix(prompt, whole) for whole in wholes]
        merges = sum(length < len(prompt) for length in shared)
        parts = self._start(prompt[: min(shared, default=len(prompt))], wholes)
        if isinstance(parts, str):
            return TokenRow(unusable=parts)
        prompt, completions = parts
        if not all(completions):
            return TokenRow(unusable=NO_TOKENS)
        if any(all(self._is_silent(token) for token in completion) for completion in completions):
            return TokenRow(unusable=ONLY_SPECIAL)
        ended = [self._end(completion) for completion in completions]
        fitted = truncate(prompt, tuple(ids for ids, _ in ended), self.rules.max_length)
        scored = None
        if turns is not None:
            offset = added - (len(wholes[0]) - len(completions[0]))  # from a place in the text to one in the completion
            scored = _scored(turns, offset, len(fitted.completions[0]))
            if not any(scored):
                return TokenRow(unusable=NOTHING_SCORED, prompt_tokens=len(prompt))
        if len(fitted.completions) == 2 and fitted.completions[0] == fitted.completions[1]:
            return TokenRow(unusable=SAME_TOKENS, prompt_tokens=len(prompt))
        return TokenRow(
            (fitted.prompt, *fitted.completions),
            scored,
            prompt_tokens=len(prompt),
            prompt_lost=len(prompt) - len(fitted.prompt),
            completion_lost=sum(len(ids) for ids, _ in ended) - sum(map(len, fitted.completions)),
            truncated_completions=fitted.cut_completions,
            border_merges=merges,
            eos_added=sum(what == "eos_added" for _, what in ended),
            eos_missing=sum(what == "eos_missing" for _, what in ended),
            double_bos=int(len(prompt) > 1 and prompt[0] == prompt[1] == self.tokenizer.bos_token_id),
        )

    def _turns(self, whole: Ids, turns: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
        """Return first and last place of the tokens of every turn, by rule 1."""
        ids = self._joint.ids([text for turn in turns for text in turn])
        places = [common_prefix(part, whole) for part in ids]
        return list(zip(places[::2], places[1::2], strict=True))

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
        bare, full = self._joint.ids(["a"])[0], list(self.tokenizer("a")["input_ids"])
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


def _scored(turns: Sequence[tuple[int, int]], offset: int, length: int) -> list[bool]:
    """Return which of a completion's tokens belong to the turns; what follows the last turn (its end token) does too."""
    scored = [False] * length
    for number, (begin, end) in enumerate(turns, 1):
        stop = length if number == len(turns) else min(end + offset, length)
        for i in range(max(begin + offset, 0), stop):
            scored[i] = True
    return scored
