"""Digests by which damage is noticed: of the files of a directory, and of a JSON file in itself."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.system.files import digest, to_json
from alignkit.system.terminal import redact

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""Name of the file with a checkpoint's manifest."""
SEAL = "checksum"
"""Key of the checksum of a JSON object."""


def manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the size and digest of every file, by its path relative to ``directory``."""
    return {
        str(file.relative_to(directory)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def problems(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the name of every file that is not as it was written, and what is wrong with it."""
    for name, written in files.items():
        file = directory / name
        if not file.is_file():
            yield name, "is missing"
        elif (size := file.stat().st_size) != written["bytes"]:
            yield name, f"has {size} bytes where {written['bytes']} were written"
        elif sha256(file) != written["sha256"]:
            yield name, "is damaged (its SHA-256 is not the one recorded)"


@cache
def warn_changed(path: Path) -> None:
    """Log, once a process, that a file was changed after alignkit wrote it."""
    logger.warning("%s has changed since it was written (it is damaged, or was edited), and is used as it is now", path)


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of all its keys but ``status``, which may be overwritten in place."""
    shown = json.loads(redact(json.dumps(to_json(value))))  # as write_json writes it
    plain: dict[str, Any] = {key: entry for key, entry in shown.items() if key != SEAL}
    return plain | {SEAL: digest({key: entry for key, entry in plain.items() if key != "status"})}


def unsealed(stored: Any, path: Path) -> Any:
    """Return a stored JSON object without its checksum; a file that was changed after alignkit wrote it is logged."""
    if not isinstance(stored, Mapping):
        return stored
    plain = {key: entry for key, entry in stored.items() if key != SEAL}
    if SEAL in stored and stored[SEAL] != sealed(plain)[SEAL]:
        warn_changed(path)
    return plain
