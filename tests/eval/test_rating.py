"""Blind ratings: random, hidden sides; ratings read back as a win rate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from alignkit.errors import DataError
from alignkit_eval.rating import KEY, rating_result, write_rating_page

from tests.helpers.runs import align

NAMES = ("plain", "tuned")


def items(answer: str, count: int = 40) -> list[dict[str, str]]:
    return [
        {"id": f"p{i}", "cluster": f"c{i % 10}", "prompt": f"ask {i}", "answer": f"{answer} {i}"} for i in range(count)
    ]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write_rating_page(items("plain"), items("tuned"), NAMES, tmp_path)


def ratings(directory: Path, choose: dict[int, str] | str) -> Path:
    """Rate every pair: by pair number, or always in favour of the named model."""
    lines = ["pair,choice"]
    for pair in json.loads((directory / KEY).read_text())["pairs"]:
        first_is_a = pair["a"] == 0
        side = "a" if first_is_a == (choose == "plain") else "b"
        lines.append(f"{pair['pair']},{choose.get(pair['pair'], 'skip') if isinstance(choose, dict) else side}")
    path = directory / "ratings.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_page_does_not_say_who_is_who(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r">\s*(plain|tuned)\s*<", text)
    sides = [pair["a"] for pair in json.loads((page.parent / KEY).read_text())["pairs"]]
    assert 10 < sum(sides) < 30, "sides are drawn"
    shown = re.findall(r"<h3>A</h3><p [^>]*>(\w+) ", text)
    assert [NAMES[side] for side in sides] == shown
    order = re.findall(r"ask (\d+)<", text)
    assert order != sorted(order, key=int)


def test_the_same_seed_gives_the_same_page(page: Path, tmp_path: Path) -> None:
    again = write_rating_page(items("plain"), items("tuned"), NAMES, tmp_path / "again")
    assert again.read_bytes() == page.read_bytes()
    other = write_rating_page(items("plain"), items("tuned"), NAMES, tmp_path / "other", seed=1)
    assert other.read_bytes() != page.read_bytes()


@pytest.mark.parametrize(("preferred", "rate"), [("tuned", 1.0), ("plain", 0.0)])
def test_win_rates(page: Path, preferred: str, rate: float) -> None:
    ratings(page.parent, preferred)
    found = rating_result(page.parent)
    assert (found.win_rate.value, found.rated, found.skipped) == (rate, 40, 0)
    assert found.p == pytest.approx(2 / 2**10), "all ten clusters agree"
    assert f"win rate of tuned over plain: {rate:.3f}" in found.sentence()


def test_ties_and_skips(page: Path) -> None:
    ratings(page.parent, {1: "tie", 2: "tie", 3: "skip"})
    found = rating_result(page.parent)
    assert (found.ties, found.skipped, found.rated) == (2, 38, 2)
    assert found.win_rate.value == 0.5
    assert found.p == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "ratings.csv:1: the first line must be: pair,choice"),
        ("choice,pair\na,1\n", "ratings.csv:1: the first line must be: pair,choice"),
        ("pair,choice\n1,a\n99,a\n", "ratings.csv:3: unknown pair '99'"),
        ("pair,choice\n\n\u00b2,a\n", "ratings.csv:3: unknown pair '\u00b2'"),
        ("pair,choice\n1,a\u2028\n2,q\n", "ratings.csv:3: 'q' is not one of"),
        (f"pair,choice\n{'9' * 5000},a\n", "ratings.csv:2: unknown pair"),
        ("pair,choice\n1,lft\n", "ratings.csv:2: 'lft' is not one of a, b, tie, skip"),
        ("pair,choice\n1\n2,q\n", "ratings.csv:3: 'q' is not one of"),
        ("pair,choice,page\n1,a,0123456789abcdef\n", "ratings.csv:2: this rating belongs to another page"),
        ("pair,choice\n1,skip\n", "has no ratings (only skipped pairs)"),
        ("pair,choice\n1,\n", "ratings.csv has no ratings"),
    ],
)
def test_broken_ratings(page: Path, text: str, expected: str) -> None:
    (page.parent / "ratings.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(expected)):
        rating_result(page.parent)


def test_what_a_spreadsheet_saves(page: Path) -> None:
    (page.parent / "ratings.csv").write_bytes(b"\xef\xbb\xbfPair;Choice\r\n1; A \r\n;\r\n2;TIE\r\n1;skip\r\n")
    found = rating_result(page.parent)
    assert (found.rated, found.ties, found.skipped) == (1, 1, 1), "the last rating of a pair counts"
    (page.parent / "ratings.csv").write_bytes("pair,choice\n1,a\n".encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        rating_result(page.parent)


def test_ratings_keep_their_key(page: Path) -> None:
    ratings(page.parent, "tuned")
    write_rating_page(items("plain"), items("tuned"), NAMES, page.parent)
    with pytest.raises(DataError, match="has ratings of another page"):
        write_rating_page(items("plain"), items("better"), NAMES, page.parent)
    assert rating_result(page.parent).win_rate.value == 1.0
    (page.parent / KEY).write_text('{"names": ["a"]}')
    with pytest.raises(DataError, match="is not a valid key of a rating page"):
        rating_result(page.parent)


def test_the_same_answers_are_not_asked_about(tmp_path: Path) -> None:
    second = [*items("plain")[:15], *items("tuned")[15:]]
    write_rating_page(items("plain"), second, NAMES, tmp_path)
    ratings(tmp_path, "plain")
    found = rating_result(tmp_path)
    assert (found.rated, found.identical) == (25, 15)
    assert "the same answer to 15 more prompts" in found.sentence()


def test_one_cluster_has_no_interval(tmp_path: Path) -> None:
    first, second = ([{**item, "cluster": "only"} for item in items(name)] for name in NAMES)
    write_rating_page(first, second, NAMES, tmp_path)
    ratings(tmp_path, "tuned")
    found = rating_result(tmp_path)
    assert (found.win_rate.low, found.p) == (None, None)
    assert "nan" not in found.sentence()


def test_nothing_to_rate(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gave the same answers to all 40 common prompts"):
        write_rating_page(items("a"), items("a"), NAMES, tmp_path)
    with pytest.raises(DataError, match="have no common prompt"):
        write_rating_page(items("a")[:20], items("b")[20:], NAMES, tmp_path)
    with pytest.raises(DataError, match="has no rating page"):
        rating_result(tmp_path)


def test_what_a_model_says_stays_text(tmp_path: Path) -> None:
    evil = items("<script>alert(1)</script>")
    text = write_rating_page(items("plain"), evil, NAMES, tmp_path).read_text()
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text


def test_on_the_command_line(tmp_path: Path) -> None:
    options = ["--output", "rated", "--set", "eval.settings.generate.prompts=8"]
    alone = align("eval", "demo", "--rate", *options, cwd=tmp_path)
    assert alone.returncode == 2
    assert "two targets" in alone.stderr
