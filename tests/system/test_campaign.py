"""A small part of the fault campaign: kills, flipped bits and malformed input (``make accept`` runs all of it)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.accept.campaign import flips, kills, malformed
from tests.accept.campaign.base import Base
from tests.accept.campaign.processes import Align

pytestmark = pytest.mark.slow

HEAVY = {"sweep", "pipeline", "task"}
"""Kinds of input whose commands take many seconds, or need results that the small base lacks."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Align]:
    base = Base(tmp_path_factory.mktemp("campaign"))
    base.prepare_models()
    align = Align()
    base.prepare_runs(align, small=True)
    return base, align


def test_killed_commands_come_to_the_same_end(prepared: tuple[Base, Align]) -> None:
    base, align = prepared
    chosen = {"run": 1, "resume": 1, "eval": 1, "export": 1, "data check": 1}
    numbers = [n for name, count in chosen.items() for n in _of(kills.command_of, 100, name)[:count]]
    found = kills.Campaign(base, base.path / "kills", [align]).run(numbers)
    assert {kill.outcome for kill in found} <= {"same", "after a sentence", "not killed"}, found
    assert not any(kill.left for kill in found), found


def test_flipped_bits_are_noticed(prepared: tuple[Base, Align]) -> None:
    base, align = prepared
    kinds = ("weights", "checkpoint", "token cache", "reference cache", "evaluation cache", "checks cache")
    numbers = [n for name in kinds for n in _of(flips.target_of, 150, name)[:1]]
    found = flips.Campaign(base, base.path / "flips", [align]).run(numbers)
    assert {flip.outcome for flip in found} <= {"refused", "made anew", "no effect"}, found


def test_malformed_input_is_refused_in_one_sentence(prepared: tuple[Base, Align]) -> None:
    base, align = prepared
    numbers = [n for n in range(60) if malformed.kind_of(n).__name__ not in HEAVY][:18]
    found = malformed.try_all(base, base.path / "malformed", [align], numbers)
    assert [one for one in found if one.verdict not in ("refused", "used")] == []
    assert sum(one.verdict == "refused" for one in found) > len(found) / 2


def _of(kind: Callable[[int], Any], size: int, name: str) -> list[int]:
    """Return the numbers of a campaign whose kind has a name."""
    return [number for number in range(size) if kind(number).name == name]
