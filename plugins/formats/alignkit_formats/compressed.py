"""Text files as they are and compressed: gzip, bzip2, xz and Zstandard."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit.errors import DataError, first_line

_EXPANDED = 16 << 20
"""Bytes a compressed file may expand to whatever its own size, and beyond that to :data:`_RATIO` times its own size."""

_RATIO = 100

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def _open_zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


COMPRESSIONS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
"""Suffix -> opens a file and reads it decompressed."""

ZIPPED = ", ".join(COMPRESSIONS)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """Open a text file, decompressed; raises :class:`DataError` if it cannot be read."""
    compressed = path.suffix.lower() in COMPRESSIONS
    try:
        with io.BufferedReader(_Expanded(path), 1 << 17) if compressed else path.open("rb") as file:
            if file.peek(2).startswith(_UTF16):
                raise DataError(f"{path}:1: the file is UTF-16; save it as UTF-8")
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None


class _Expanded(io.RawIOBase):
    """A compressed file, which may not expand to more than text can: a few bytes can hold gigabytes of one character."""

    def __init__(self, path: Path) -> None:
        self._file, self._path, self._read = COMPRESSIONS[path.suffix.lower()](path), path, 0
        self._limit = max(_EXPANDED, _RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        self._read += len(piece)
        if self._read > self._limit:
            raise DataError(
                f"{self._path} expands to more than {_RATIO} times its size; decompress it if that is right"
            )
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()
