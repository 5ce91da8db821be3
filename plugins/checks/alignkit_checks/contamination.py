"""Rows that share long runs of words with evaluation data: the n-gram overlap of GPT-3's appendix C.

Texts are compared as words without case and punctuation, or as tokens. A text of fewer than n words counts as one shorter run of
all its words if it has at least :data:`SHORTEST`; one of fewer is not looked for.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-grams of words; at least 8 words).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from alignkit.config import CheckConfig, Reading
from alignkit.contract import DataRule, Hit, Row, texts_of
from alignkit.contract.registry import provided
from alignkit.data.sources.open import HELD_OUT_SPLITS, Load, open_source
from alignkit.errors import DataError
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NGRAM = 13
SHORTEST = 8
"""Fewest words of a text that is looked for as a whole."""

_COUNTED = 20
"""Items with a run that are counted to name the one that shares most: a phrase may be in all of them."""

RULE = "contaminated"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Item:
    """A row of evaluation data: where it is, and its texts by column."""

    place: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Overlap:
    """A field of a row that shares runs of words with a field of an evaluated item."""

    place: str
    row: str
    field: str
    share: float
    """Share of the field's words that lie in shared runs."""
    against: str
    """The item that shares most, and its column."""
    against_field: str
    text: str
    """The first shared run."""


@dataclass
class Against:
    """Evaluation data, and what a source shares with it."""

    source: str
    items: int
    short: int
    """Texts with too few words to be looked for."""
    dirty: int = 0
    """Items that share a run with some row."""
    rows: int = 0
    fields: Mapping[str, int] = field(default_factory=dict)
    """Field of the source -> rows in which it shares a run with an item."""
    overlaps: list[Overlap] = field(default_factory=list)

    def line(self, n: int) -> str:
        """Return what was found as a line of the report."""
        share = f" ({self.dirty / self.items:.1%})" if self.items else ""
        by_field = ", ".join(f"{name} {count:,}" for name, count in self.fields.items())
        short = f"; texts of fewer than {min(n, SHORTEST)} words, not looked for: {self.short:,}" if self.short else ""
        found = f" with {self.rows:,} row{'s' * (self.rows != 1)} (by field: {by_field})" if self.rows else ""
        return f"  {self.dirty:,} of {self.items:,} items of {self.source}{share} share {n}-grams{found}{short}"


