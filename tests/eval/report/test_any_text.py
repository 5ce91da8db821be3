"""Whatever the text, a page is well-formed HTML and shows it, and its structure does not depend on it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from alignkit import Run
from alignkit_checks.check import check_source
from alignkit_eval.rating import write_rating_page
from alignkit_eval.report import data_report, run_report
from alignkit_eval.report.explorers import diff_words
from alignkit_eval.report.parts import (
    AnswerDiff,
    Disagreement,
    Fact,
    Facts,
    Generation,
    Generations,
    Item,
    Items,
    Page,
    SortableTable,
    TableCell,
    Word,
)
from alignkit_eval.report.render import render
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.runs import short_run

MARKUP = [
    "</script>",
    "<b onclick=x>",
    "&amp;",
    "&#38",
    '"',
    "'",
    "{{ 7 }}",
    "{% raw %}",
    "<!--",
    "]]>",
    "\r\n",
    "\x00",
    "\u2028",
    "\ud83d",
    "\ude42",
]
TEXT = st.lists(st.characters(exclude_categories=()) | st.sampled_from(MARKUP), max_size=8).map(
    lambda parts: str(json.loads(json.dumps("".join(parts))))  # two halves of a character that meet in a file are one
)


def shown(text: str) -> str:
    """Return how a page shows a text: control characters as their pictures, half a surrogate pair as U+FFFD."""
    pictures = (
        chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\t\n\r" else "\u2421" if c == "\x7f" else c for c in text
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", normalised("".join(pictures)))


def normalised(text: str) -> str:
    """Return a text with the line ends that every reader of HTML makes of it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str | None]
    parts: list[tuple[str, str]]
    """Its text, each piece with the innermost tag around it."""

    def text(self, *without: str) -> str:
        return "".join(text for tag, text in self.parts if tag not in without)


