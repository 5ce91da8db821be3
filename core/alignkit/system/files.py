"""Atomic writes of files and directories, JSON and JSON lines, and digests of values.

A file or directory is written under a temporary name beside its final one, synced to disk, and renamed: readers, and runs
resumed after a crash, see either the old or the new content.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alignkit.errors import AlignError, ConfigError, DataError
from alignkit.system.terminal import redact


def read_regular(path: Path, limit: int = 64_000_000) -> bytes:
    """Return the content of a file.

    Raises :class:`OSError` if there is none, if it is not a regular file (reading a device or a named pipe may never end) or
    if it has more than ``limit`` bytes. A pipe made by the shell, as in ``align run <(...)``, is read.
    """
    if (kind := irregular(path)) and not path.as_posix().startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        raise OSError(errno.EISDIR if path.is_dir() else errno.EINVAL, kind)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes")
    return content


def irregular(path: Path) -> str:
    """Return what ``path`` is if it is not a regular file, e.g. ``it is a directory``; empty if it is one or does not exist."""
    kinds = {
        "directory": Path.is_dir,
        "named pipe": Path.is_fifo,
        "device": lambda it: it.is_char_device() or it.is_block_device(),
        "socket": Path.is_socket,
    }
    return next((f"it is a {kind}, not a file" for kind, test in kinds.items() if test(path)), "")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` when the block ends; on an error it is removed.

    The parent directory is created if missing; what killed writers of the same file left is removed.
    """
    if kind := irregular(path):  # root could replace /dev/null by a file
        raise OSError(errno.EEXIST, kind, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove_leftover(other)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that replaces ``path`` when the block ends; on an error it is removed.

    Its name depends only on ``path``, so that the leftovers of a killed process are removed.
    """
    staged = path.with_name(f".{path.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        replace_directory(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replace_directory(staged: Path, final: Path) -> None:
    """Sync everything in ``staged`` to disk and rename it to ``final``; an older ``final`` is removed."""
    sync_tree(staged)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    try:
        staged.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def require_writable(path: Path, *, directory: bool = False) -> None:
    """Raise :class:`ConfigError` if no file, or no ``directory``, can be written at ``path``, which need not exist."""
    above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if above.is_dir() if above == path.absolute() and not directory else not above.is_dir():
        raise ConfigError(f"cannot write {path}: {above} is a {'directory' if above.is_dir() else 'file'}")
    if (kind := irregular(above)) and not above.is_dir():
        raise ConfigError(f"cannot write {path}: {kind}")
    if not os.access(above, os.W_OK):
        raise ConfigError(f"cannot write {path}: {above} is read-only, or belongs to another user")


def is_leftover(path: Path) -> bool:
    """Whether a name is that of a lock, or of what is renamed or removed when whole: a killed process leaves only these."""
    return re.fullmatch(r"\.lock|\..+\.tmp|(\..+)?\.partial|\..+\.old", path.name) is not None


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left in a directory and below; a lock stays, for the next process to take."""
    for path in [found for found in directory.rglob(".*") if is_leftover(found) and found.name != ".lock"]:
        _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    """Remove a temporary file whose writer has ended, or a staged directory; put back what was not replaced after all."""
    if path.suffix == ".tmp":
        writer = re.search(r"\.(\d+)-\w+\.tmp$", path.name)
        with suppress(OSError):
            try:
                os.kill(int(writer[1]) if writer else os.getpid(), 0)
            except ProcessLookupError:
                path.unlink()
    elif path.suffix == ".old" and not (final := path.with_name(path.name[1:-4])).exists():
        path.rename(final)
    else:
        shutil.rmtree(path, ignore_errors=True)


def file_fault(error: BaseException, path: Path) -> str | None:
    """Return what a file or disk did, in words, if that is what an error came from; ``path``: on the disk in question.

    Libraries that write by themselves (torch, safetensors) raise their own errors on a full disk.
    """
    cause: BaseException | None = None if isinstance(error, AlignError) else error
    while cause is not None:
        no_space = bool(re.search(r"No space left|quota exceeded", said := str(cause), re.IGNORECASE))
        if not no_space and re.search(r"file write failed|PytorchStreamWriter|I/O error|unexpected pos", said):
            no_space = shutil.disk_usage(path).free < 2**20
        if no_space:
            return f"no space is left on the disk of {path}"
        if isinstance(cause, OSError) and (cause is error or cause.errno == errno.EROFS) and (fault := os_fault(cause)):
            return fault
        cause = cause.__cause__ or cause.__context__
    return None


def os_fault(error: OSError) -> str | None:
    """Return the file and the cause of an error of the file system in words; None for one of another kind.

    >>> os_fault(PermissionError(13, "Permission denied", "/etc/a")), os_fault(OSError(28, "No space left on device"))
    ('/etc/a: permission denied', 'no space left on device')
    """
    if error.errno is None or not error.strerror or isinstance(error, ConnectionError | TimeoutError):
        return None
    reason = f"{error.strerror[0].lower()}{error.strerror[1:]}"
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until a file, or a directory and everything in it, is on disk."""
    for entry in [*path.rglob("*"), path]:
        sync(entry)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, passwords in URLs masked."""
    with atomic_path(path) as temporary:
        temporary.write_text(redact(text), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically; see :func:`to_json` for the types it may contain."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json_line(row) for row in rows)


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON, line feed included."""
    return json.dumps(to_json(row), ensure_ascii=False, allow_nan=False) + "\n"


class InvalidJSON(ValueError):  # noqa: N818  it is never raised to the user
    """Text that is not JSON; the message names the position and is the same in every version of Python."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raises :class:`InvalidJSON`."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"not UTF-8 (byte 0x{error.object[error.start]:02x})") from None
    except json.JSONDecodeError as error:
        before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :]
        if before.endswith(",") and rest[:1] in ("}", "]"):  # as in Python 3.13: the comma is the error
            error = json.JSONDecodeError("", error.doc, len(before) - 1)
            rest = error.doc[error.pos :]
        near = f"near {rest[:16]!r}" if rest else "at the end"
        raise InvalidJSON(f"column {error.colno}, {near}", error.lineno) from None
    except RecursionError:
        raise InvalidJSON("nested too deeply") from None
    except ValueError:
        raise InvalidJSON("an integer has too many digits") from None


