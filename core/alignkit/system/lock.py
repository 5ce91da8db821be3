"""Locks on files, so that two processes never train in one directory or make one file at the same time.

A lock is the kernel's (``flock``), freed when its holder ends, however it ends. Its file holds the holder's process number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import ConfigError

if TYPE_CHECKING:
    from filelock import FileLock


def directory_lock(path: Path) -> AbstractContextManager[None]:
    """Hold the lock file ``path`` for the duration of the block.

    Raises:
        ConfigError: another process (named) holds it, or the file cannot be made.
    """
    try:
        return file_lock(path, wait=False)
    except TimeoutError as error:
        raise ConfigError(f"{path.parent} is in use by process {lock_holder(path) or 'unknown'}") from error
    except OSError as error:
        raise ConfigError(f"cannot make the lock file {path}: {error.strerror}") from error


def file_lock(path: Path, *, wait: bool) -> AbstractContextManager[None]:
    """Hold the lock file ``path`` for the duration of the block, waiting for it if ``wait``.

    Raises:
        TimeoutError: another process holds it, and ``wait`` is false.
        OSError: the file cannot be made, or its file system has no locks.
    """
    from filelock import FileLock

    lock = FileLock(path, fallback_to_soft=False, on_acquired=_write_holder)
    lock.acquire(blocking=wait)
    return _released(lock)


def lock_holder(path: Path) -> int | None:
    """Return the number of the process that holds the lock, None if none does (0: a process that is not known)."""
    import fcntl

    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                digits = file.read(32).strip()
                return int(digits) if digits.isdigit() else 0
    except FileNotFoundError:
        pass
    return None


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


@contextmanager
def _released(lock: FileLock) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held: who waits for it then makes a new one
        lock.release()
