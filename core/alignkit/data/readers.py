"""One reader a file format. Each knows file and line of every row, and none of them runs code from the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from alignkit.data.rows import RawRows, describe, first_line
from alignkit.errors import DataError, suggest

Reader: TypeAlias = Callable[[Path, int | None], RawRows]
"""``(path, limit) -> rows``."""

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_jsonl(path: Path, limit: int | None = None) -> RawRows:
    """Read JSON Lines (also gzipped), stopping after ``limit`` rows; empty lines are passed over."""
    rows, lines = [], []
    for number, line in islice(_json_lines(path), limit):
        value = _loads(line, path, number)
        if not isinstance(value, dict):
            raise DataError(
                f"{path}:{number}: the line is {describe(value)}, expected an object with the row's columns"
            )
        rows.append(value)
        lines.append(number)
    return RawRows(rows, lambda position: f"{path}:{lines[position]}", str(path))


def read_json(path: Path, limit: int | None = None, split: str | None = None) -> RawRows:
    """Read a JSON list of objects, or an object that holds one (``split`` names it where it holds several).

    A file that holds one object a line is read as JSON Lines, whatever its name.
    """
    text = _text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip()[:1] == "{":
            return read_jsonl(path, limit)
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path}: broken JSON: nested too deeply") from None
    key = None if isinstance(value, list) else _list_key(path, value, split)
    items = value if key is None else value[key]
    lines = cache(lambda: _item_lines(text, key))
    for position, item in enumerate(items[:limit]):
        if not isinstance(item, dict):
            place = f"{path}:{lines()[position]}"
            raise DataError(f"{place}: the row is {describe(item)}, expected an object with the row's columns")
    return RawRows(items[:limit], lambda position: f"{path}:{lines()[position]}", str(path))


def read_csv(path: Path, limit: int | None = None) -> RawRows:
    """Read comma-separated values with a header (tabs in a file named .tsv)."""
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    table = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    previous = csv.field_size_limit(sys.maxsize)  # long answers pass the default of 128 KiB
    try:
        header = next(table, [])
        _check_header(path, header)
        start = table.line_num + 1
        for values in table:
            if values:
                rows.append(_csv_row(f"{path}:{start}", header, values))
                lines.append(start)
            start = table.line_num + 1
            if limit is not None and len(rows) >= limit:
                break
    except csv.Error as error:
        raise DataError(f"{path}:{table.line_num}: broken CSV: {error}") from None
    finally:
        csv.field_size_limit(previous)
    return RawRows(rows, lambda position: f"{path}:{lines[position]}", str(path))


def read_parquet(path: Path, limit: int | None = None) -> RawRows:
    """Read a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _table_rows(pq.read_table(path), path, limit)
    except (pa.ArrowException, OSError) as error:
        _refuse(path, "Parquet", error)


def read_arrow(path: Path, limit: int | None = None) -> RawRows:
    """Read an Arrow file (Feather, or the stream format that ``datasets`` writes)."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            try:
                table = pa.ipc.open_file(file).read_all()
            except pa.ArrowInvalid:
                file.seek(0)
                table = pa.ipc.open_stream(file).read_all()
            return _table_rows(table, path, limit)
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
"""Reader by file name suffix. The text formats may be gzipped (``.jsonl.gz``)."""


# ------------------------------------------------------------------------------------------------ text


def _json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line number, text)`` of every line that is not empty."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    _refuse_utf16(path, line)
                    line = line.removeprefix(_BOM)
                if line.strip():
                    yield number, _decode(line, path, number)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None


def _text(path: Path) -> str:
    """Return a whole text file."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content: bytes = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    if not content.strip():
        raise DataError(f"{path} is empty")
    _refuse_utf16(path, content)
    return _decode(content.removeprefix(_BOM), path, 1)


def _decode(content: bytes, path: Path, first_line: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None


def _refuse_utf16(path: Path, content: bytes) -> None:
    if content.startswith(_UTF16):
        raise DataError(f"{path}:1: the file is UTF-16; save it as UTF-8")


def _loads(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        hint = "; a file that is one JSON list is named .json" if line.strip() == "[" else ""
        raise DataError(f"{path}:{number}: broken JSON: {error.msg} (column {error.colno}){hint}") from None
    except RecursionError:
        raise DataError(f"{path}:{number}: broken JSON: nested too deeply") from None


# ------------------------------------------------------------------------------------------------ JSON


def _list_key(path: Path, value: Any, split: str | None) -> str:
    """Return the key of an object under which its list of rows stands."""
    if not isinstance(value, dict):
        raise DataError(f"{path}:1: the file holds {describe(value)}, expected a list of objects")
    keys: list[str] = [key for key, items in value.items() if isinstance(items, list)]
    if split in keys:
        return str(split)
    if not keys:
        raise DataError(f"{path}:1: the file holds one object without a list of rows")
    if len(keys) > 1:
        given = "" if split is None else f', and none is "{split}"{suggest(split, keys)}'
        raise DataError(f"{path}:1: the file holds several lists ({', '.join(keys)}){given}; name one as data.split")
    return keys[0]


_GAP = re.compile(r"[\s,:]*")


def _item_lines(text: str, key: str | None) -> list[int]:
    """Return the line on which each item of the top-level list, or of the list under ``key``, begins."""
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        match = _GAP.match(text, at)
        return match.end() if match else at

    at = skip(0)
    if key is not None:  # walk the object's pairs up to the one that holds the list
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
        raise DataError(f"{path}:1: no header: the first line names the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f'{path}:1: the header names column "{twice[0]}" twice')


def _csv_row(place: str, header: list[str], values: list[str]) -> dict[str, Any]:
    if len(values) != len(header):
        raise DataError(f"{place}: {len(values)} fields, but the header names {len(header)} columns")
    return dict(zip(header, values, strict=True))


def _table_rows(table: Any, path: Path, limit: int | None) -> RawRows:
    rows = (table if limit is None else table.slice(0, limit)).to_pylist()
    return RawRows(rows, lambda position: f"{path} row {position + 1}", str(path))


def _refuse(path: Path, kind: str, error: Exception) -> NoReturn:
    raise DataError(f"{path} cannot be read as {kind}: {first_line(error)}") from None
