"""The files of a model directory, checked before a library reads them: their errors name no file, and pipes never end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignkit.errors import ModelError, first_line
from alignkit.system.files import InvalidJSON, irregular, parse_json, read_regular

_JSON = ("config", "generation_config", "tokenizer_config", "special_tokens_map", "adapter_config")


def check_files(directory: Path) -> None:
    """Raise :class:`ModelError` for a file that is a pipe or a broken link, is not the JSON it should be, or was cut off."""
    for file in sorted(directory.iterdir()) if directory.is_dir() else ():
        if file.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt", ".bin"):
            continue
        if kind := irregular(file) or ("" if file.exists() else "it is a link to a file that does not exist"):
            raise ModelError(f"{file} cannot be read: {kind}")
        if file.suffix == ".json" and (file.stem in _JSON or file.name.endswith(".index.json")):
            read_object(file)
        if file.suffix == ".safetensors":
            _check_weights(file)


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``; raises :class:`ModelError` if it cannot be read or holds something else."""
    try:
        value = parse_json(read_regular(file))
    except InvalidJSON as error:
        raise ModelError(f"{file}:{error.line}: invalid JSON: {error}") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: expected a JSON object")
    return value


def blamed(failed: str, files: Sequence[Path], error: Exception, attempt: Callable[[str], object]) -> ModelError:
    """Return an error that names the key of one of the JSON ``files`` of a directory without which ``attempt`` works.

    Libraries name neither file nor key of a value that they cannot use. ``attempt`` is given directories like that of the
    files; if it works on an equal one, or without no single key, the error is ``failed`` and the library's own words.
    """
    plain = ModelError(f"{failed}: {first_line(error)}")
    found = [file for file in files if file.is_file()]
    with suppress(OSError), TemporaryDirectory() as place:
        for file in found:
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
                    return ModelError(f"{file}: {key} {_fault(values[key], str(error))}")
    return plain


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


def _check_weights(file: Path) -> None:
    """Raise :class:`ModelError` if the header of a safetensors file and its size do not agree."""
    size = file.stat().st_size
    with file.open("rb") as content:
        start = content.read(8)
        if start == b"version ":
            raise ModelError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull`")
        length = int.from_bytes(start, "little")
        try:
            header = json.loads(content.read(length)) if 8 + length <= size else {}
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            whole = 0
    if whole != size:
        raise ModelError(
            f"{file} is damaged or half-written: its header does not describe its {size:,} bytes; copy it again"
        )
