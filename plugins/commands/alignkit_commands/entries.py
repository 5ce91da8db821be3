"""The entries of the content cache: listing and removing them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from alignkit.system import cache
from alignkit.system.cache import cache_directory, is_owned, remove, remove_leftovers

SECTIONS = cache.SECTIONS | {"schema": "schemas of configuration files, for editors"}
"""Directory name and content of every section; schemas are named by their method, other entries by their digest."""


class Entry(NamedTuple):
    """An entry of the cache."""

    section: str
    key: str
    bytes: int
    last_used: float
    """In seconds since 1970."""
    path: Path


def entries() -> list[Entry]:
    """Return the entries of every section, the least recently used first."""
    found = []
    for section in SECTIONS:
        known = _is_schema if section == "schema" else cache.is_entry
        for path in filter(known, (cache_directory() / section).glob("*")):
            with suppress(FileNotFoundError):  # removed by another process
                size = sum(file.lstat().st_size for file in [path, *path.rglob("*")] if not file.is_dir())
                found.append(Entry(section, path.name.partition(".")[0], size, path.lstat().st_mtime, path))
    return sorted(found, key=lambda entry: entry.last_used)


def _is_schema(path: Path) -> bool:
    return path.suffix == ".json" and is_owned(path)


def prune(unused_since: float = 0.0, max_bytes: float = float("inf")) -> list[Entry]:
    """Remove entries last used before ``unused_since``, then the least recently used until ``max_bytes`` are left.

    Returns the removed entries; raises ``OSError`` if one cannot be removed.
    """
    removed, found = [], entries()
    left = sum(entry.bytes for entry in found)
    for entry in found:
        if entry.last_used < unused_since or left > max_bytes:
            remove(entry.path)
            left -= entry.bytes
            removed.append(entry)
    for section in SECTIONS:
        remove_leftovers(cache_directory() / section)
    return removed
