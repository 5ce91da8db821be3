"""File locks, so that two processes never train in one directory or write one file at the same time.

The kernel (``flock``) releases a lock when its holder ends, for any reason. The file contains the holder's process number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from alignkit.errors import ConfigError


@contextmanager
def directory_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for the duration of the block.

    Raises:
        ConfigError: another process (named) holds it, or the file cannot be made.
    """
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(path, wait=False))
        except TimeoutError as error:
            raise ConfigError(f"{path.parent} is in use by process {lock_holder(path) or 'unknown'}") from error
        except OSError as error:
            raise ConfigError(f"cannot make the lock file {path}: {error.strerror}") from error
        yield


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file ``path`` for the duration of the block, waiting for it if ``wait``.

    Raises:
        TimeoutError: another process holds it, and ``wait`` is false.
        OSError: the file cannot be made, or its file system has no locks.
    """
    from filelock import FileLock

    lock = FileLock(path, fallback_to_soft=False, on_acquired=_write_holder)
    lock.acquire(blocking=wait)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: a process that waits for it then makes a new one
        lock.release()


def lock_holder(path: Path) -> int | None:
    """Return the process number of the lock's holder, 0 if it is not known, None if the lock is free."""
    import fcntl

    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            digits = file.read(32).strip()
            return int(digits) if digits.isdigit() else 0
    return None


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
