"""Reports: their content, the escaping of untrusted text, and missing data."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from alignkit import Run, SuiteResult
from alignkit.errors import DataError
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit_eval.comparison.compare import compare
from alignkit_eval.report import comparison_report, run_report
from alignkit_eval.report.explorers import best_and_worst, diff_words, generation_cards
from alignkit_eval.report.parts import Page, SortableTable, number_cell
from alignkit_eval.report.render import render
from alignkit_eval.report.texts import HeldOutTexts, ReportedModel

from tests.helpers.runs import align, short_run

pytestmark = pytest.mark.slow

EVIL = '</script><script>window.evil = 1</script><img src=x onerror="window.evil = 2"> \u2028 ${evil} {{ 7 * 7 }}'


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    output = tmp_path_factory.mktemp("runs")
    eval_ = {"samples": 2, "sample_tokens": 8, "settings": {"perplexity": {"text": None}}}
    return [
        short_run(output, method, method, train={"max_steps": 20, "save_strategy": "no"}, eval=eval_)
        for method in ("orpo", "dpo")
    ]


@pytest.fixture
def poisoned(runs: list[Run], tmp_path: Path) -> Path:
    """A run with hostile answers and hostile categories."""
    run = shutil.copytree(runs[0].directory, tmp_path / "nasty<b>")
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    (run / "samples.jsonl").write_text(
        "".join(json.dumps({**row, "after": EVIL, "prompt": EVIL}) + "\n" for row in rows)
    )
    for file in (run / "eval/prefs.items.jsonl", run / "eval/before/prefs.items.jsonl"):
        items = [json.loads(line) for line in file.read_text().splitlines()]
        for item in items:
            item["category"] = EVIL
        items[0]["credit_sum"] = float("before" in str(file))
        file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return run


class Outline(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_run_s_report_says_what_came_out(runs: list[Run]) -> None:
    path = run_report(runs[0].directory)
    assert path == runs[0].directory / "report.html"
    page = Outline(path.read_text())
    value = runs[0].evaluation["after"]["prefs"]["accuracy_sum"]["value"]
    assert f"{value:.3f}" in page.text
    for heading in ("Before and after training", "Differences from start", "Training", "Time by stage"):
        assert heading in page.text
    assert "orpo and start" in page.text or "better than start" in page.text
    assert runs[0].record["model"]["hash"] in page.text
    assert "learning_rate" in page.text, "the whole configuration"
    assert len(page.named("img")) >= 4


def test_a_comparison_shows_what_they_disagree_on(runs: list[Run], tmp_path: Path) -> None:
    comparison = compare([run.directory for run in runs])
    text = comparison_report(comparison, tmp_path / "c.html").read_text()
    page = Outline(text)
    assert comparison.verdict in page.text
    items = {
        run.directory.name: {i["id"]: i for i in map(json.loads, (run.directory / "eval/prefs.items.jsonl").open())}
        for run in runs
    }
    odd = [key for key, item in items["orpo"].items() if item["credit_sum"] != items["dpo"][key]["credit_sum"]]
    assert odd
    assert text.count('class="item"') == len(odd)
    assert all(key in page.text for key in odd)
    assert "what " in page.text, "the prompts of the pairs are read from the run's data"
    assert "Answers: orpo and dpo" in page.text


def test_nothing_is_trusted(poisoned: Path, tmp_path: Path) -> None:
    text = run_report(poisoned).read_text()
    page = Outline(text)
    assert len(page.named("script")) == 1, "the page's own"
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert all((a["src"] or "").startswith("data:image/svg+xml;base64,") for a in page.named("img"))
    assert "{{ 7 * 7 }}" in page.text, "shown as text, not evaluated"
    assert "window.evil = 1" in page.text


def test_only_its_own_code_may_run(runs: list[Run]) -> None:
    text = run_report(runs[0].directory).read_text()
    (policy,) = [m["content"] for m in Outline(text).named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        (code,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"<(pre|dd)>.*?</\1>", "", text, flags=re.DOTALL))


def test_headings_captions_and_alternatives(runs: list[Run]) -> None:
    page = Outline(run_report(runs[0].directory).read_text())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert len(page.named("caption")) == len(page.named("table"))
    assert all(a.get("alt") for a in page.named("img"))
    assert all(a.get("scope") in ("col", "row") for a in page.named("th"))


def test_what_is_missing_is_said(runs: list[Run], tmp_path: Path) -> None:
    bare = shutil.copytree(runs[0].directory, tmp_path / "bare")
    shutil.rmtree(bare / "eval/before")
    (bare / "samples.jsonl").unlink()
    (bare / "metrics.jsonl").unlink()
    text = Outline(run_report(bare).read_text()).text
    assert "This run cannot be compared with its start model" in text
    assert number_cell(math.nan).text == "not finite"
    assert number_cell(None).text == "-"
    table = SortableTable("t", ("a", "b"), [(number_cell(1.0), number_cell(math.inf))])
    page = render(Page("title", "", "verdict", [], [table]))
    assert "not finite" in page
    assert not re.search(r">(nan|inf)<", page)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": "a", "prompt": "p", "bef', "invalid JSON"),
        ('{"id": "a", "before": "b", "after": "c"}', "the key 'prompt' is missing"),
        ("[]", "expected a JSON object"),
    ],
)
def test_samples_that_cannot_be_read(runs: list[Run], tmp_path: Path, line: str, expected: str) -> None:
    run = shutil.copytree(runs[0].directory, tmp_path / "run")
    (run / "samples.jsonl").write_text(line)
    with pytest.raises(DataError, match=rf"samples.jsonl:1: {re.escape(expected)}"):
        run_report(run)


def test_a_formula_in_a_name_stays_a_name(runs: list[Run], tmp_path: Path) -> None:
    """matplotlib would typeset text between dollar signs, or fail."""
    copies = [shutil.copytree(run.directory, tmp_path / f"${run.directory.name}_{{$") for run in runs]
    comparison = compare(copies)
    named = replace(comparison, arms=[replace(a, name=f"$\\{a.name}$") for a in comparison.arms], baseline="$\\orpo$")
    assert "$\\dpo$" in comparison_report(named, tmp_path / "c.html").read_text()


def test_texts_of_other_rows_are_not_shown(runs: list[Run], caplog: pytest.LogCaptureFixture) -> None:
    content = read_evaluation(runs[0].directory / "eval", "prefs").provenance["content"]
    pairs = HeldOutTexts(runs[0].directory).pairs(content)
    assert pairs
    assert all(pair.chosen != pair.rejected for pair in pairs.values())
    assert HeldOutTexts(runs[0].directory).pairs("digest of other rows") == {}
    assert "have changed since" in caplog.text


def test_answers_are_shown_with_the_right_one(runs: list[Run]) -> None:
    run = runs[0].directory
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    texts = HeldOutTexts(run)
    (cards,) = generation_cards(*((m := ReportedModel("a", run / "eval", run)), [m]), texts)
    pairs = texts.pairs(None)
    assert [card.right for card in cards.rows] == [pairs[row["id"]].chosen.split(": ", 1)[-1] for row in rows]
    assert texts.right(rows[0]["id"], "another prompt") == "", "a row that has changed is not trusted"
    assert f"<b>right answer:</b> {cards.rows[0].right}" in run_report(run).read_text()


def test_the_best_and_the_worst_rewarded_answers(runs: list[Run], tmp_path: Path) -> None:
    """By the weighted sum of two rewards; an answer that no reward judged is left out."""
    items = [
        {
            "id": f"p{i}",
            "cluster": f"c{i}",
            "prompt": f"ask {i}",
            "answer": f"say {i}",
            "reward/a": float(i),
            "reward/b": -i,
        }
        for i in range(50)
    ]
    items[49] |= {"reward/a": None, "reward/b": None}
    write_evaluation(tmp_path, SuiteResult("generate", 50, 50, {}, items), target="tuned")
    best, worst = best_and_worst(ReportedModel("tuned", tmp_path, None), HeldOutTexts(None), {"a": 1.0, "b": 0.5})
    assert [row.id for row in best.rows] == [f"p{i}" for i in range(48, 28, -1)]
    assert [row.id for row in worst.rows] == [f"p{i}" for i in range(20)]
    assert (best.rows[0].prompt, best.rows[0].score) == ("ask 48", "a 48.0, b -48.0")
    assert "20 of 49 held-out prompts, ordered by the weighted sum of rewards" in best.note
    page = shutil.copytree(runs[0].directory, tmp_path / "run")
    write_evaluation(page / "eval", SuiteResult("generate", 50, 50, {}, items), target="tuned")
    record = json.loads((page / "run.json").read_text())
    assert "Best answers" not in run_report(page).read_text(), "it was not trained on rewards"
    record["config"]["method"]["reward"] = [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 0.5}]
    (page / "run.json").write_text(json.dumps(record))
    written = run_report(page).read_text()
    assert written.index("Best answers of run</h2>") < written.index("Worst answers of run</h2>")


def test_words_that_changed() -> None:
    assert [tuple(w) for w in diff_words("a b c", "a x c")] == [
        ("same", "a "),
        ("gone", "b "),
        ("new", "x "),
        ("same", "c"),
    ]
    assert diff_words("", "") == []
    assert [w.change for w in diff_words("", "new")] == ["new"]
    for before, after in (("one two", "two three"), ("", "x y"), ("a  b\nc", "a b\nc")):
        pieces = diff_words(before, after)
        assert "".join(w.text for w in pieces if w.change != "gone") == after
        assert "".join(w.text for w in pieces if w.change != "new") == before


def test_commands_write_it(runs: list[Run], tmp_path: Path) -> None:
    done = align("compare", *(run.directory for run in runs), "--html", "page.html", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report: page.html" in done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
