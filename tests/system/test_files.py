"""Files and directories that appear whole or not at all, JSON and JSON lines, digests, first lines of errors."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from alignkit import Estimate
from alignkit.errors import CheckpointError, ConfigError, DataError, first_line
from alignkit.system.files import (
    InvalidJSON,
    atomic_path,
    digest,
    jsonl_rows,
    parse_json,
    read_jsonl,
    replace_directory,
    require_writable,
    staged_directory,
    to_json,
    write_json,
    write_jsonl,
    write_text,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"status": "running"})
    with pytest.raises(TypeError, match="object as JSON"):
        write_json(path, {"status": object()})

    def half_a_write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text('{"status": "fin')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_write()
    assert [left.name for left in tmp_path.iterdir()] == ["run.json"]
    assert json.loads(path.read_text()) == {"status": "running"}


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"status": "running"})
    script = (
        "import os, signal, sys; from pathlib import Path; from alignkit.system.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -signal.SIGKILL
    assert json.loads(path.read_text()) == {"status": "running"}


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "atomic", "a")
    (tmp_path / "plain").write_text("a")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


class Spot(NamedTuple):
    place: Path
    value: float


def test_json_takes_what_a_run_has_and_nothing_that_is_not_json(tmp_path: Path) -> None:
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        "numpy": np.float32(0.5),
        "array": np.array([[1, 2]]),
        "tensor": torch.tensor([0.25, math.nan]),
        "interval": Estimate(0.5, None, 0.75),
        "spot": Spot(Path("a/b"), 1.0),
        "set": {"b", "a"},
        3: True,
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, None],
        "numpy": 0.5,
        "array": [[1, 2]],
        "tensor": [0.25, None],
        "interval": {"value": 0.5, "low": None, "high": 0.75},
        "spot": {"place": "a/b", "value": 1.0},
        "set": ["a", "b"],
        "3": True,
    }
    assert to_json(value)["tensor"] == [0.25, None]


def test_lines_of_json(tmp_path: Path) -> None:
    rows = [{"text": "a\nb\u2028c"}, {"x": math.nan}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [{"text": "a\nb\u2028c"}, {"x": None}]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"a": 1', 1, "column 8, at the end"),
        ("[1,\n 2,\n]", 2, "column 3, near ',\\n]'"),  # Python 3.13 points at the comma, 3.11 at the bracket
        ('{"a": "\n"}', 1, "column 8, near '\\n\"}'"),
        (b'{"a": "\xff"}', 1, "not UTF-8 (byte 0xff)"),
        ("[" * 100_000, 1, "nested too deeply"),
        ("9" * 5_000, 1, "an integer has too many digits"),
    ],
)
def test_what_is_wrong_with_json_is_told_alike_by_every_python(text: str | bytes, line: int, message: str) -> None:
    with pytest.raises(InvalidJSON) as caught:
        parse_json(text)
    assert (caught.value.line, str(caught.value)) == (line, message)


def test_json_may_begin_with_a_byte_order_mark() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


# ------------------------------------------------------------------------------------------------ JSON lines


@FAST
@given(rows=ROWS)
def test_rows_come_back_whatever_separators_their_texts_hold(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\n"))  # as Windows ends lines, and blank lines
    assert read_jsonl(path) == rows
    assert [place for place, _ in jsonl_rows(path)] == [f"{path}:{2 * i + 1}" for i in range(len(rows))]


@FAST
@given(rows=ROWS, last=st.dictionaries(st.text(), VALUES), data=st.data())
def test_a_half_written_last_line_is_ignored_where_that_is_asked_for(
    tmp_path: Path, rows: list[dict[str, Any]], last: dict[str, Any], data: st.DataObject
) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [*rows, last])
    whole = path.read_bytes()
    size = len(json.dumps(last, ensure_ascii=False).encode()) + 1
    cut = data.draw(st.integers(1, size - 1))
    path.write_bytes(whole[:-cut])
    assert read_jsonl(path, half_written=True) == rows
    if cut == 1:  # only the line feed is missing
        assert read_jsonl(path) == [*rows, last]
    else:
        with pytest.raises(DataError, match=rf"rows\.jsonl:{len(rows) + 1}: invalid JSON: "):
            read_jsonl(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", "invalid JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"a": "\xff"}', r"invalid JSON: not UTF-8 \(byte 0xff\)"),
    ],
)
@pytest.mark.parametrize("error", [CheckpointError, ConfigError])
def test_a_line_that_is_not_an_object_is_named(tmp_path: Path, line: bytes, message: str, error: type[Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    for half_written in (False, True):
        with pytest.raises(error, match=rf"rows\.jsonl:3: {message}"):
            read_jsonl(path, half_written=half_written, error=error)


# ------------------------------------------------------------------------------------------------ digests, errors


@FAST
@given(value=st.dictionaries(st.text(), VALUES, min_size=1), other=VALUES)
def test_a_digest_is_of_the_content(value: dict[str, Any], other: Any) -> None:
    assert digest(value) == digest(dict(reversed(value.items()))) == digest(json.loads(json.dumps(value)))
    assert (digest(value) == digest(other)) == (json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_a_digest_is_the_sha256_of_json() -> None:
    assert digest({"b": [1, None], "a": Path("x")}) == hashlib.sha256(b'{"a": "x", "b": [1, null]}').hexdigest()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n first: \nsecond"), "first: second"),
        (KeyError(), "KeyError"),
        (OSError(2, "No such file or directory", "a"), "No such file or directory"),
        (OSError("its own words.\nmore"), "its own words"),
        (ValueError("x" * 999), "x" * 300),
        (KeyboardInterrupt(" "), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_of_an_error(error: BaseException, line: str) -> None:
    assert first_line(error) == line


# ------------------------------------------------------------------------------------------------ directories


def tree(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_directory_replaces_the_older_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with staged_directory(tmp_path / "in" / "model") as staged:
            (staged / "sub").mkdir()
            (staged / "sub" / content).write_text(content)
    assert tree(tmp_path) == {"in/model/sub/new": "new"}


def test_a_directory_that_was_not_finished_leaves_the_older_one(tmp_path: Path) -> None:
    write_text(tmp_path / "model" / "weights", "old")

    def half() -> None:
        with staged_directory(tmp_path / "model") as staged:
            (staged / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert tree(tmp_path) == {"model/weights": "old"}
    script = (
        "import os, signal, sys; from pathlib import Path; from alignkit.system.files import staged_directory\n"
        "with staged_directory(Path(sys.argv[1])) as staged:\n"
        "    (staged / 'other').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], check=False)
    assert tree(tmp_path / "model") == {"weights": "old"}
    with staged_directory(tmp_path / "model") as staged:  # what the killed one left is gone
        (staged / "weights").write_text("new")
    assert tree(tmp_path) == {"model/weights": "new"}


def test_the_older_directory_is_put_back_where_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "model" / "weights", "old")
    write_text(tmp_path / "staged" / "weights", "new")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "staged":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace_directory(tmp_path / "staged", tmp_path / "model")
    assert tree(tmp_path) == {"model/weights": "old", "staged/weights": "new"}


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((str(path.relative_to(tmp_path)), (tmp_path / "model").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with staged_directory(tmp_path / "model") as staged:
        (staged / "sub").mkdir()
        for name in ("config", "sub/weights"):
            (staged / name).write_text(name)
    partial = ".model.partial"
    assert sorted(synced[:-1]) == [
        (name, False) for name in (partial, f"{partial}/config", f"{partial}/sub", f"{partial}/sub/weights")
    ]
    assert synced[-1] == (".", True)


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o555)
    require_writable(tmp_path / "new" / "below" / "page.html")
    require_writable(tmp_path / "file")
    require_writable(tmp_path, directory=True)
    for path, directory, why in [
        (tmp_path, False, "is a directory"),
        (tmp_path / "file", True, "is a file"),
        (tmp_path / "file" / "below", False, "is a file"),
    ]:
        with pytest.raises(ConfigError, match=f"cannot write {path}: .* {why}"):
            require_writable(path, directory=directory)
    root = os.geteuid() == 0
    if root:  # root may write anywhere
        os.seteuid(65534)
    try:
        with pytest.raises((ConfigError, PermissionError), match=r"read-only|ermission"):
            require_writable(tmp_path / "closed" / "page.html")
    finally:
        if root:
            os.seteuid(0)
