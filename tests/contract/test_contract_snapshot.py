"""The contract with plugins against its snapshot: what a plugin may rely on changes only with ``CONTRACT_VERSION``.

After an addition, or together with a new version, write the snapshot anew:

    python -m tests.contract.test_contract_snapshot
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

import alignkit
import alignkit.testing
import alignkit_eval
from alignkit.contract.groups import CONTRACT_VERSION, Group
from alignkit.contract.hooks import EXCLUSIVE, PROJECT, AlignSpecs

SNAPSHOT = Path(__file__).with_name("contract.txt")
UPDATE = "python -m tests.contract.test_contract_snapshot"


def hooks() -> list[str]:
    """Return a line for every hook, with what becomes of its results, and one for each of its arguments."""
    lines = []
    for name, function in inspect.getmembers(AlignSpecs, inspect.isfunction):
        first = getattr(function, f"{PROJECT}_spec")["firstresult"]
        lines.append(f"hook {name}: {'exclusive' if name in EXCLUSIVE else 'first result' if first else 'broadcast'}")
        lines += [f"hook {name}: argument {argument}" for argument in list(inspect.signature(function).parameters)[1:]]
    return lines


def contract() -> list[str]:
    """Return all that plugins may rely on, a line each."""
    names = {module.__name__: module.__all__ for module in (alignkit, alignkit.testing, alignkit_eval)}
    return sorted(
        [
            *hooks(),
            *(f"entry-point group {group}" for group in get_args(Group)),
            *(f"name {module}.{name}" for module, found in names.items() for name in found),
        ]
    )


def recorded() -> tuple[int, list[str]]:
    """Return the version of the snapshot and its lines."""
    first, *lines = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    return int(first.removeprefix("contract ")), lines


def test_nothing_that_plugins_rely_on_disappears_within_a_version() -> None:
    version, lines = recorded()
    gone = sorted(set(lines) - set(contract()))
    assert version != CONTRACT_VERSION or not gone, (
        f"gone from contract {version}: {'; '.join(gone)}: bump CONTRACT_VERSION or restore"
    )


def test_the_snapshot_is_complete() -> None:
    version, lines = recorded()
    assert version == CONTRACT_VERSION, f"the snapshot is of contract {version}: {UPDATE}"
    new = sorted(set(contract()) - set(lines))
    assert not new, f"not in the snapshot yet: {'; '.join(new)}: {UPDATE}"


def test_every_public_name_can_be_imported() -> None:
    for line in recorded()[1]:
        if line.startswith("name "):
            module, _, name = line.removeprefix("name ").rpartition(".")
            assert hasattr(__import__(module, fromlist=[name]), name), line


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join([f"contract {CONTRACT_VERSION}", *contract(), ""]), encoding="utf-8")
