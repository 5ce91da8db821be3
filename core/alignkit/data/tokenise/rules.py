"""Token ids of rows: the boundary between prompt and completion, BOS and EOS tokens, truncation.

The rules, in the order they are applied:

1. Prompt and prompt + answer are each tokenised as one text; the completion is what follows the prompt's tokens. If a token
   straddles the boundary (a *border merge*, counted), the completion begins with it, so that every character of the answer
   is scored and both completions of a pair have the same prompt.
2. The tokenizer's prefix (BOS) occurs once, also if the text already contains it.
3. An empty prompt becomes the BOS token, else the EOS token, else the first token of its completions.
4. A BOS token at the beginning of a completion is removed (counted).
5. A completion that does not end with an end-of-text or end-of-turn token gets the EOS token (``append_eos``; counted).
6. Prompts are truncated on the left to ``max_prompt_length`` and completions on the right to ``max_completion_length``. To
   fit ``max_length``, the prompt is truncated on the left down to one token, then the completions on the right (counted).
   The longest completion decides, so both completions of a pair have the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from alignkit.config import DataConfig
from alignkit.contract import RowKind
from alignkit.data.tokenise.prefix import PrefixEncoder
from alignkit.data.tokenise.render import Rendered, common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TOKENS = "completion adds no token to the prompt"
ONLY_SPECIAL = "completion has only special tokens"
SAME_TOKENS = "chosen and rejected have the same tokens (after truncation)"
NO_START = "empty prompt, and the tokenizer has no BOS or EOS token"
NOTHING_SCORED = "no assistant token is left (after truncation)"

Ids: TypeAlias = list[int]


class Room(NamedTuple):
    """The positions a model has (None: no limit), and those that are kept free after a prompt for a sampled answer."""

    positions: int | None = None
    reserved: int = 0


ENDLESS = Room()


@dataclass(frozen=True)
class TokenRules:
    """The settings of tokenisation."""

    max_length: int
    append_eos: bool = True
    limit: str = "data.max_length"
    """What rows are truncated to, for messages."""
    max_prompt_length: int | None = None
    max_completion_length: int | None = None

    @classmethod
    def of(cls, config: DataConfig, room: Room, kind: RowKind) -> TokenRules:
        """Return the rules for rows of ``kind``: they fit ``data.max_length`` and the model's positions."""
        reserved = room.reserved if kind == "prompt" else 0
        length, limit = config.max_length, "data.max_length"
        if room.positions is not None and (left := room.positions - reserved) < length:
            limit = f"the model's {room.positions:,} positions" + f" with {reserved:,} new tokens" * bool(reserved)
            length = left
        parts = {key: getattr(config, key) for key in ("max_prompt_length", "max_completion_length")}
        limit = " and ".join([f"data.{key}" for key, most in parts.items() if most] + [limit])
        return cls(length, config.append_eos, limit, **parts)


class Truncated(NamedTuple):
    """A prompt and its completions after truncation, and how many of them were truncated."""

    prompt: Ids
    completions: tuple[Ids, ...]
    cut_prompts: int
    cut_completions: int


class TokenRow(NamedTuple):
    """One row as token ids, with counts of what tokenisation had to change."""

    parts: tuple[Ids, ...] = ()
    """The prompt, then its completions; empty for an unusable row."""
    scored: list[bool] | None = None
    """Mask of the scored tokens of the only completion (None: all)."""
    unusable: str | None = None
    """Why the row cannot be used (None: it can)."""
    prompt_tokens: int = -1
    """Tokens of the prompt before truncation; -1 if it was not tokenised."""
    prompt_lost: int = 0
    """Prompt tokens removed to fit ``max_length``."""
    completion_lost: int = 0
    """Completion tokens removed to fit ``max_length``."""
    truncated_completions: int = 0
    border_merges: int = 0
    eos_added: int = 0
    eos_missing: int = 0
    double_bos: int = 0
    bos_removed: int = 0


