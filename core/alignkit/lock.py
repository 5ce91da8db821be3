"""A lock on a directory, so that two processes never train in the same one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkit.errors import ConfigError


@contextmanager
def directory_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for the duration of the block.

    The lock is the kernel's (``flock``), which lets go when its holder dies, however it dies: a file left behind by a
    dead process is taken over, and a process number that was given out again cannot be mistaken for its holder.

    Raises:
        ConfigError: another process holds it (named), or the file cannot be made.
    """
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


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
        return _process_number(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    import fcntl

    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot make the lock file {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _process_number(descriptor)
            os.close(descriptor)
            raise ConfigError(f"{path.parent} is in use by process {holder or 'unknown'}") from error
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"cannot lock {path} (does its file system support locks?): {error.strerror}") from error
        if _still_there(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last holder removed the file between our open and our lock: take the new one


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _process_number(descriptor: int) -> int:
    digits = os.pread(descriptor, 32, 0).strip()
    return int(digits) if digits.isdigit() else 0
