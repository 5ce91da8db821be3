"""The cleaned copy of a checked source."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import DataError
from alignkit.system.files import require_writable, staged_directory, write_jsonl

from alignkit_checks.check import Check
from alignkit_checks.reading import Readable


def write_fixed(check: Check, path: Path) -> tuple[int, int]:
    """Write the rows without findings, unchanged, to ``path`` (JSON Lines), and the removed ones to PATH.dropped.jsonl.

    Return the numbers of kept and removed rows. Both are complete before either appears, PATH last.

    Raises ``ValueError`` for a check that did not keep its rows.
    """
    readable = check.readable
    if readable is None:
        raise ValueError("this check has no rows")
    raw = readable.raw
    rules = {readable.rows[row].position: rule for row, rule in check.dropped.items()}
    left = [{"place": b.place, "rule": "broken", "about": b.why, "row": _storable(b.content)} for b in readable.broken]
    log, partial = fixed_files(path)
    with staged_directory(partial) as staged:
        kept = _write_until_clean(check, readable, staged / path.name, rules)
        lost = {i: _storable(readable.restored(i)) for i in sorted(rules)}
        left += [{"place": raw.where(i), "rule": rules[i], "row": row} for i, row in lost.items()]
        write_jsonl(staged / log.name, left)
    (partial / log.name).replace(log)
    (partial / path.name).replace(path)
    shutil.rmtree(partial)
    return kept, len(left)


def _write_until_clean(check: Check, readable: Readable, path: Path, rules: dict[int, str]) -> int:
    """Write the rows that no rule drops to ``path``, add those that a rule drops from that copy, and return how many are kept.

    Rows are judged beside each other: without the dropped ones, other columns can be those that most rows have.
    """
    while True:
        kept = [position for position in range(len(readable.raw.rows)) if position not in rules]
        write_jsonl(path, [_storable(readable.restored(position)) for position in kept])
        again = check.again(str(path)) if kept and rules and check.again else None
        if again is None or again.readable is None or again.readable.broken or not again.dropped:
            return len(kept)
        rules |= {kept[again.readable.rows[row].position]: rule for row, rule in again.dropped.items()}


def fixed_files(path: Path) -> tuple[Path, Path]:
    """Return the log that belongs to a cleaned copy ``path``, and the directory both are moved from when complete.

    Raises :class:`DataError` if one of the files exists (a log whose copy was never moved is of a killed process), and
    :class:`ConfigError` if they cannot be written.
    """
    log, partial = path.with_name(f"{path.name}.dropped.jsonl"), path.with_name(f".{path.name}.whole")
    for file in (path,) if partial.is_dir() else (path, log):
        if file.exists():
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed after it had moved both
            raise DataError(f"{file} exists already: --fix writes a new file")
    require_writable(path)
    return log, partial


def _storable(value: Any) -> Any:
    """Return a value for JSON, with other types of tables (times, bytes) as text."""
    if isinstance(value, Mapping):
        return {str(key): _storable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(entry) for entry in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
