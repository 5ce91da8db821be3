"""A small part of the fault campaign: kills and flipped bits (``make accept`` runs all of it)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.accept.campaign import flips, kills
from tests.accept.campaign.base import Base
from tests.accept.campaign.processes import Align


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Base, Align]]:
    base = Base(tmp_path_factory.mktemp("campaign"))
    base.prepare_models()
    align = Align(base.model)
    base.prepare_runs(align, small=True)
    yield base, align
    align.close()


def test_killed_commands_come_to_the_same_end(prepared: tuple[Base, Align]) -> None:
    base, align = prepared
    chosen = {"run": 2, "resume": 1, "eval": 1, "export": 1, "data check": 1}
    numbers = [n for name, count in chosen.items() for n in _of(kills.command_of, 100, name)[:count]]
    found = kills.Campaign(base, base.path / "kills", [align]).run(numbers)
    assert {kill.outcome for kill in found} <= {"same", "after a sentence", "not killed"}, found
    assert not any(kill.left for kill in found), found


def test_flipped_bits_are_noticed(prepared: tuple[Base, Align]) -> None:
    base, align = prepared
    kinds = ("checkpoint", "token cache", "reference cache", "evaluation cache", "checks cache")
    numbers = [n for name in kinds for n in _of(flips.target_of, 150, name)[:2]]
    found = flips.Campaign(base, base.path / "flips", [align]).run(numbers)
    assert {flip.outcome for flip in found} <= {"refused", "made anew", "no effect"}, found


def _of(kind: Callable[[int], Any], size: int, name: str) -> list[int]:
    """Return the numbers of a campaign whose kind has a name."""
    return [number for number in range(size) if kind(number).name == name]
