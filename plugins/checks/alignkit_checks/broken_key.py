"""The key of a model's JSON files that a library cannot use: libraries name neither file nor key of such a value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignkit.models.directory import read_object


def broken_key(files: Sequence[Path], error: Exception, attempt: Callable[[str], object]) -> str | None:
    """Return what is wrong with the key of one of ``files`` without which ``attempt`` works, though it failed with ``error``.

    ``attempt`` is given directories like that of the files. None if it works on an equal one, or without no single key.
    """
    with suppress(OSError), TemporaryDirectory() as place:
        for file in files:
            values, copy = read_object(file), Path(place) / file.name
            for source in file.parent.iterdir():
                (Path(place) / source.name).unlink(missing_ok=True)
                (Path(place) / source.name).symlink_to(source.resolve())
            if _works(attempt, place):
                break
            for key in values:
                copy.unlink()
                copy.write_text(json.dumps({name: value for name, value in values.items() if name != key}))
                if _works(attempt, place):
                    return f"{file}: {key} {_fault(values[key], str(error))}"
    return None


def _works(attempt: Callable[[str], object], place: str) -> bool:
    try:
        attempt(place)
    except Exception:
        return False
    return True


def _fault(value: Any, said: str) -> str:
    """Return what is wrong with a value, as far as the library's message ``said`` tells the type or the reason."""
    shown = f"{json.dumps(value):.60}"
    if wanted := re.search(r"expected ([^,]+), got|any type in \(([^)]*)\)", said):
        types = (wanted[1] or wanted[2]).replace("NoneType", "null").split(", ")
        return f"must be {' or '.join(types)}, not {shown}"
    reason = re.search(r"validator '\w+':\s+\w+: (.*)", said)
    return f"cannot be {shown}" + (f": {reason[1]}" if reason else "")
