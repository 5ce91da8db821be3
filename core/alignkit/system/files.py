"""Files that appear whole or not at all, and JSON that any reader takes.

A file is written under a temporary name beside its final one, synced to disk, and renamed: a reader, or a run resumed
after a crash, sees the old content or the new, never half of it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there becomes ``path`` when the block ends without error.

    The directory is made where it is missing. On an error the temporary file is removed and ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; see :func:`plain` for what it may hold."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json_line(row) for row in rows)


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON, line feed included."""
    return json.dumps(to_json(row), ensure_ascii=False, allow_nan=False) + "\n"


def to_json(value: Any) -> Any:
    """Return a value in JSON's own types.

    Numbers that are not finite become null (JSON has no NaN); named tuples, dataclasses and pydantic models become objects,
    paths strings, numpy and torch scalars numbers.

    >>> to_json({"loss": float("nan"), "steps": (1, 2)})
    {'loss': None, 'steps': [1, 2]}

    Raises:
        TypeError: the value is of another kind.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): to_json(entry) for key, entry in value.items()}
        case Path():
            return str(value)
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if hasattr(value, "model_dump"):
        return to_json(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (Sequence, set, frozenset)):
        return [to_json(entry) for entry in (value if isinstance(value, Sequence) else sorted(value))]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")
