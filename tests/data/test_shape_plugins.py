"""Shapes of rows from other packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignkit.data.table.cache import shapes_code
from alignkit.errors import DataError, PluginError

from tests.helpers.data import load_all
from tests.helpers.third_party import Site

VOTES = """
from alignkit import Row, text_digest
from alignkit.data.shapes import Converter

class Votes(Converter):
    def reader(self, first, kind):
        return lambda raw: [row(raw, i) for i in range(len(raw.rows))]

def row(raw, i):
    found = raw.rows[i]
    best, worst = sorted(found["votes"], key=found["votes"].get, reverse=True)
    asked = text_digest(found["asked"])
    return Row(i, f"vote{i}", found["asked"], (best, worst), asked, place=raw.where(i))

def votes(first, wanted):
    return Votes() if "votes" in first.rows[0] else None
"""
ROWS = [{"asked": f"{i} + 2 ?", "votes": {f"{i}5": i, f"{i + 2}": 10}} for i in range(5)]


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_another_package_s_shape_are_trained_on_and_checked(site: Site, tmp_path: Path) -> None:
    site.install("align-votes", VOTES, group="shapes", votes="align_votes:votes")
    file = write(tmp_path / "votes.jsonl")
    rows = load_all(source=str(file)).train_rows
    assert [(row.id, row.prompt, *row.answers) for row in rows] == [
        (f"vote{i}", f"{i} + 2 ?", f"{i + 2}", f"{i}5") for i in range(5)
    ]
    done = site.align("data", "check", file)
    assert done.returncode == 0, done.stderr
    assert "votes.jsonl: 5 rows" in done.stdout


def test_other_rows_are_read_as_before(site: Site, tmp_path: Path) -> None:
    site.install("align-votes", VOTES, group="shapes", votes="align_votes:votes")
    file = write(tmp_path / "pairs.jsonl", [{"prompt": "a ?", "chosen": "b", "rejected": "c"}])
    assert load_all(source=str(file)).train_rows[0].answers == ("b", "c")


def test_tokenised_rows_depend_on_the_code_of_other_packages_shapes(site: Site) -> None:
    assert shapes_code() == []
    site.install("align-votes", VOTES, group="shapes", votes="align_votes:votes")
    (found,) = shapes_code()
    assert found.startswith('shape "votes" (align-votes 1.2.3) ')


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ('"votes" in first.rows[0]', 'first["votes"]', "failed on .*: TypeError: 'RawRows'"),
        ("return Votes()", "return 7", "must return an alignkit.data.shapes.Converter or None, not int"),
        ("best, worst =", "best =", "failed on .*votes.jsonl: "),
        ("return lambda", "raise SystemExit(3)\n        return lambda", "failed on .*: SystemExit: 3"),
    ],
)
def test_a_shape_that_fails_is_named(site: Site, tmp_path: Path, change: str, error: str, message: str) -> None:
    site.install("align-votes", VOTES.replace(change, error), group="shapes", votes="align_votes:votes")
    with pytest.raises((DataError, PluginError), match=rf'shape "votes" \(align-votes 1.2.3\) {message}'):
        load_all(source=str(write(tmp_path / "votes.jsonl")))
