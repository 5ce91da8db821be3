"""Word-level differences between two texts."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from alignkit_eval.report.parts import Word


def diff_words(before: str, after: str) -> list[Word]:
    """Return the pieces of both texts as ``same``, ``gone`` (only in ``before``) or ``new`` (only in ``after``).

    >>> diff_words("the cat sat", "the dog sat")
    [Word(change='same', text='the '), Word(change='gone', text='cat '), Word(change='new', text='dog '), Word(change='same', text='sat')]
    """
    a, b = _split(before), _split(after)
    pieces: list[Word] = []
    for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(Word("same", "".join(a[i:j])))
            continue
        pieces += [Word(change, text) for change, text in (("gone", "".join(a[i:j])), ("new", "".join(b[k:m]))) if text]
    return pieces


def _split(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)