class Elements(HTMLParser):
    """The elements of a page in the order in which they end; tags that do not match are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[Element] = []
        self.done: list[Element] = []
        self.feed(normalised(page))
        self.close()
        assert not self.open, f"<{self.open[-1].tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), [])
        (self.done if tag in ("meta", "img", "input") else self.open).append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.done.append(self.open.pop())

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.parts.append((self.open[-1].tag, data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def texts(self, tag: str, kind: str = "", without: tuple[str, ...] = ()) -> list[str]:
        """Return the text of every element with a tag and a class, less that of some tags within."""
        return [e.text(*without) for e in self.done if e.tag == tag and kind == (e.attributes.get("class") or "")]

    def with_text(self, placeholder: str, text: str) -> list[tuple[str, str, dict[str, str | None]]]:
        """Return tag, text and attributes of every element, with a text in every place of the placeholder."""
        return [
            (
                e.tag,
                e.text().replace(placeholder, text),
                {k: v and v.replace(placeholder, text) for k, v in e.attributes.items()},
            )
            for e in self.done
        ]


def page(text: str) -> Page:
    """Return a page with a section of every kind and the text in all of its places."""
    words = [Word(change, text) for change in ("same", "gone", "new")]
    item = Item(text, text, text, text, text, 0.5, -0.5, (text, text, text))
    sections = [
        SortableTable(text, (text, text), [(TableCell(text), TableCell(text, 1.0))], text),
        Generations(text, text, [Generation(text, text, [AnswerDiff(text, words)])]),
        Items(text, text, [Disagreement((text, text), [item], 1)]),
        Facts(text, [Fact(text, [(text, text)], text)]),
    ]
    return Page(text, text, "verdict", [text], sections)


@given(text=TEXT.filter(lambda text: text not in ("", "-")))
@settings(deadline=None, max_examples=50)
def test_any_text_is_shown_in_any_place_of_a_page(text: str) -> None:
    model = Elements(render(page("PLACE")))
    assert Elements(render(page(text))).with_text("", "") == model.with_text("PLACE", shown(text))


@given(before=TEXT, after=TEXT)
@settings(deadline=None, max_examples=50)
def test_differences_of_two_texts_contain_both(before: str, after: str) -> None:
    pieces = diff_words(before, after)
    assert "".join(piece.text for piece in pieces if piece.change != "new") == before
    assert "".join(piece.text for piece in pieces if piece.change != "gone") == after


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    quick: dict[str, Any] = {
        "train": {"max_steps": 1, "logging_steps": 1, "save_strategy": "no"},
        "eval": {"suites": ["prefs"], "samples": 2, "sample_tokens": 2},
        "data": {"eval_limit": 8},
        "run": {"plots": False},
    }
    return short_run(tmp_path_factory.mktemp("runs"), "run", "orpo", **quick)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@given(texts=st.lists(TEXT, min_size=7, max_size=7))
@settings(deadline=None, max_examples=4)
def test_a_run_s_report_shows_any_text(run: Run, texts: list[str]) -> None:
    """Samples, and the names of the pairs on which start and trained model disagree."""
    key, prompt, before, after, cluster, category, model = texts
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(run.directory, Path(folder) / "run")
        jsonl(copy / "samples.jsonl", [{"id": key, "prompt": prompt, "before": before, "after": after}])
        for number, name in enumerate(("eval", "eval/before")):
            items = [json.loads(line) for line in (copy / name / "prefs.items.jsonl").open()]
            items[0] |= {"cluster": cluster, "category": category, "credit_sum": float(number)}
            jsonl(copy / name / "prefs.items.jsonl", items)
        record = json.loads((copy / "run.json").read_text())
        record["model"]["name"] = model
        (copy / "run.json").write_text(json.dumps(record))
        found = Elements(run_report(copy).read_text(encoding="utf-8"))
    assert found.texts("bdi")[0] == shown(key)
    assert found.texts("p", "text prompt") == [shown(prompt)]
    old, new = found.texts("p", "text", ("ins", "em")), found.texts("p", "text", ("del", "em"))
    assert [old[0], old[1], new[1]] == [shown(before), shown(before), shown(after)]
    assert shown(category) in found.texts("bdi", "quiet")
    assert shown(cluster) in found.texts("dd")
    assert any(text.startswith(f"{shown(model)}, sha256 ") for text in found.texts("dd"))
    assert found.texts("p", "subtitle")[0].startswith(shown(f"orpo on {model}, 1 steps"))


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4), name=TEXT)
@settings(deadline=None, max_examples=4)
def test_the_data_page_shows_any_text(rows: list[tuple[str, str, str]], name: str) -> None:
    """What the rules quote of the rows, and the name of the file, whatever is in them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / (re.sub("[/\0\ud800-\udfff]", "", name)[:20] + " is where the rows are.jsonl")
        written = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
        jsonl(source, [{"prompt": "ask", "chosen": "a", "rejected": "b"}, *written, {name: 1}])
        check = check_source(str(source))
        found = Elements(data_report([check], Path(folder) / "page.html").read_text(encoding="utf-8"))
    assert found.texts("p", "subtitle") == [shown(str(source))]
    quoted = [example[key] for finding in check.findings for example in finding.examples for key in ("place", "about")]
    assert quoted
    cells = found.texts("td") + found.texts("td", "word")
    assert all(shown(text) in cells for text in quoted)


@given(texts=st.lists(TEXT, min_size=3, max_size=3).filter(lambda texts: texts[1] != texts[2]), key=TEXT.map(shown))
@settings(deadline=None, max_examples=20)
def test_the_page_of_a_rating_shows_any_text(texts: list[str], key: str) -> None:
    prompt, *answers = texts
    one, other = ([{"id": key, "cluster": key, "prompt": prompt, "answer": answer}] for answer in answers)
    with tempfile.TemporaryDirectory() as folder:
        found = Elements(write_rating_page(one, other, ("one", "other"), Path(folder)).read_text(encoding="utf-8"))
    assert found.texts("p", "text prompt") == [shown(prompt)]
    expected = sorted(shown(answer) if answer.strip() else "empty" for answer in answers)
    assert sorted(found.texts("p", "text")) == expected
