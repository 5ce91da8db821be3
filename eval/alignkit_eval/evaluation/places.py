"""Directories of results: each target has its own, whatever else has the same base name.

The directory is ``OUTPUT/NAME``, where NAME is the last part of the target's path or hub id, with as many of the parts before it as
tell it from other targets (``A--model``). ``target.json`` in it says whose it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.errors import ConfigError, first_line
from alignkit.system.files import to_json

MARK = "target.json"


class Origin(NamedTuple):
    """What a target is: its resolved path, or its hub id and revision; and the parts of its name, the last one first."""

    identity: str
    parts: tuple[str, ...]

    def name(self, length: int) -> str:
        """Return the last ``length`` parts, as ``A/model``."""
        return "/".join(reversed(self.parts[:length]))


def names_of(origins: Sequence[Origin]) -> list[str]:
    """Return a short name for each target that no other one of them has.

    >>> names_of([Origin("1", ("model", "A")), Origin("2", ("model", "B")), Origin("3", ("other", "B"))])
    ['A/model', 'B/model', 'other']

    Raises ``ConfigError`` for a target that is named twice.
    """
    if twice := next((o for i, o in enumerate(origins) if o.identity in {p.identity for p in origins[:i]}), None):
        raise ConfigError(f"{twice.name(1)} is named twice: {twice.identity}")
    return [o.name(_length(o, [p for p in origins if p is not o])) for o in origins]


def _length(origin: Origin, others: Sequence[Origin]) -> int:
    alone = (n for n in range(1, len(origin.parts)) if all(origin.name(n) != other.name(n) for other in others))
    return next(alone, len(origin.parts))


def claim(output: Path, origin: Origin, name: str) -> tuple[str, Path]:
    """Return the name and directory for a target's results, and mark the directory as its own.

    The directory is the one it had before, or the first that no other target has; ``name`` is the shortest name to use.

    Raises:
        ConfigError: the directory cannot be written.
    """
    for candidate in _candidates(origin, name):
        directory = output / candidate.replace("/", "--")
        try:
            if _owner(directory) is None:
                directory.mkdir(parents=True, exist_ok=True)
                with (directory / MARK).open("x", encoding="utf-8") as file:
                    json.dump(to_json({"target": origin.identity}), file)
            if _owner(directory) == origin.identity:
                return candidate, directory
        except FileExistsError as error:
            if not directory.is_dir():  # else claimed by another process at this moment
                raise ConfigError(f"cannot write results to {directory}: {error.filename} is a file") from error
            if _owner(directory) == origin.identity:
                return candidate, directory
        except OSError as error:
            raise ConfigError(
                f"cannot write results to {directory}: {first_line(error)}; choose another --output"
            ) from error
    raise AssertionError("unreachable")


def release(directory: Path) -> None:
    """Remove a claimed directory in which no result was stored."""
    if (directory / MARK).is_file() and not (directory / "eval").exists():
        (directory / MARK).unlink()
        if not any(directory.iterdir()):
            directory.rmdir()


def _candidates(origin: Origin, name: str) -> Any:
    first = name.count("/") + 1
    yield from (origin.name(n) for n in range(first, len(origin.parts) + 1))
    yield from (f"{origin.name(1)}-{number}" for number in count(2))


def _owner(directory: Path) -> str | None:
    """Return the target whose results a directory holds: None if it holds no results, "" if the target is unknown."""
    try:
        found = json.loads((directory / MARK).read_bytes())
        return str(found.get("target", "")) if isinstance(found, dict) else ""
    except FileNotFoundError:
        taken = (directory / "run.json").exists() or any((directory / "eval").glob("*.json"))
        return "" if taken else None
    except ValueError:
        return ""
