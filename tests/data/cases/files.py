"""Files that cannot be read as rows: JSON Lines, JSON, CSV, Parquet, Arrow, archives, names."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle

from tests.data.cases import GOOD, Case, lines, parquet
from tests.helpers.data import pairs

FILES: dict[str, Case] = {
    # ---------------------------------------------------------------- JSON Lines
    "nothing": Case(b"", "{file} is empty"),
    "white space": Case(b" \n\t\n \n", "{file} has no rows"),
    "half a line": Case(lines('{"prompt": "a'), "{file}:3: invalid JSON: column 12, near '\"a'"),
    "a comma too many": Case(
        lines('{"prompt": "a",}'),
        "{file}:3: invalid JSON: column 15, near ',}'",
    ),
    "two objects on a line": Case(
        lines('{"prompt": "a"} {"b": 1}'), "{file}:3: invalid JSON: column 17, near '{\"b\": 1}'"
    ),
    "single quotes": Case(lines("{'prompt': 'a'}"), "{file}:3: invalid JSON: column 2, near \"'prompt': 'a'}\""),
    "a list a line": Case(lines([1, 2]), "{file}:3: the line is a list, expected an object with the row's columns"),
    "a number a line": Case(lines("17"), "{file}:3: the line is a number, expected an object with the row's columns"),
    "a text a line": Case(lines('"prompt"'), "{file}:3: the line is text, expected an object with the row's columns"),
    "null a line": Case(lines("null"), "{file}:3: the line is null, expected an object with the row's columns"),
    "nested too deeply": Case(lines('{"a":' * 100_000), "{file}:3: invalid JSON: nested too deeply"),
    "a number of ten thousand digits": Case(
        lines('{"prompt": ' + "9" * 10_000 + "}"),
        "{file}:3: invalid JSON: an integer has too many digits",
    ),
    "Latin-1": Case(
        lines('{"prompt": "caf\xe9"}'.encode("latin-1")), "{file}:3: not UTF-8 (byte 0xe9); save the file as UTF-8"
    ),
    "UTF-16": Case("\n".join(GOOD).encode("utf-16"), "{file}:1: the file is UTF-16; save it as UTF-8"),
    "half a surrogate pair": Case(
        lines('{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}'),
        '{file}:3: "prompt" contains an unpaired surrogate, which is not a character',
    ),
    "NUL bytes for a file": Case(
        b"\0" * 64,
        "{file}:1: invalid JSON: column 1, near '\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'; the line begins with NUL bytes, as after an interrupted download",
    ),
    "a web page": Case(
        b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        "{file}:1: invalid JSON: column 1, near '<!DOCTYPE html>'; this looks like HTML or XML",
    ),
    "a Git LFS pointer": Case(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "{file}:1: invalid JSON: column 1, near 'version https://'; this is a Git LFS pointer: fetch the file with git lfs pull",
    ),
    # ---------------------------------------------------------------- JSON
    "broken JSON file": Case(
        b'[{"prompt": "a"},\n {"prompt": \n]', "{file}:3: invalid JSON: column 1, near ']'", "d.json"
    ),
    "one object": Case(
        b'{"prompt": "a", "chosen": "b", "rejected": "c"}',
        "{file}:1: the file contains one object without a list of rows",
        "d.json",
    ),
    "a text for a file": Case(b'"hello"', "{file}:1: the file contains text, expected a list of objects", "d.json"),
    "a list of texts": Case(
        b'[\n"a",\n"b"]', "{file}:2: the row is text, expected an object with the row's columns", "d.json"
    ),
    "an empty list": Case(b"[]", "{file} has no rows", "d.json"),
    "two lists": Case(
        b'{"train": [{}], "test": [{}]}',
        "{file}:1: the file contains several lists (train, test); set data.split to one of them",
        "d.json",
    ),
    # ---------------------------------------------------------------- CSV
    "CSV without rows": Case(b"prompt,chosen,rejected\n", "{file} has no rows", "d.csv"),
    "CSV without a header": Case(b"\n\n", "{file}:1: no header: the first line must name the columns", "d.csv"),
    "a field too few": Case(
        b"prompt,chosen,rejected\na,b,c\na,b\n", "{file}:3: 2 fields, but the header has 3 columns", "d.csv"
    ),
    "a field too many": Case(
        b"prompt,chosen,rejected\na,b,c,d\n", "{file}:2: 4 fields, but the header has 3 columns", "d.csv"
    ),
    "a column twice": Case(b"prompt,chosen,chosen\na,b,c\n", '{file}:1: the header repeats column "chosen"', "d.csv"),
    "a quote without end": Case(
        b'prompt,chosen,rejected\n"a,b,c\n',
        "{file}:2: invalid CSV: a quote is not closed, or text follows a closing quote",
        "d.csv",
    ),
    "CSV in Latin-1": Case(
        "prompt,chosen,rejected\na,b,caf\xe9\n".encode("latin-1"),
        "{file}:2: not UTF-8 (byte 0xe9); save the file as UTF-8",
        "d.csv",
    ),
    "CSV in UTF-16": Case(
        "prompt,chosen,rejected\na,b,c\n".encode("utf-16"), "{file}:1: the file is UTF-16; save it as UTF-8", "d.csv"
    ),
    # ---------------------------------------------------------------- binary files, names
    "no Parquet": Case(
        b"PAR1 not at all",
        "{file} cannot be read as Parquet: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file",
        "d.parquet",
    ),
    "half a Parquet": Case(
        parquet(*pairs(50))[:200],
        "{file} cannot be read as Parquet: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file",
        "d.parquet",
    ),
    "Parquet of other columns": Case(
        parquet({"a": 1}),
        "{file} row 1: preference rows need prompt, chosen and rejected; this row has a; map names with data.columns (align data check: --column)",
        "d.parquet",
    ),
    "Parquet with a null": Case(
        parquet(*pairs(2), {"id": "x", "prompt": "a", "chosen": None, "rejected": "b"}),
        '{file}: 1 of 3 rows cannot be used (data.max_dropped allows 2%): 1 "chosen" is null (first: {file} row 3); align data check --fix OUT writes a copy without them',
        "d.parquet",
    ),
    "no Arrow": Case(
        b"ARROW1 not at all",
        "{file} cannot be read as Arrow: Expected to read 1330795073 metadata bytes, but only read 13",
        "d.arrow",
    ),
    **{
        f"bytes behind {kind}": Case(
            pack(lines()) + b"a second stream that is none", f"{{file}} cannot be read: {said}", f"d.jsonl.{kind}"
        )
        for kind, pack, said in (
            ("bz2", bz2.compress, "Invalid data stream"),
            ("xz", lzma.compress, "Input format not supported by decoder"),
            ("gz", gzip.compress, "Not a gzipped file (b'a ')"),
        )
    },
    "half a second bz2": Case(
        bz2.compress(lines()) + bz2.compress(lines())[:-9],
        "{file} cannot be read: it ends within a compressed stream",
        "d.jsonl.bz2",
    ),
    "a broken archive": Case(
        gzip.compress(lines())[:-9],
        "{file} cannot be read: Compressed file ended before the end-of-stream marker was reached",
        "d.jsonl.gz",
    ),
    "no archive": Case(lines(), "{file} cannot be read: Not a gzipped file (b'{\"')", "d.jsonl.gz"),
    "a packed Parquet": Case(
        b"x", "{file}: decompress it first; only text formats can be read compressed", "d.parquet.gz"
    ),
    "a pickle": Case(
        pickle.dumps(pairs(2)),
        "{file}: loading a .pkl file can run code; save the rows as JSON Lines or Parquet",
        "d.pkl",
    ),
    "an unknown ending": Case(
        lines(),
        '{file}: unknown file type ".docx"; supported are .arrow, .csv, .feather, .json, .jsonl, .ndjson, .parquet, .tsv, .txt, and .gz, .bz2, .xz, .zst of the text formats',
        "d.docx",
    ),
    "no ending": Case(
        lines(),
        "{file}: the file name has no extension; supported are .arrow, .csv, .feather, .json, .jsonl, .ndjson, .parquet, .tsv, .txt, and .gz, .bz2, .xz, .zst of the text formats",
        "data",
    ),
    "a split of one file": Case(lines(), '{file} is a single file and has no split "test"', section={"split": "test"}),
    "a subset of a file": Case(
        lines(),
        'data.subset "main" applies to hub data sets only, and {file} is a local path',
        section={"subset": "main"},
    ),
}