class Contamination:
    """The runs of words of evaluation data, looked for in the texts of rows.

    Args:
        sources: files, directories, URLs, hub ids, plain texts (.txt), or task files of lm-eval (.yaml).
        n: words of a run.
        tokenizer: compares tokens in place of words.
        load: a plugin's loader.

    Raises:
        DataError: a source cannot be read or has no text to look for.
    """

    def __init__(
        self,
        sources: Sequence[str],
        n: int = NGRAM,
        tokenizer: PreTrainedTokenizerBase | None = None,
        load: Load | None = None,
    ) -> None:
        self.n, self.tokenizer = n, tokenizer
        self._indexes = [_Index(source, read_items(source, load), n, self._split) for source in sources]

    def _split(self, text: str) -> Sequence[Any]:
        if self.tokenizer is not None:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return ids
        return _WORD.findall(text.casefold())

    def look(self, rows: Sequence[Row]) -> tuple[DataRule, list[Against]]:
        """Return the rule that finds the rows that share runs with the evaluation data, and what each source of it shares."""
        found = [Against(index.source, len(index.items), index.short) for index in self._indexes]
        by_row: list[list[Overlap]] = []
        dirty: list[set[int]] = [set() for _ in found]
        for row in rows:
            own: list[Overlap] = []
            texts = [(name, self._split(text)) for name, text in texts_of(row)]
            for index, against, seen in zip(self._indexes, found, dirty, strict=True):
                made = [self._overlap(index, row, name, words, seen) for name, words in texts]
                overlaps = [overlap for overlap in made if overlap is not None]
                against.overlaps.extend(overlaps)
                against.rows += bool(overlaps)
                own += overlaps
            by_row.append(own)
        for against, seen in zip(found, dirty, strict=True):
            against.dirty, against.fields = len(seen), Counter(overlap.field for overlap in against.overlaps)
        hits = [Hit(i, _about(own)) for i, own in enumerate(by_row) if own]

        def find(_rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
            return iter(hits)

        kind = "words" if self.tokenizer is None else "tokens"
        return DataRule(RULE, f"rows that share {self.n}-grams of {kind} with evaluation data", find), found

    def _overlap(self, index: _Index, row: Row, name: str, words: Sequence[Any], dirty: set[int]) -> Overlap | None:
        """Return what a field shares with a source, None for nothing; items that share are added to ``dirty``."""
        covered = np.zeros(len(words), bool)
        shared: Counter[tuple[int, str]] = Counter()
        first: slice | None = None
        for run, where in index.shared(words):
            covered[run] = True
            first = first or run
            shared.update(where[:_COUNTED])
            dirty.update(item for item, _ in where)
        if first is None:
            return None
        (item, column), _ = shared.most_common(1)[0]
        text = " ".join(words[first]) if self.tokenizer is None else str(self.tokenizer.decode(words[first]))
        return Overlap(row.place, row.id, name, float(covered.mean()), index.items[item].place, column, text)


class _Index:
    """The runs of words of one source of evaluation data, with the items and columns that have them."""

    def __init__(self, source: str, items: list[Item], n: int, split: Callable[[str], Sequence[Any]]) -> None:
        self.source, self.items, self.short = source, items, 0
        self._numbers: dict[Any, int] = {}
        self._runs: dict[int, dict[bytes, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
        for position, item in enumerate(items):
            for name, text in item.texts:
                words = split(text)
                if len(words) < min(n, SHORTEST):
                    self.short += bool(words)
                    continue
                ids = np.array([self._numbers.setdefault(word, len(self._numbers) + 1) for word in words], np.int32)
                for run in _windows(ids, min(n, len(words))):
                    where = self._runs[len(run)][run.tobytes()]
                    if not where or where[-1] != (position, name):
                        where.append((position, name))
        if not self._runs:
            raise DataError(
                f"--against {source}: none of its {len(items):,} rows has a text of {min(n, SHORTEST)} or more words to look for"
            )
        self._hashes = {
            width: np.unique(_hashes(np.frombuffer(b"".join(runs), np.int32).reshape(-1, width)))
            for width, runs in self._runs.items()
        }

    def shared(self, words: Sequence[Any]) -> Iterator[tuple[slice, list[tuple[int, str]]]]:
        """Yield the runs of a text that the source has, with the items and columns that have them."""
        ids = np.array([self._numbers.get(word, 0) for word in words], np.int32)
        for width, runs in self._runs.items():
            if len(ids) < width:
                continue
            windows = _windows(ids, width)
            for begin in np.flatnonzero(np.isin(_hashes(windows), self._hashes[width])):
                if (where := runs.get(windows[begin].tobytes())) is not None:
                    yield slice(int(begin), int(begin) + width), where


def _windows(ids: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    return np.lib.stride_tricks.sliding_window_view(ids, width)


def _hashes(runs: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return a hash of each run ``[m, width]``; equal runs are confirmed afterwards."""
    factors = np.random.default_rng(0).integers(1, 1 << 63, (runs.shape[1],), dtype=np.uint64)
    found = np.zeros(len(runs), np.uint64)
    with np.errstate(over="ignore"):  # a multiplicative hash wraps
        for i, factor in enumerate(factors):
            found += runs[:, i].astype(np.uint64) * factor
    return found


def _about(found: Sequence[Overlap]) -> str:
    """Return which words of a row are shared, and with what."""
    return "; ".join(f"{o.share:.0%} of {o.field} in {o.against} ({o.against_field})" for o in found)


def read_items(source: str, load: Load | None = None) -> list[Item]:
    """Return the rows of evaluation data of any shape with all their texts, by column.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() in (".yaml", ".yml"):
        documents = provided("align.checks", "documents")
        if documents is None:
            raise DataError(
                f"--against {source}: no installed package reads lm-eval's tasks (entry-point group align.checks)"
            )
        return [Item(place, list(texts.items())) for place, texts in documents(source)]
    if path.suffix.lower() == ".txt" and path.is_file():
        return _lines(path)
    try:
        raw = open_source(source, None, Reading(), default_splits=HELD_OUT_SPLITS, load=load).read()
    except DataError as error:
        raise DataError(f"--against: {error}") from error
    return [
        Item(raw.where(i), [(name, text) for name, value in row.items() for text in _texts(value)])
        for i, row in enumerate(raw.rows)
    ]


def _lines(path: Path) -> list[Item]:
    """Return the paragraphs of a text file, which blank lines divide."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--against {path}: it cannot be read as UTF-8 text: {error}") from error
    items: list[Item] = []
    begin = 0
    for end in [i for i, line in enumerate(lines) if not line.strip()] + [len(lines)]:
        if text := "\n".join(lines[begin:end]).strip():
            items.append(Item(f"{path}:{begin + 1}", [("text", text)]))
        begin = end + 1
    return items


def _texts(value: Any) -> Iterable[str]:
    """Yield every text in a cell: of lists, of conversations, of nested columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple | np.ndarray):
        for part in value:
            yield from _texts(part)
