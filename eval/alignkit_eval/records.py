"""Lists of records in the JSON files of sweeps and pipelines, read with their types."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from alignkit.errors import CheckpointError
from alignkit.system.files import InvalidJSON, parse_json
from alignkit.system.manifest import unsealed
from pydantic import TypeAdapter, ValidationError

Record = TypeVar("Record")


def read_records(path: Path, key: str, kind: type[Record]) -> list[Record]:
    """Return the dataclass records under ``key`` of a JSON file, none if there is no file; raises as :func:`read_value`."""
    return read_value(path, key, list[kind]) or []  # type: ignore[valid-type]


def read_value(path: Path, key: str, kind: Any) -> Any:
    """Return the value under ``key`` of a JSON file as a type, None if there is no file.

    Raises:
        CheckpointError: naming the file and the value that is wrong.
    """
    if not path.is_file():
        return None
    try:
        stored = unsealed(parse_json(path.read_bytes()), path)
        return TypeAdapter(kind).validate_python(stored[key])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (key, *first["loc"]))
        raise CheckpointError(f"{path}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    except InvalidJSON as error:
        raise CheckpointError(f"{path}:{error.line}: invalid JSON: {error}") from None
    except (KeyError, TypeError):
        raise CheckpointError(f"{path}: expected an object with the key {key}") from None
