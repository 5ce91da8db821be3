"""Shapes of rows: how a source's own columns become prompts and answers (entry-point group ``align.shapes``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from alignkit.contract import RawRows, Row, RowKind, registry
from alignkit.contract.guard import loading
from alignkit.data.sources.chunks import Source
from alignkit.errors import DataError, PluginError
from alignkit.system.code import code_of

MOST, LONGEST = 32, 8_000_000
"""Maximum answers of a ranking, and characters of a row's texts: more than any context, and tokenised in seconds."""

GROUP, MARGIN, RATINGS, SCALE = "group", "margin", "ratings", "\0scale"
"""Fields of rows made from several answers: a pair's row and the difference of its ratings, a ranking's ratings, a doubt about them."""

ReadRows: TypeAlias = Callable[[RawRows], list[Row]]
"""Converts rows; their positions are those in what it is given. A row may become several, or unusable with the reason."""


class Wanted(NamedTuple):
    """How rows are converted: keys of ``data``, and what the run needs."""

    columns: Mapping[str, str] = {}
    template: Mapping[str, str] = {}
    pairs: Literal["best_worst", "all"] | None = None
    ranked: bool = False
    """Whether all answers of a row become one ranking, instead of pairs."""
    chat: bool = True
    """Whether the tokenizer has a chat template; without one, instruction rows become plain text."""
    all_turns: bool = False
    """Whether completions are all assistant turns, instead of the last one."""


class Converter(ABC):
    """Converts the rows of one source, chunk by chunk, in several processes (it is pickled where they are not forked)."""

    name: str = ""
    """Its entry point, for messages; set by :func:`converter`."""

    @property
    def used(self) -> Collection[str]:
        """Columns that other columns are made of, beside those that become prompts and answers."""
        return ()

    def grouped(self, source: Source) -> Source:
        """Return the source, or if its rows are to be combined, as separate answers to one prompt are, a source of those."""
        return source

    def expanded(self, raw: RawRows, start: int = 0) -> tuple[RawRows, Sequence[int]]:
        """Return rows of the grouped source as one row per pair or ranking made of each; and of which row each is.

        ``start``: number of source rows before ``raw``.
        """
        return raw, range(len(raw.rows))

    @abstractmethod
    def reader(self, first: RawRows, kind: RowKind) -> ReadRows:
        """Return what converts expanded rows to rows of ``kind``; the ``first`` ones may decide which columns the others must have.

        Raises:
            DataError: the rows cannot be converted to that kind; the message names file and line.
        """

    def restored(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an expanded row as it can be written to a file and read again."""
        return row


def converter(first: RawRows, wanted: Wanted) -> Converter:
    """Return the converter of rows like the ``first`` one; those of other packages are asked before alignkit's own."""
    for entry in sorted(registry.usable("align.shapes").values(), key=lambda entry: entry.built_in):
        make = registry.load(entry)
        with loading(f"{entry} failed on {first.source}"):
            found: object = make(first, wanted)
        if found is None:
            continue
        if not isinstance(found, Converter):
            kind = type(found).__name__
            raise PluginError(f"{entry} must return an alignkit.data.shapes.Converter or None, not {kind}")
        found.name = str(entry)
        return found
    raise DataError(f"{first.source}: no installed package reads its rows (entry-point group align.shapes)")


def shapes_code() -> list[str]:
    """Return the names of other packages' shapes with digests of their code, which tokenised rows depend on."""
    entries = (entry for entry in registry.usable("align.shapes").values() if not entry.built_in)
    return [f"{entry} {code_of(entry.value)}" for entry in entries]
