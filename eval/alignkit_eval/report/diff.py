"""What changed between two texts, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from alignkit_eval.report.parts import Word


def diff_words(before: str, after: str) -> list[Word]:
    """Return ``after`` in pieces that stood in ``before``, are gone from it, or are new; spaces go with the word before.

    >>> words("the cat sat", "the dog sat")
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
