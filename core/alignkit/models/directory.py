"""The files of a model directory, checked before a library reads them: their errors name no file, and pipes never end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignkit.contract.registry import provided
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
    """Return an error that says what is wrong with one of the JSON ``files`` of a directory on which ``attempt`` failed.

    An installed package looks for it (``align.checks``); ``attempt`` may be called with copies of the directory. If it finds
    nothing, the error is ``failed`` and the library's own words.
    """
    look = provided("align.checks", "files")
    found: str | None = look([file for file in files if file.is_file()], error, attempt) if look else None
    return ModelError(found or f"{failed}: {first_line(error)}")


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
