"""Every file format gives the same rows; every malformed source raises one sentence with its location."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from alignkit.config import DataConfig
from alignkit.contract.registry import find
from alignkit.contract.rows import RawRows
from alignkit.data.sources.open import HELD_OUT_SPLITS, open_source
from alignkit.errors import DataError
from alignkit_formats.sources import formats

from tests.helpers import data as helpers

ROWS = [
    {"prompt": "What colour is the sky?", "chosen": "It is blue.", "rejected": 'It is\n"green", they say.'},
    {"prompt": "Où habite Anna ? \u2028", "chosen": "À Paris.", "rejected": "À Rome."},
]


def load(source: object, split: str | None = None, **options: Any) -> RawRows:
    return open_source(str(source), split, DataConfig(), **options).read()


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return packed


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda path: path.write_text(json_lines(ROWS)),
    "lines.json": lambda path: path.write_text(json_lines(ROWS)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + json_lines(ROWS).encode()),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines(ROWS).encode())),
    **{
        f"rows.jsonl.{kind}": lambda path, pack=pack: path.write_bytes(pack(json_lines(ROWS).encode()))
        for kind, pack in {"bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}.items()
    },
    "streams.jsonl.xz": lambda path: path.write_bytes(
        b"".join(lzma.compress(json_lines([row]).encode()) + bytes(1 << 18) for row in ROWS)
    ),
    "list.jsonl": lambda path: path.write_text(json.dumps(ROWS)),
    "indented.jsonl": lambda path: path.write_text("\ufeff" + json.dumps(ROWS, indent=2), encoding="utf-8"),
    "semicolon.csv": lambda path: write_csv(path, ";"),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8"),
    "object.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "rows.csv": write_csv,
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.parquet": lambda path: pa.parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "rows.feather": lambda path: pa.feather.write_feather(pa.Table.from_pylist(ROWS), str(path)),
    "rows.arrow": write_stream,
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(str(path)),
    "saved_dict": lambda path: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_back_the_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    raw = load(tmp_path / name)
    assert list(raw.rows) == ROWS
    assert list(load(tmp_path / name, limit=1).rows) == ROWS[:1]
    assert raw.where(1).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", '\n{"prompt": "a"}\n\n{"prompt": "b"}\n', [2, 4]),
        ("a.json", '[\n {"prompt": "[a]"},\n\n {"prompt":\n "b"}, {"prompt": "c"}]', [2, 4, 5]),
        ("b.json", '{"about": {"rows": [1, 2]},\n "n": 3, "rows": [\n {"prompt": "a"},\n {"prompt": "b"}]}', [3, 4]),
        ("one.json", '[{"prompt": "a"}, {"prompt": "b"}]', ["1 item 1", "1 item 2"]),
        ("a.txt", "a\n\nb\n", [1, 3]),
        ("a.csv", 'prompt,chosen\n"a\nb",c\nd,e\n', [2, 4]),
    ],
)
def test_rows_know_their_line(tmp_path: Path, name: str, content: str, places: list[object]) -> None:
    path = tmp_path / name
    path.write_text(content)
    raw = load(path)
    assert [raw.where(i) for i in range(len(raw.rows))] == [f"{path}:{line}" for line in places]


def test_directory_of_files_by_split(tmp_path: Path) -> None:
    for name, prompt in (("train-00000-of-00002", "a"), ("train-00001-of-00002", "b"), ("test", "c"), ("extra", "d")):
        helpers.write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": prompt}])
    (tmp_path / "README.md").write_text("not data")
    assert [row["prompt"] for row in load(tmp_path).rows] == ["a", "b"]
    assert [row["prompt"] for row in load(tmp_path, limit=1).rows] == ["a"]
    assert [row["prompt"] for row in load(tmp_path, "extra").rows] == ["d"]
    assert [row["prompt"] for row in load(tmp_path, default_splits=HELD_OUT_SPLITS).rows] == ["c"]
    assert load(tmp_path).where(1) == f"{tmp_path / 'train-00001-of-00002.jsonl'}:1"
    with pytest.raises(DataError, match=r'no split "tset".*did you mean "test"'):
        load(tmp_path, "tset")


def test_directory_with_a_folder_for_every_split(tmp_path: Path) -> None:
    for place, prompt in (("train/one", "a"), ("train/two", "b"), ("test/one", "c")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        helpers.write_jsonl(tmp_path / f"{place}.jsonl", [{"prompt": prompt}])
    assert [row["prompt"] for row in load(tmp_path).rows] == ["a", "b"]
    assert [row["prompt"] for row in load(tmp_path, default_splits=HELD_OUT_SPLITS).rows] == ["c"]
    with pytest.raises(DataError, match=r'no split "dev"; its files are test, train'):
        load(tmp_path, "dev")


def test_text_lines_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress("One.\r\n\n  Två. \n".encode()))
    assert list(load(tmp_path / "a.txt.xz").rows) == [{"text": "One."}, {"text": "  Två. "}]
    (tmp_path / "a.txt").write_bytes(b"fine\nbad \xff\n")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8"):
        load(tmp_path / "a.txt")


def test_splits_of_a_json_object_and_a_saved_dict(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert len(load(tmp_path / "a.json", "test").rows) == 1
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    both.save_to_disk(str(tmp_path / "saved"))
    assert len(load(tmp_path / "saved", "test").rows) == 1
    assert len(load(tmp_path / "saved").rows) == 2
    with pytest.raises(DataError, match=r'no split "validation"; its splits are train, test'):
        load(tmp_path / "saved", "validation")


GOOD = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'

# file name, content, and text expected in the error message ({} is the file's path)
MALFORMED: list[tuple[str, bytes | str, str]] = [
    ("broken.jsonl", GOOD + '{"prompt": "a", \n', "{}:2: invalid JSON: "),
    ("cut.jsonl", GOOD + "\n" + '{"prompt": "a', "{}:3: invalid JSON: column 12"),
    ("number.jsonl", GOOD + "3\n", "{}:2: the line is a number, expected an object"),
    (
        "list.jsonl",
        "[\n" + GOOD + "\n",
        "{}:1: invalid JSON: column 2, at the end; one line is one object, or the file is one whole JSON list",
    ),
    ("one_list.jsonl", "[]\n", "{} has no rows"),
    ("twice.jsonl", GOOD + GOOD.replace("{", '{"prompt" : "", '), "{}:2: the row has a key twice, so one"),
    (
        "twice.json",
        f"[\n{GOOD},\n" + GOOD.replace("{", '{"chosen": "", ') + "]",
        "{}:4: the row has a key twice, so one",
    ),
    ("latin.jsonl", GOOD.encode() + b'{"prompt": "caf\xe9"}\n', "{}:2: not UTF-8 (byte 0xe9)"),
    ("utf16.jsonl", GOOD.encode("utf-16"), "{}:1: the file is UTF-16; save it as UTF-8"),
    ("empty.jsonl", "", "{} is empty"),
    ("blank.jsonl", "\n\n", "{} has no rows"),
    ("deep.jsonl", "[" * 100_000 + "\n", "{}:1: invalid JSON: nested too deeply"),
    ("bad.jsonl.gz", b"not gzip", "{} cannot be read: "),
    ("cut.jsonl.gz", gzip.compress(GOOD.encode() * 50)[:-12], "{} cannot be read: "),
    ("broken.json", '[\n {"prompt": "a"},\n {"prompt" "b"}\n]', "{}:3: invalid JSON: column 12, near"),
    ("empty.json", " \n", "{} is empty"),
    ("nothing.json", "[]", "{} has no rows"),
    ("scalar.json", '"text"', "{}:1: the file contains text, expected a list of objects"),
    ("one.json", '{"prompt": "a"}', "{}:1: the file contains one object without a list of rows"),
    ("two.json", '{"a": [], "b": []}', "{}:1: the file contains several lists (a, b); set data.split to one of them"),
    (
        "again.json",
        '{"a": [],\n"b": 1, "a": [{}]}',
        '{}:2: "a" is there twice: give the lists other names, or join them',
    ),
    ("other.json", '{"a": 1,\n\n"a": [{"prompt": "a"}]}', '{}:3: "a" is there twice'),
    ("items.json", '[\n{"prompt": "a"},\n"b"]', "{}:3: the row is text, expected an object"),
    ("latin.json", b'[{"prompt": "a"},\n{"prompt": "caf\xe9"}]', "{}:2: not UTF-8 (byte 0xe9)"),
    ("empty.csv", "", "{} is empty"),
    ("header.csv", "prompt,chosen,rejected\n", "{} has no rows"),
    ("twice.csv", "prompt,prompt\na,b\n", '{}:1: the header repeats column "prompt"'),
    ("nameless.csv", ",,\na,b,c\n", "{}:1: no header"),
    ("short.csv", 'prompt,chosen,rejected\na,"b\nb",c\na,b\n', "{}:4: 2 fields, but the header has 3 columns"),
    ("quote.csv", 'prompt,chosen,rejected\na,b,"c\n', "{}:2: invalid CSV: a quote is not closed"),
    ("bad.parquet", b"PAR1 and then nothing", "{} cannot be read as Parquet: "),
    ("bad.arrow", b"not arrow at all", "{} cannot be read as Arrow: "),
    ("empty.feather", b"", "{} cannot be read as Arrow: "),
    ("rows.pkl", pickle.dumps(ROWS), "{}: loading a .pkl file can run code"),
    ("rows.pt", b"", "{}: loading a .pt file can run code"),
    ("rows.xml", "<a/>", '{}: unknown file type ".xml"; supported are .arrow, .csv'),
    ("rows", "a", "{}: the file name has no extension; supported are .arrow"),
    ("rows.parquet.gz", b"", "{}: decompress it first"),
]


@pytest.mark.parametrize(("name", "content", "expected"), MALFORMED, ids=[name for name, _, _ in MALFORMED])
def test_malformed_file_is_one_sentence_with_its_place(
    tmp_path: Path, name: str, content: bytes | str, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert expected.format(path) in message
    assert "\n" not in message


# a row of JSON Lines after one good row, and text expected in the error message
BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"messages": "b", "chosen": "b", "rejected": "c"}, '{}:2: "messages" is text, expected a list of messages'),
    (
        {"prompt": "a", "chosen": "[{'role': 'user', 'content': ", "rejected": "c"},
        '{}:2: "chosen" begins like messages written as JSON, but is not: ',
    ),
    ({"prompt": "a", "chosen": 3, "rejected": "c"}, '{}:2: "chosen" is a number, expected text or a list of messages'),
    ({"prompt": "a", "chosen": True, "rejected": "c"}, '{}:2: "chosen" is true, expected text'),
    ({"prompt": [], "chosen": "b", "rejected": "c"}, '{}:2: "prompt" is an empty list'),
    ({"prompt": ["a"], "chosen": "b", "rejected": "c"}, '{}:2: "prompt[0]" is text, expected a message'),
    ({"prompt": [{"content": "a"}], "chosen": "b", "rejected": "c"}, '{}:2: "prompt[0]" has no role'),
    ({"prompt": [{"role": 1, "content": "a"}], "chosen": "b", "rejected": "c"}, '{}:2: "prompt[0].role" is a number'),
    (
        {"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"},
        '{}:2: "prompt[0].content" is null, expected text',
    ),
    (
        {"prompt": "a", "chosen": {"from": "me", "value": "b"}, "rejected": "c"},
        "{}:2: \"chosen.from\" is 'me', expected",
    ),
    ({"prompt": "a", "chosen": "\ud800", "rejected": "c"}, '{}:2: "chosen" contains an unpaired surrogate'),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "cluster": []},
        '{}:2: "cluster" is a list, expected text or a number',
    ),
]


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS)
def test_structural_fault_of_a_row_names_file_line_and_field(
    tmp_path: Path, row: dict[str, Any], expected: str
) -> None:
    path = helpers.write_jsonl(tmp_path / "rows.jsonl", [json.loads(GOOD), row])
    with pytest.raises(DataError) as caught:
        helpers.normalise(load(path), "preference")
    assert expected.format(path) in str(caught.value)


def test_csv_without_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,good,bad\na,b,c\n")
    with pytest.raises(DataError) as caught:
        helpers.normalise(load(path), "preference")
    assert f"{path}:2: preference rows need prompt, chosen and rejected; this row has question, good, bad" in str(
        caught.value
    )


def test_missing_file_suggests_a_sibling(tmp_path: Path) -> None:
    (tmp_path / "prefs.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match=r'pref\.jsonl does not exist, did you mean "prefs\.jsonl"\?'):
        load(tmp_path / "pref.jsonl")
    with pytest.raises(DataError, match=r"directory .*nowhere does not exist"):
        load(tmp_path / "nowhere" / "prefs.jsonl")


def test_directory_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no data files"):
        load(tmp_path)


def test_broken_saved_data_set(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded as a saved data set"):
        load(tmp_path)


def test_unknown_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r'"nobody/nothing-here" is not a local file or directory and cannot be loaded'):
        load("nobody/nothing-here")


def test_subset_and_split_of_a_file_are_refused(tmp_path: Path) -> None:
    path = helpers.write_jsonl(tmp_path / "rows.jsonl", [json.loads(GOOD)])
    with pytest.raises(DataError, match=r'data.subset "main" applies to hub data sets only'):
        open_source(str(path), None, DataConfig(subset="main"))
    with pytest.raises(DataError, match='is a single file and has no split "test"'):
        load(path, "test")


def test_long_csv_field_and_the_global_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,chosen,rejected\na,{'b' * (limit + 1)},c\n")
    assert len(load(path).rows[0]["chosen"]) == limit + 1
    assert csv.field_size_limit() == limit


def test_every_reader_is_tested() -> None:
    written = {Path(name.removesuffix(".gz")).suffix for name in WRITERS}
    assert set(formats()) - written == {".ndjson", ".txt"}  # an alias of .jsonl; text has other columns
    assert find("align.formats", "ndjson").value == find("align.formats", "jsonl").value
