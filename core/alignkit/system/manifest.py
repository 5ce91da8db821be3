"""Sizes and SHA-256 digests of the files of a directory, by which damage is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""Name of the file with a checkpoint's manifest."""


def manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the size and digest of every file, by its path relative to ``directory``."""
    return {
        str(file.relative_to(directory)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
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
        elif _sha256(file) != written["sha256"]:
            yield name, "is damaged (its SHA-256 is not the one recorded)"


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
