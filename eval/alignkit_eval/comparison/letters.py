"""Letters of arms that cannot be told apart, as tables of multiple comparisons have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, product
from string import ascii_lowercase

from alignkit_eval.comparison.verdict import Judged


def letters_of(arms: Sequence[str], pairs: Sequence[Judged]) -> Mapping[str, str]:
    """Return the letters of each arm: two arms share one unless they differ significantly, the same way by every metric.

    Source: the insert-and-absorb algorithm of Piepho 2004, J. Comput. Graph. Stat. 13(2).

    Args:
        arms: names of the arms, in order.
        pairs: deciding contrasts of any two arms; without any, there are no letters.
    """
    if not pairs:
        return {}
    between: dict[frozenset[str], set[bool | None]] = {}
    for pair in pairs:
        better = pair.contrast.better
        side = None if better is None else better == (pair.contrast.arm > pair.baseline)  # whichever is named first
        between.setdefault(frozenset((pair.baseline, pair.contrast.arm)), set()).add(side)
    groups: list[set[str]] = [set(arms)]
    for one, other in (tuple(pair) for pair, sides in between.items() if len(sides) == 1 and None not in sides):
        parted = [part for g in groups for part in ([g - {one}, g - {other}] if {one, other} <= g else [g])]
        groups = [g for i, g in enumerate(parted) if not any(g < o or (g == o and i > j) for j, o in enumerate(parted))]
    groups.sort(key=lambda g: min(arms.index(arm) for arm in g))
    names = ("".join(word) for length in count(1) for word in product(ascii_lowercase, repeat=length))
    named = [(next(names), g) for g in groups]
    separator = "" if len(named) <= len(ascii_lowercase) else " "
    return {arm: separator.join(letter for letter, g in named if arm in g) for arm in arms}