class Encoder:
    """Tokenises rendered rows by the rules of this module."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: TokenRules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self._joint = PrefixEncoder(tokenizer)
        self._eos: int | None = tokenizer.eos_token_id
        special = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
        self._special = special.union(tokenizer.all_special_ids)
        # Chat templates end a turn with a special token that may differ from EOS (<|im_end|>, <end_of_turn>).
        others = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
        self._ends = self._special - (others - {self._eos})
        # Special tokens are never white space, even if they decode to it.
        self._spaces = dict.fromkeys(self._special, False)

    def encode(self, batch: Sequence[Rendered]) -> list[TokenRow]:
        """Return the tokens of every row, or the reason why it is unusable."""
        encoded = self._joint.encode([(row.prompt, row.answers) for row in batch])
        return [self._row(prompt, wholes, row) for (prompt, wholes), row in zip(encoded, batch, strict=True)]

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
        # Ranges of turns are counted from the beginning.
        doubled = [turns is None and len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id for ids in completions]
        completions = [ids[1:] if bos else ids for ids, bos in zip(completions, doubled, strict=True)]
        ended = [self._end(completion) for completion in completions]
        rules = self.rules
        cut = tuple(ids[: rules.max_completion_length] for ids, _ in ended)
        fitted = truncate(prompt[-(rules.max_prompt_length or 0) :], cut, rules.max_length)
        scored = None
        if turns is not None:
            # Added to a position in the text, the offset gives the position in the completion.
            offset = added - (len(wholes[0]) - len(completions[0]))
            scored = _scored(turns, offset, len(fitted.completions[0]))
            if not any(scored):
                return TokenRow(unusable=NOTHING_SCORED, prompt_tokens=len(prompt))
        if len(fitted.completions) > 1 and all(ids == fitted.completions[0] for ids in fitted.completions):
            return TokenRow(unusable=SAME_TOKENS, prompt_tokens=len(prompt))
        return TokenRow(
            (fitted.prompt, *fitted.completions),
            scored,
            prompt_tokens=len(prompt),
            prompt_lost=len(prompt) - len(fitted.prompt),
            completion_lost=sum(len(ids) for ids, _ in ended) - sum(map(len, fitted.completions)),
            truncated_completions=sum(len(a) > len(b) for (a, _), b in zip(ended, fitted.completions, strict=True)),
            border_merges=merges,
            eos_added=sum(what == "eos_added" for _, what in ended),
            eos_missing=sum(what == "eos_missing" for _, what in ended),
            bos_removed=sum(doubled),
            double_bos=int(len(prompt) > 1 and prompt[0] == prompt[1] == self.tokenizer.bos_token_id),
        )

    def _turns(self, whole: Ids, turns: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
        """Return the token range ``[begin, end)`` of every turn, by rule 1; the final one includes an appended EOS token."""
        ids = self._joint.ids([text for turn in turns for text in turn])
        bounds = [common_prefix(part, whole) for part in ids]
        return [(b, e + 1 if e == len(whole) else e) for b, e in zip(bounds[::2], bounds[1::2], strict=True)]

    def _begin(self, prompt: Ids, wholes: list[Ids]) -> tuple[Ids, list[Ids]]:
        """Prepend the tokenizer's prefix (BOS), unless the text already has it (rule 2)."""
        prefix = self._prefix
        if not prefix or all(ids[: len(prefix)] == prefix for ids in wholes or [prompt]):
            return prompt, wholes
        return prefix + prompt, [prefix + whole for whole in wholes]

    def _start(self, prompt: Ids, wholes: list[Ids]) -> tuple[Ids, list[Ids]] | str:
        """Separate prompt and completions, and make sure that the prompt has a token (rule 3)."""
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
        """Return the completion with an end token, and ``eos_added``, ``eos_missing`` or "" (rule 5)."""
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
    def _prefix(self) -> Ids:
        bare, full = self._joint.ids(["a"])[0], list(self.tokenizer("a")["input_ids"])
        starts = range(len(full) - len(bare) + 1)
        return next((full[:start] for start in starts if full[start : start + len(bare)] == bare), [])


def truncate(prompt: Ids, completions: tuple[Ids, ...], max_length: int) -> Truncated:
    """Truncate prompt and longest completion to ``max_length`` tokens in total.

    The prompt is truncated on the left first, down to one token, then the completions on the right.

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
    """Return the mask of a completion's tokens in assistant turns."""
    scored = [False] * length
    for begin, end in turns:
        for i in range(max(begin + offset, 0), min(end + offset, length)):
            scored[i] = True
    return scored
