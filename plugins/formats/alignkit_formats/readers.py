"""File format readers: each yields rows with file and line, and runs no code from the file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from alignkit.contract import Located
from alignkit.data.rows import describe_value, few
from alignkit.data.sources.chunks import ROWS, decode_line, numbered
from alignkit.errors import DataError, first_line, suggest
from alignkit.system.files import InvalidJSON, parse_json

from alignkit_formats.compressed import opened
from alignkit_formats.fill_ins import without_fill_ins

LINE = 64 << 20
"""Maximum bytes of a line of JSON, or characters of a CSV field."""

LIST = 2 << 30
"""Maximum bytes of a JSON list, which is read into memory as a whole."""

_HEADER, _BLANK = 4 << 20, 1_000_000

_BOM = b"\xef\xbb\xbf"


def read_jsonl(path: Path, _split: str | None = None) -> Iterator[Located]:
    """Read JSON Lines, to be parsed later; empty lines are skipped. A file that is one JSON list is read as such."""
    with opened(path) as file:
        if file.peek(64).removeprefix(_BOM).lstrip()[:1] == b"[" and _is_list(path):
            yield from read_json(path)
            return
    yield from _lines(path)


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the lines of a text file that are not empty, with their locations."""
    last = 0
    with opened(path) as file:
        for number, line in enumerate(iter(partial(file.readline, LINE + 1), b""), 1):
            if len(line) > LINE:
                raise DataError(f"{path}:{number}: the line is longer than {LINE:,} bytes; write one row a line")
            content = line.removeprefix(_BOM) if number == 1 else line
            if content.strip():
                last = number
                yield content, f"{path}:{number}"
            elif number - last > _BLANK:
                raise DataError(f"{path}:{number}: more than {_BLANK:,} empty lines")


def read_json(path: Path, split: str | None = None) -> Iterator[Located]:
    """Read a JSON list of objects, or an object that contains such lists (``split`` is then the key).

    A file with one object per line is read as JSON Lines. A list is read into memory as a whole.

    Raises ``DataError`` with file and line for invalid JSON, and for a row that is not an object.
    """
    text = _text(path)
    try:
        value = parse_json(text)
    except InvalidJSON as error:
        if _begins_with_object(text):
            yield from _lines(path)
            return
        raise DataError(f"{path}:{error.line}: invalid JSON: {error}") from None
    key = None if isinstance(value, list) else _list_key(path, value, split)
    lines = _item_lines(path, text, key)
    numbered_items = len(set(lines)) < len(lines)  # several on a line
    for i, row in enumerate(value if key is None else value[key]):
        place = f"{path}:{lines[i]}" + (f" item {i + 1}" if numbered_items else "")
        if not isinstance(row, dict):
            raise DataError(f"{place}: the row is {describe_value(row)}, expected an object with the row's columns")
        yield row, place


def read_text(path: Path, _split: str | None = None) -> Iterator[Located]:
    """Read the lines of a text file as rows with the column ``text``; empty lines are skipped."""
    for line, place in _lines(path):
        yield {"text": decode_line(line, place).strip("\r\n")}, place


