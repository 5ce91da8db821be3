"""``align data check --against``: shared n-grams by hand, by brute force, and through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.__main__ import main
from alignkit.contract import Row
from alignkit.errors import DataError
from alignkit_checks.contamination import Contamination
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = [f"w{i}" for i in range(60)]
LONG = " ".join(WORDS[:20])


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(number: int, prompt: str, *answers: str) -> Row:
    return Row(number, f"r{number}", prompt, answers, "", place=f"train.jsonl:{number + 1}")


def test_shares_fields_and_places_by_hand(tmp_path: Path) -> None:
    items = [{"question": LONG, "id": "a"}, {"options": ["no", " ".join(WORDS[30:39])], "id": "b"}]
    found = Contamination([written(tmp_path / "test.jsonl", *items)])
    rows = [
        row(0, f"before {LONG.upper().replace(' ', ', ')}!", "x y", "z"),  # 20 of 21 words
        row(
            1, "p", f"{' '.join(WORDS[5:18])} and more", f"{' '.join(WORDS[5:17])} and more"
        ),  # 13 of 15 words; 12 are too few
        row(2, "p", f"so {' '.join(WORDS[30:39])}", "z"),  # the whole of nine words
        row(3, "p", " ".join(WORDS[31:39]), "z"),  # a part of them
    ]
    rule, (against,) = found.look(rows)
    hits = list(rule.find(rows, [], None))  # type: ignore[arg-type]
    test = tmp_path / "test.jsonl"
    assert [(hit.row, hit.about) for hit in hits] == [
        (0, f"95% of prompt in {test}:1 (question)"),
        (1, f"87% of chosen in {test}:1 (question)"),
        (2, f"90% of chosen in {test}:2 (options)"),
    ]
    assert (against.items, against.dirty, against.rows, dict(against.fields)) == (2, 2, 3, {"prompt": 1, "chosen": 2})
    assert against.short == 3, "both ids, and no"
    assert against.overlaps[1].text == " ".join(WORDS[5:18])
    assert against.overlaps[1].place == "train.jsonl:2"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=2, max_size=6), st.integers(2, 4))
def test_a_row_is_found_where_a_run_occurs_in_an_item(texts: list[list[str]], n: int) -> None:
    items, rows = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    if not any(len(words) >= n for words in items):
        return
    path = Path("items.jsonl")

    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    found = Contamination([written(path, *({"text": " ".join(words)} for words in items))], n)
    made = [row(i, " ".join(words)) for i, words in enumerate(rows)]
    rule, (against,) = found.look(made)
    known = set().union(*map(runs, items))
    assert [hit.row for hit in rule.find(made, [], None)] == [i for i, w in enumerate(rows) if runs(w) & known]  # type: ignore[arg-type]
    trained = set().union(*map(runs, rows))
    assert against.dirty == sum(bool(runs(words) & trained) for words in items)
    for overlap in against.overlaps:
        words = rows[int(overlap.row[1:])]
        covered = {j for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in known for j in range(i, i + n)}
        assert overlap.share == pytest.approx(len(covered) / len(words))


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pairs() -> list[dict[str, str]]:
    clean = [{"prompt": f"ask {i} of it ? ", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(3)]
    return [*clean, {"prompt": "hm ? ", "chosen": LONG, "rejected": "no"}]


def test_fix_removes_the_rows_and_strict_fails(capsys: pytest.CaptureFixture[str]) -> None:
    train, test = written(Path("train.jsonl"), *pairs()), written(Path("test.jsonl"), {"messages": [{"content": LONG}]})
    assert main(["data", "check", train, "--against", test, "--strict", "--fix", "clean.jsonl"]) == 1
    out = capsys.readouterr().out
    assert "train.jsonl:4: 100% of chosen in test.jsonl:1 (messages)" in out
    assert "1 of 1 items of test.jsonl (100.0%) share 13-grams with 1 row (by field: chosen 1)" in out
    assert [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()] == pairs()[:3]
    (dropped,) = map(json.loads, Path("clean.jsonl.dropped.jsonl").read_text().splitlines())
    assert (dropped["place"], dropped["rule"]) == ("train.jsonl:4", "contaminated")
    assert main(["data", "check", "clean.jsonl", "--against", test, "--strict", "--json"]) == 0
    (against,) = json.loads(capsys.readouterr().out)["against"]
    assert (against["items"], against["dirty"], against["overlaps"]) == (1, 0, [])


def test_plain_text_and_tasks_of_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    train = written(Path("train.jsonl"), *pairs())
    Path("test.txt").write_text(f"one two\n\nfirst\n{LONG}\n")
    written(Path("docs.jsonl"), {"q": "none", "a": LONG})
    Path("task.yaml").write_text(
        f"task: own_task\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {Path('docs.jsonl').absolute()}}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: 'Q: {{q}}'\ndoc_to_target: '{{a}}'\n"
    )
    assert main(["data", "check", train, "--against", "test.txt", "--against", "task.yaml"]) == 0
    out = capsys.readouterr().out
    assert "100% of chosen in test.txt:3 (text); 100% of chosen in task.yaml document 1 (target)" in out
    assert "1 of 2 items of test.txt (50.0%)" in out


def test_tokens_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    train = written(Path("train.jsonl"), *pairs())
    test = written(Path("test.jsonl"), {"text": "yes 1"})
    assert (
        main(["data", "check", train, "--against", test, "--ngram", "2", "--ngram-unit", "tokens", "--model", "demo"])
        == 0
    )
    assert "2-grams of tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ngram", "5"], "--ngram has no effect without --against"),
        (["--ngram-unit", "words"], "--ngram-unit has no effect without --against"),
        (["--against", "test.jsonl", "--ngram-unit", "tokens"], "--ngram-unit tokens needs a tokenizer"),
        (["--against", "missing.jsonl"], "--against: missing.jsonl"),
        (["--against", "missing.yaml"], "there is no task file missing.yaml"),
        (["--against", "short.jsonl"], "none of its 1 rows has a text of 8 or more words to look for"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written(Path("test.jsonl"), {"text": LONG})
    written(Path("short.jsonl"), {"text": "a b", "number": 3})
    assert main(["data", "check", written(Path("train.jsonl"), *pairs()), *options]) == 2
    assert message in capsys.readouterr().err


def test_without_text_the_source_is_named() -> None:
    Path("empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"--against empty\.txt"):
        Contamination(["empty.txt"])
