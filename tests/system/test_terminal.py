"""What is printed and written: no control sequences on the terminal, no passwords anywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from alignkit.__main__ import main
from alignkit.display.console import Console
from alignkit.system.files import write_json
from alignkit.system.terminal import printable, printable_streams, redact, rich_console
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202etxt https://me:s3cret@host/x?sig=s3cret"
BAD = set(HOSTILE) & {"\x1b", "\x07", "\x9b", "\u202e"}


@given(st.text())
def test_what_is_printable_holds_no_control_character_and_json_keeps_its_value(text: str) -> None:
    shown = printable(text)
    assert all(character in "\t\n" or character >= " " for character in shown)
    assert not BAD & set(shown)
    line = json.dumps(text.replace("://", ""), ensure_ascii=False)
    assert json.loads(printable(line)) == text.replace("://", "")


@pytest.mark.parametrize(
    "url",
    [
        "https://me:s3cret@host/rows.jsonl",
        "s3://s3cret@bucket/key",
        "https://host/x?a=1&X-Amz-Signature=s3cret&b=2",
        "https://host/x?access_token=s3cret",
        "'https://me:p@s3cret@host' and http://u:s3cret@h",
    ],
)
def test_passwords_in_urls_are_masked(url: str, tmp_path: Path) -> None:
    assert "s3cret" not in redact(url)
    write_json(tmp_path / "run.json", {"source": url})
    assert "s3cret" not in (tmp_path / "run.json").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["source"] == redact(url)


def test_other_urls_are_left_alone() -> None:
    for text in ("https://host/me@x", "hf://datasets/a/b@main/x.parquet", "mail me@host", "a?sig=b", "://me@host"):
        assert redact(text) == text


def test_an_image_in_a_page_is_searched_once() -> None:
    """Once for each of its letters, this would take minutes."""
    image = "A" * 500_000
    assert redact(f"{image} http://me@host {image}") == f"{image} http://***@host {image}"


def test_console_tables_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with printable_streams():
        console = Console(tmp_path / "train.log")
        console.info(HOSTILE)
        console.warn(HOSTILE)
        table = Table(title=HOSTILE)
        table.add_column(HOSTILE)
        table.add_row(HOSTILE)
        console.table(table)
        print(HOSTILE, file=sys.stderr)
    for text in (capsys.readouterr().err, (tmp_path / "train.log").read_text()):
        assert not BAD & set(text)
        assert "s3cret" not in text
        assert "red" in text


def test_rich_writes_its_own_sequences_to_a_terminal_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    with printable_streams():
        console = rich_console()
        console._force_terminal = True
        console.print(HOSTILE, style="bold")
    assert "\x1b[31m" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", HOSTILE],
        ["eval", HOSTILE, "--suite", HOSTILE],
        ["run", "--method", HOSTILE],
        ["run", "--method", "orpo", "--data", HOSTILE],
        ["run", "--method", "orpo", "--set", f"data.source={HOSTILE}.jsonl"],
        ["data", "check", f"{HOSTILE}.txt"],
        [HOSTILE],
    ],
)
def test_messages_of_commands(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert not BAD & set(out + err)
    assert "s3cret" not in out + err
    assert err.strip()