def read_csv(path: Path, _split: str | None = None, delimiter: str | None = None) -> Iterator[Located]:
    """Read a table with a header, separated by commas (in a file named .tsv by tabs) or as ``delimiter`` says.

    Without it, a header that has more of another separator (comma, semicolon, tab, vertical bar) is split at that one.

    Raises ``DataError`` with file and line for a header or row that cannot be read.
    """
    usual = "\t" if ".tsv" in path.name.lower() else ","
    named = {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
    if named is not None and (len(named) != 1 or named in '"\r\n'):
        raise DataError(f"data.delimiter must be one character, or tab, not {delimiter!r}")
    with opened(path) as file:
        stream = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            first = stream.readline(_HEADER)
            if len(first) == _HEADER:
                raise DataError(f"{path}:1: no header: the first line is longer than {_HEADER:,} characters")
            counts = Counter(re.sub(r'"[^"]*"', "", first))
            separator = named or max(usual + ",;\t|", key=counts.__getitem__)
            if first and named and not counts[named]:
                raise DataError(f"{path}:1: the header does not contain data.delimiter {delimiter!r}: {first.strip()}")
            lines = chain([first] if first else [], iter(partial(stream.readline, LINE), ""))
            table = csv.reader(lines, delimiter=separator, strict=True)
            header = _next_record(table)
            if header is None:
                return
            _check_header(path, header)
            place = f"{path}:{table.line_num + 1}"
            while (values := _next_record(table)) is not None:
                if len(values) not in (0, len(header)):
                    hint = "; name the separator with data.delimiter" if len(header) == 1 else ""
                    raise DataError(f"{place}: {len(values)} fields, but the header has {len(header)} columns{hint}")
                if values:
                    yield dict(zip(header, values, strict=True)), place
                place = f"{path}:{table.line_num + 1}"
        except csv.Error as error:
            message = "a quote is not closed, or text follows a closing quote"
            if "field larger" in str(error):
                message = f"a field has more than {LINE:,} characters (is a quote not closed?)"
            raise DataError(f"{path}:{table.line_num}: invalid CSV: {message}") from None
        except UnicodeDecodeError:
            _refuse_encoding(path)


def read_parquet(path: Path, _split: str | None = None) -> Iterator[Located]:
    """Read a Parquet file in parts of row groups."""
    import pyarrow.parquet as pq

    with _readable_as("Parquet", path), pq.ParquetFile(path) as file:
        yield from numbered(_rows(file.iter_batches(ROWS), file.schema_arrow), path)


def read_arrow(path: Path, _split: str | None = None) -> Iterator[Located]:
    """Read a memory-mapped Arrow file (Feather, or the stream format that ``datasets`` writes)."""
    import pyarrow as pa

    with _readable_as("Arrow", path), pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = iter(reader := pa.ipc.open_stream(file))
        cut = (batch.slice(at, ROWS) for batch in batches for at in range(0, batch.num_rows, ROWS))
        yield from numbered(_rows(cut, reader.schema), path)


def _text(path: Path) -> str:
    with opened(path) as file:
        begin = file.peek(64).removeprefix(_BOM).lstrip()[:1]
        content = bytearray(file.read(4096))  # enough for the message, if it is not JSON
        while begin in (b"[", b"{", b"") and (piece := file.read(1 << 24)):
            content += piece
            if len(content) > LIST:
                raise DataError(
                    f"{path} is longer than {LIST:,} bytes, too long for one list; write JSON Lines (.jsonl)"
                )
    if not content.strip():
        raise DataError(f"{path} is empty")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        _refuse_encoding(path)


def _refuse_encoding(path: Path) -> NoReturn:
    """Raise :class:`DataError` naming the first line that is not UTF-8."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            decode_line(line, f"{path}:{number}")
    raise DataError(f"{path}: not UTF-8; save the file as UTF-8")


def _is_list(path: Path) -> bool:
    """Return whether a file that begins with a bracket is one JSON list; else its first line is at fault."""
    try:
        return isinstance(parse_json(_text(path)), list)
    except InvalidJSON:
        return False


def _begins_with_object(text: str) -> bool:
    """Return whether a text that is not JSON begins with a complete JSON object."""
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
            f"{path}:1: the file contains several lists ({few(keys)}){given}; set data.split to one of them"
        )
    return keys[0]


_GAP = re.compile(r"[\s,:]*")


def _item_lines(path: Path, text: str, key: str | None) -> list[int]:
    """Return the line number of each item of the top-level list, or of the list under ``key``."""
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        match = _GAP.match(text, at)
        return match.end() if match else at

    begin = at = skip(0)
    if key is not None:  # find the entry, which must be there once: of two, the first would be left out
        begin, at = -1, skip(at + 1)
        while text[at] != "}":
            name, end = decode(text, at)
            if name == key and begin >= 0:
                line = text.count("\n", 0, at) + 1
                raise DataError(f'{path}:{line}: "{key}" is there twice: give the lists other names, or join them')
            begin = skip(end) if name == key else begin
            at = skip(decode(text, skip(end))[1])
    lines, line, counted = [], 1, 0
    at = skip(begin + 1)
    while text[at] != "]":
        line += text.count("\n", counted, at)
        counted = at
        lines.append(line)
        row, at = json.JSONDecoder(object_pairs_hook=tuple).raw_decode(text, at)
        if isinstance(row, tuple) and len(dict(row)) < len(row):  # only an object becomes a tuple
            raise DataError(f"{path}:{line}: the row has a key twice, so one of its values would be left out")
        at = skip(at)
    return lines


def _next_record(table: Iterator[list[str]]) -> list[str] | None:
    # Long answers exceed the csv module's limit of 128 KiB. It is global, so it is raised only while reading.
    previous = csv.field_size_limit(LINE)
    try:
        return next(table, None)
    finally:
        csv.field_size_limit(previous)


def _check_header(path: Path, header: list[str]) -> None:
    if not any(name.strip() for name in header):
        raise DataError(f"{path}:1: no header: the first line must name the columns")
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if repeated:
        raise DataError(f'{path}:1: the header repeats column "{few(repeated[:1])}"')


@contextmanager
def _readable_as(kind: str, path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as {kind}: {first_line(error)}") from None


def _rows(batches: Iterable[Any], schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of Arrow batches; columns of ``datasets``' type Json, which are stored as text, are decoded."""
    rows = map(without_fill_ins, chain.from_iterable(batch.to_pylist() for batch in batches))
    if b'"Json"' not in (schema.metadata or {}).get(b"huggingface", b""):
        return rows
    from datasets import Features

    features = Features.from_arrow_schema(schema)
    coded = Features({name: feature for name, feature in features.items() if "Json(" in repr(feature)})
    return ({**row, **coded.decode_example({name: row[name] for name in coded})} for row in rows)
