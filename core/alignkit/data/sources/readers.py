"""File format readers: each yields chunks of rows with file and line, and runs no code from the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from alignkit.data.rows import describe_value
from alignkit.data.sources.chunks import BYTES, ROWS, Chunk, LineChunk, RowChunk
from alignkit.errors import DataError, first_line, suggest
from alignkit.system.files import InvalidJSON, parse_json

Reader: TypeAlias = Callable[[Path], Iterator[Chunk]]

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UNREADABLE = (OSError, EOFError, zlib.error)


def read_jsonl(path: Path) -> Iterator[Chunk]:
    """Read JSON Lines (also gzipped); empty lines are skipped."""
    lines: list[bytes] = []
    places: list[str] = []
    size = 0
    for number, line in _byte_lines(path):
        lines.append(line)
        places.append(f"{path}:{number}")
        size += len(line)
        if len(lines) == ROWS or size >= BYTES:
            yield LineChunk(lines, places)
            lines, places, size = [], [], 0
    if lines:
        yield LineChunk(lines, places)


def read_json(path: Path, split: str | None = None) -> Iterator[Chunk]:
    """Read a JSON list of objects, or an object that contains such lists (``split`` is then the key).

    A file with one object per line is read as JSON Lines. A list is read into memory as a whole.
    """
    text = _text(path)
    try:
        value = parse_json(text)
    except InvalidJSON as error:
        if _begins_with_object(text):
            yield from read_jsonl(path)
            return
        raise DataError(f"{path}:{error.line}: invalid JSON: {error}") from None
    key = None if isinstance(value, list) else _list_key(path, value, split)
    items = value if key is None else value[key]
    lines = cache(lambda: _item_lines(text, key))
    for begin in range(0, len(items), ROWS):
        rows = items[begin : begin + ROWS]
        places = [f"{path}:{lines()[begin + i]}" for i in range(len(rows))]
        for row, place in zip(rows, places, strict=True):
            if not isinstance(row, dict):
                raise DataError(f"{place}: the row is {describe_value(row)}, expected an object with the row's columns")
        yield RowChunk(rows, places)


def read_csv(path: Path) -> Iterator[Chunk]:
    """Read comma-separated values with a header (tab-separated in a file named .tsv)."""
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    with _open(path) as file:
        _refuse_utf16(path, file.peek(2)[:2])
        stream = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        table = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            yield from _table_chunks(path, table)
        except csv.Error:
            message = "a quote is not closed, or text follows a closing quote"
            raise DataError(f"{path}:{table.line_num}: invalid CSV: {message}") from None
        except UnicodeDecodeError:
            _refuse_encoding(path)
        except _UNREADABLE as error:
            raise DataError(f"{path} cannot be read: {first_line(error)}") from None


def _table_chunks(path: Path, table: Any) -> Iterator[Chunk]:
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    header: list[str] = []
    while True:
        # Long answers exceed the csv module's limit of 128 KiB. It is global, so it is raised only while reading.
        previous = csv.field_size_limit(sys.maxsize)
        try:
            if not header:
                header = next(table, [])
                if not header and not table.line_num:
                    return
                _check_header(path, header)
            while len(rows) < ROWS:
                start = table.line_num + 1
                values = next(table, None)
                if values is None:
                    break
                if values:
                    rows.append(_csv_row(f"{path}:{start}", header, values))
                    places.append(f"{path}:{start}")
        finally:
            csv.field_size_limit(previous)
        if not rows:
            return
        yield RowChunk(rows, places)
        rows, places = [], []


def read_parquet(path: Path) -> Iterator[Chunk]:
    """Read a Parquet file in parts of row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _batch_chunks(path, file.iter_batches(ROWS))
    except (pa.ArrowException, OSError) as error:
        _refuse(path, "Parquet", error)