def read_jsonl(path: Path, *, half_written: bool = False, error: type[AlignError] = DataError) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; see :func:`jsonl_rows`."""
    return [row for _, row in jsonl_rows(path, half_written=half_written, error=error)]


def jsonl_rows(
    path: Path, *, half_written: bool = False, error: type[AlignError] = DataError
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place (``FILE:LINE``) and the object of every line of a JSON-lines file that is not blank.

    Args:
        path: UTF-8 file. Lines end with a line feed only: a JSON string may hold U+2028 and other separators unescaped.
        half_written: ignore a last line without a line feed; its writer was killed, or is still writing it.
        error: type of the error raised.

    Raises:
        AlignError: of type ``error``, naming file and line: a line is not a JSON object.
        OSError: the file cannot be read.
    """
    if kind := irregular(path):
        raise OSError(errno.EINVAL, kind, str(path))
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if half_written else lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except InvalidJSON as cause:
            raise error(f"{path}:{number}: invalid JSON: {cause}") from cause
        if not isinstance(row, dict):
            raise error(f"{path}:{number}: expected a JSON object")
        yield f"{path}:{number}", row


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a value as JSON with sorted keys; non-JSON values are hashed as their ``str``.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def to_json(value: Any) -> Any:
    """Return a value in JSON's own types.

    Numbers that are not finite become null (JSON has no NaN); named tuples, dataclasses and pydantic models become objects,
    paths strings, numpy and torch scalars numbers.

    >>> to_json({"loss": float("nan"), "steps": (1, 2)})
    {'loss': None, 'steps': [1, 2]}

    Raises:
        TypeError: the value is of another kind.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): to_json(entry) for key, entry in value.items()}
        case Path():
            return str(value)
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if hasattr(value, "model_dump"):
        return to_json(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (Sequence, set, frozenset)):
        return [to_json(entry) for entry in (value if isinstance(value, Sequence) else sorted(value))]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")
