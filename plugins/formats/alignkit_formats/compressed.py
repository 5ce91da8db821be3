"""Text files as they are and compressed: gzip, bzip2, xz and Zstandard."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.errors import DataError, first_line

_EXPANDED = 16 << 20
"""Bytes a compressed file may expand to whatever its own size, and beyond that to :data:`_RATIO` times its own size."""

_RATIO = 100

_CHUNK = 1 << 17
"""Compressed bytes read at once."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class _Streams:
    """A file of one or more compressed streams, read to its last byte.

    ``bz2.open`` and ``lzma.open`` take bytes behind a stream that begin no other for the end of the file, so that a damaged
    second stream would be left out without a word. Zero bytes behind a stream are padding, as ``xz`` and ``tar`` write it.
    """

    def __init__(self, path: Path, new: Callable[[], Any]) -> None:
        self._file, self._new, self._stream, self._given = path.open("rb"), new, new(), b""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` decompressed bytes, none at the end of the file; raises what the decompressor does."""
        while True:
            if self._stream is None:
                self._given = self._given.lstrip(b"\0")
                if self._given:
                    self._stream = self._new()
                elif not (given := self._file.read(_CHUNK)):
                    return b""
                else:
                    self._given = given
            elif self._stream.eof:
                self._given, self._stream = self._stream.unused_data, None
            else:
                if self._stream.needs_input and not self._given:
                    self._given = self._file.read(_CHUNK)
                    if not self._given:
                        raise EOFError("it ends within a compressed stream")
                piece: bytes = self._stream.decompress(self._given, size)
                self._given = b""
                if piece:
                    return piece

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open_zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


COMPRESSIONS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": partial(_Streams, new=bz2.BZ2Decompressor),
    ".xz": partial(_Streams, new=lzma.LZMADecompressor),
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
