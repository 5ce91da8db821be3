"""Malformed input, drawn at random: every command must end in seconds, with one clear sentence or a result."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.accept.campaign import inputs, stored
from tests.accept.campaign.base import Base
from tests.accept.campaign.inputs import Kind, Place
from tests.accept.campaign.judge import judge
from tests.accept.campaign.processes import Align, Ended, each

KINDS: dict[Kind, int] = {
    inputs.configuration: 50,
    inputs.setting: 45,
    inputs.command_line: 40,
    inputs.data: 50,
    inputs.template: 15,
    stored.model_directory: 30,
    stored.run_directory: 30,
    stored.results: 8,
    stored.sweep: 7,
    stored.pipeline: 10,
    stored.task: 7,
    stored.plugin: 8,
}
"""How many inputs of each kind there are among 300."""
LIMIT = 60.0
"""Seconds a command may take; on idle cores it takes one or two."""


@dataclass(frozen=True)
class Tried:
    """One input, and what came of it."""

    number: int
    kind: str
    fault: str
    verdict: str
    reason: str
    ended: Ended


def try_all(base: Base, work: Path, aligns: Sequence[Align], numbers: Sequence[int], seed: int = 0) -> list[Tried]:
    """Make the inputs of these numbers (0 to 299 are all kinds in their shares) and run them, one process at a time each."""
    return each(aligns, lambda align, number: _try(base, work, align, number, seed), numbers)


def _try(base: Base, work: Path, align: Align, number: int, seed: int) -> Tried:
    kind = kind_of(number)
    place = Place(work / f"{number:03}", base, random.Random(f"{seed} {number}"))
    place.path.mkdir(parents=True)
    arguments, fault = kind(place)
    cache, site = str(place.path / "cache"), str(place.path / "site")
    ended = align(*arguments, cwd=place.path, timeout=LIMIT, ALIGN_CACHE=cache, PYTHONPATH=site)
    return Tried(number, kind.__name__, fault, *judge(ended), ended)


def kind_of(number: int) -> Kind:
    """Return the kind of an input; the kinds are spread evenly, so that any part holds most of them."""
    order = [kind for kind, share in KINDS.items() for _ in range(share)]
    return order[number * 97 % len(order)]  # 97 and 300 have no common divisor


def counts(tried: Sequence[Tried]) -> dict[str, int]:
    """Return the number of inputs by verdict."""
    return dict(Counter(one.verdict for one in tried))