def read_arrow(path: Path) -> Iterator[Chunk]:
    """Read a memory-mapped Arrow file (Feather, or the stream format that ``datasets`` writes)."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            try:
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            except pa.ArrowInvalid:
                file.seek(0)
                batches = iter(pa.ipc.open_stream(file))
            cut = (batch.slice(at, ROWS) for batch in batches for at in range(0, batch.num_rows, ROWS))
            yield from _batch_chunks(path, cut)
    except (pa.ArrowException, OSError) as error:
        _refuse(path, "Arrow", error)


READERS: Mapping[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
"""File name suffix -> reader. Text formats may be gzipped (``.jsonl.gz``)."""


# ------------------------------------------------------------------------------------------------ text


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    try:
        return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None


def _byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield ``(line number, line)`` for every line that is not empty."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    _refuse_utf16(path, line)
                    line = line.removeprefix(_BOM)
                if line.strip():
                    yield number, line
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None


def _text(path: Path) -> str:
    """Return the content of a text file."""
    try:
        with _open(path) as file:
            content: bytes = file.read()
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    if not content.strip():
        raise DataError(f"{path} is empty")
    _refuse_utf16(path, content)
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError:
        _refuse_encoding(path)


def _refuse_encoding(path: Path) -> NoReturn:
    """Raise :class:`DataError` naming the first line that is not UTF-8."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
                ) from None
    raise DataError(f"{path}: not UTF-8; save the file as UTF-8")


def _refuse_utf16(path: Path, content: bytes) -> None:
    if content.startswith(_UTF16):
        raise DataError(f"{path}:1: the file is UTF-16; save it as UTF-8")


# ------------------------------------------------------------------------------------------------ JSON


def _begins_with_object(text: str) -> bool:
    """Whether a text that is not JSON begins with a complete JSON object."""
    begin = text.lstrip()
    try:
        return isinstance(json.JSONDecoder().raw_decode(begin)[0], dict)
    except (ValueError, RecursionError):
        return False


def _list_key(path: Path, value: Any, split: str | None) -> str:
    """Return the key of an object's list of rows."""
    if not isinstance(value, dict):
        raise DataError(f"{path}:1: the file contains {describe_value(value)}, expected a list of objects")
    keys: list[str] = [key for key, items in value.items() if isinstance(items, list)]
    if split in keys:
        return str(split)
    if not keys:
        raise DataError(f"{path}:1: the file contains one object without a list of rows")
    if len(keys) > 1:
        given = "" if split is None else f', none of them "{split}"{suggest(split, keys)}'
        raise DataError(
            f"{path}:1: the file contains several lists ({', '.join(keys)}){given}; set data.split to one of them"
        )
    return keys[0]


_GAP = re.compile(r"[\s,:]*")


def _item_lines(text: str, key: str | None) -> list[int]:
    """Return the line number of each item of the top-level list, or of the list under ``key``."""
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        match = _GAP.match(text, at)
        return match.end() if match else at

    at = skip(0)
    if key is not None:  # skip the object's entries before the list
        name, at = decode(text, skip(at + 1))
        while name != key:
            _, at = decode(text, skip(at))
            name, at = decode(text, skip(at))
        at = skip(at)
    lines, line, counted = [], 1, 0
    at = skip(at + 1)
    while text[at] != "]":
        line += text.count("\n", counted, at)
        counted = at
        lines.append(line)
        _, at = decode(text, at)
        at = skip(at)
    return lines


# ------------------------------------------------------------------------------------------------ tables


def _check_header(path: Path, header: list[str]) -> None:
    if not any(name.strip() for name in header):
        raise DataError(f"{path}:1: no header: the first line must name the columns")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f'{path}:1: the header repeats column "{repeated[0]}"')


def _csv_row(place: str, header: list[str], values: list[str]) -> dict[str, Any]:
    if len(values) != len(header):
        raise DataError(f"{place}: {len(values)} fields, but the header has {len(header)} columns")
    return dict(zip(header, values, strict=True))


def _batch_chunks(path: Path, batches: Iterator[Any]) -> Iterator[Chunk]:
    count = 0
    for batch in batches:
        rows: Sequence[Mapping[str, Any]] = batch.to_pylist()
        if rows:
            yield RowChunk(rows, [f"{path} row {count + i + 1}" for i in range(len(rows))])
        count += len(rows)


def _refuse(path: Path, kind: str, error: Exception) -> NoReturn:
    raise DataError(f"{path} cannot be read as {kind}: {first_line(error)}") from None
