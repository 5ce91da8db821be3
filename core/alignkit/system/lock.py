"""Locks on files, so that two processes never train in one directory, or make one file at the same time.

A lock is the kernel's (``flock``), which lets go when its holder dies, however it dies: a file left behind by a dead process
is taken over, and a process number that was given out again cannot be mistaken for its holder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from alignkit.errors import ConfigError


def directory_lock(path: Path) -> AbstractContextManager[None]:
    """Hold the lock file ``path`` for the duration of the block.

    Raises:
        ConfigError: another process holds it (named), or the file cannot be made.
    """
    try:
        return file_lock(path, wait=False)
    except BlockingIOError as error:
        raise ConfigError(f"{path.parent} is in use by process {lock_holder(path) or 'unknown'}") from error
    except OSError as error:
        raise ConfigError(f"cannot make the lock file {path}: {error.strerror}") from error


def file_lock(path: Path, *, wait: bool) -> AbstractContextManager[None]:
    """Hold the lock file ``path`` for the duration of the block, waiting for it where another process holds it.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
        OSError: the file cannot be made, or its file system has no locks.
    """
    return _held(path, _acquire(path, wait=wait))


def lock_holder(path: Path) -> int | None:
    """Return the process number of whoever holds the lock, None where nobody does (0: somebody unknown)."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        digits = os.pread(descriptor, 32, 0).strip()
        return int(digits) if digits.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)


@contextmanager
def _held(path: Path, descriptor: int) -> Iterator[None]:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, *, wait: bool) -> int:
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(descriptor)
            raise
        if _still_there(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last holder removed the file between our open and our lock: take the new one


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
