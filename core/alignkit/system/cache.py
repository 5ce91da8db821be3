"""The content cache: results that depend only on data, weights and settings, computed once and stored on disk.

An entry is a file or directory ``DIRECTORY/SECTION/KEY.CHECKSUM.SUFFIX``. KEY is the digest of everything it depends on,
CHECKSUM the SHA-256 of the key and the entry, verified whenever it is read. The directory is ``$ALIGN_CACHE``, else
``$XDG_CACHE_HOME/alignkit``, else ``~/.cache/alignkit``.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alignkit.errors import first_line
from alignkit.system.distributed import rank
from alignkit.system.files import digest, sync, sync_tree
from alignkit.system.lock import file_lock
from alignkit.system.together import gathered, sharers

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECTIONS = {
    "tokens": "tokenised rows",
    "reference": "reference log-probabilities",
    "checks": "data checks",
    "evaluation": "evaluation results",
}
"""Directory name and content of every section."""


def cache_directory() -> Path:
    """Return the cache directory, which need not exist; raises ``OSError`` if it is below a home that is not known."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(os.environ.get("ALIGN_CACHE") or f"{base}/alignkit").expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} Set HOME or ALIGN_CACHE.") from error


def private_directory(path: Path) -> Path:
    """Make a directory that only this user can write to, and its parent; raises ``OSError`` if it is somebody else's."""
    for directory in (path.parent, path):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not is_owned(path) or path.parent.lstat().st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} or the directory it is in is a link or belongs to another user")
    if found.st_mode & 0o022:
        path.chmod(found.st_mode & 0o700)
    return path


@dataclass(frozen=True)
class ContentCache:
    """One section of the cache, in a directory private to the user. Failing to use it is logged and never an error."""

    section: str
    suffix: str = ""
    """Suffix of the entries' names, e.g. ``.arrow``."""

    def fetch(
        self,
        key: str,
        make: Callable[[], T],
        *,
        read: Callable[[Path], T],
        write: Callable[[Path, Callable[[], T]], object],
    ) -> tuple[T, bool]:
        """Return the value of a key and whether it was cached; one process computes it, others wait for the result.

        Args:
            key: digest of everything the value depends on.
            make: computes the value; called at most once.
            read: reads an entry; an entry that cannot be read, or has a wrong checksum, is computed again.
            write: writes the result of its second argument, ``make``, to a path.
        """
        make = functools.cache(make)
        try:
            directory = cache_directory() / self.section
            partial = directory / f"{key}.partial"
            private_directory(directory)
            if found := self._find(directory, key, read):
                return found[0], True
            with file_lock(partial.with_suffix(".lock"), wait=True):
                if found := self._find(directory, key, read, replace=True):  # made while this process waited
                    return found[0], True
                remove_leftovers(directory)
                remove(partial)
                try:
                    write(partial, make)
                    sync_tree(partial)
                    path = partial.rename(directory / self._name(partial, key))
                    sync(directory)
                finally:
                    remove(partial)
                return read(path), False
        except OSError as error:
            _warn_once(SECTIONS[self.section], os.environ.get("ALIGN_CACHE"), str(error))
            return make(), False

    def fetch_together(self, key: str, make: Callable[[], T], **how: Any) -> tuple[T, bool]:
        """As :meth:`fetch`, called by all processes: the first one reads and writes, and all make what is not there."""
        place = f"the cache of {SECTIONS[self.section]}"
        if sharers() == 1:
            return self.fetch(key, make, **how)
        if rank() > 0:
            found: list[T] = gathered(place, [])[0]
            return (found[0], True) if found else (make(), False)
        value, hit = self.fetch(key, lambda: (gathered(place, []), make())[1], **how)
        if hit:
            gathered(place, [value])
        return value, hit

    def _find(self, directory: Path, key: str, read: Callable[[Path], T], *, replace: bool = False) -> tuple[T] | None:
        """Return the value of an intact entry; with ``replace``, remove damaged ones."""
        for path in filter(is_entry, directory.glob(f"{key}.{'[0-9a-f]' * 64}*")):  # not 0.1.0's, without checksums
            try:
                if path.name != self._name(path, key):
                    raise ValueError("its checksum is wrong")
                value = read(path)
            except Exception as error:  # a damaged file can raise anything
                if replace:
                    logger.warning("the cache entry %s is damaged (%s) and is made again", path, first_line(error))
                    remove(path)
                continue
            with suppress(OSError):  # record the time of last use, if possible
                os.utime(path)
            return (value,)
        return None

    def _name(self, path: Path, key: str) -> str:
        return f"{key}.{_checksum(path, key)}{self.suffix}"


_warned: set[str | None] = set()


def _warn_once(what: str, cache: str | None, error: str) -> None:
    """Say once for each cache directory that it cannot be used; everything is computed anew."""
    if cache not in _warned:
        _warned.add(cache)
        logger.warning("%s are not cached: %s (nor are other results)", what, error)


def is_entry(path: Path) -> bool:
    """Whether a path in a section is an entry, which this user made."""
    named = re.match(r"[0-9a-f]{64}(\.|$)", path.name) and path.suffix not in (".lock", ".partial")
    return bool(named) and is_owned(path)


def is_owned(path: Path) -> bool:
    """Whether a path is this user's own file or directory, not a link."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        return found.st_uid == os.geteuid() and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode))
    return False


def _checksum(path: Path, key: str) -> str:
    """Return the SHA-256 of a key and a file's bytes, or of a key and a directory's names and bytes."""
    if path.is_dir():
        return digest([key, *([child.name, _checksum(child, "")] for child in sorted(path.iterdir()))])
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(key.encode())).hexdigest()


def remove(path: Path) -> None:
    """Remove an entry, if it is there."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_leftovers(directory: Path) -> None:
    """Remove the leftovers of killed processes: locks that no process holds, and their partial entries."""
    for path in [*directory.glob("*.partial"), *directory.glob("*.lock")]:
        with suppress(OSError), file_lock(path.with_suffix(".lock"), wait=False):
            remove(path.with_suffix(".partial"))
