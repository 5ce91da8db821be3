"""Whole-or-nothing files, and JSON of what a run has."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from alignkit import Estimate
from alignkit.system.files import InvalidJSON, atomic_path, parse_json, to_json, write_json, write_jsonl, write_text


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
