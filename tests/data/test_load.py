"""Loading of a run's data: counts, dropped rows, rows from a plugin, the demo, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import RunConfig
from alignkit.contract.rows import RawRows
from alignkit.contract.types import RowKind
from alignkit.data.load import load_data
from alignkit.data.rows import text_digest
from alignkit.data.tokenise.encode import SEGMENTS
from alignkit.errors import DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.data import TOKENIZER, load, pairs, write_jsonl

# ------------------------------------------------------------------------------------------------ counts and drops


def test_report_counts_every_row_once(tmp_path: Path) -> None:
    rows = pairs(20)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[5]["chosen"] = " "
    rows[8]["rejected"] = rows[8]["chosen"]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = load(path, max_dropped=0.2, eval_split=0.2)
    (source,) = data.report.sources
    assert (source.read, source.kept, source.unusable) == (20, 17, 3)
    assert source.eos_added == 2 * 17
    same_answers = source.dropped["chosen and rejected are the same"]
    assert (same_answers.count, same_answers.first) == (2, f"{path}:4")
    assert source.dropped["empty completion"].first == f"{path}:6"
    assert len(data.train) + len(data.eval) == 17
    assert any(
        f"{path}: 2 dropped: chosen and rejected are the same (first: {path}:4)" in line for line in data.report.lines()
    )
    recorded = json.loads(json.dumps(data.report.to_dict()))
    assert recorded["sources"][0]["dropped"]["empty completion"] == {"count": 1, "first": f"{path}:6"}
    assert recorded["train"]["prompt_tokens"] == sum(len(e.prompt) for e in data.train)
    assert recorded["train"]["completion_tokens"] == sum(len(c) for e in data.train for c in e.completions)
    assert recorded["train"]["longest"] == max(len(e.prompt) + max(map(len, e.completions)) for e in data.train)


def test_too_many_unusable_rows_is_an_error_with_counts_and_places(tmp_path: Path) -> None:
    rows = pairs(20)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[6]["chosen"] = "</s>"
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load(path, max_dropped=0.05)
    message = str(caught.value)
    assert "2 of 20 rows cannot be used (data.max_dropped allows 5%)" in message
    assert f"1 chosen and rejected are the same (first: {path}:4)" in message
    assert f"1 completion has only special tokens (first: {path}:7)" in message
    assert len(load(path, max_dropped=0.1).train) > 0


def test_all_rows_unusable_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    rows = [row | {"chosen": ""} for row in pairs(3)]
    with pytest.raises(DataError, match=r"3 of 3 rows cannot be used \(no row is left\): 3 empty completion"):
        load(write_jsonl(tmp_path / "rows.jsonl", rows), max_dropped=1.0)


def test_max_length_shorter_than_every_prompt(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(5))
    shortest = min(len(e.prompt) for e in [*load(path).train, *load(path).eval])
    with pytest.raises(
        DataError, match=rf"data\.max_length {shortest} is shorter .*shortest prompt has {shortest} tokens"
    ):
        load(path, max_length=shortest)
    assert load(path, max_length=shortest + 4).report.sources[0].truncated_prompts > 0


TEXTS = st.sampled_from(["", " ", "It is blue.", "It is", "</s>", "<|end|>", "Anna lives in Rome, I do not know.", "é"])


@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}), min_size=1, max_size=12
    ),
    kind=st.sampled_from(["preference", "completion", "unpaired", "prompt"]),
    max_length=st.integers(6, 24),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_add_up(rows: list[dict[str, Any]], kind: RowKind, max_length: int) -> None:
    raw = RawRows(rows, lambda i: f"memory:{i + 1}", "memory")
    config = RunConfig(
        method="m",
        data={"source": "x", "max_dropped": 1.0, "eval_split": 0.0, "cache": False, "max_length": max_length},
    )
    refused = ""
    try:
        data = load_data(config, kind, TOKENIZER, lambda source, split: raw)
    except DataError as error:
        refused = str(error)
    if refused:
        assert "no row is left" in refused or "data.max_length" in refused
        return
    (source,) = data.report.sources
    assert source.read == len(rows) * (2 if kind == "unpaired" else 1)
    assert source.read == source.kept + source.unusable
    assert source.kept == len(data.train) == data.report.train.rows
    for example in data.train:
        assert example.prompt
        assert all(example.completions)
        assert len(example.completions) == SEGMENTS[kind] - 1
        assert len(example.prompt) + max(map(len, example.completions), default=0) <= max_length


# ------------------------------------------------------------------------------------------------ plugins, demo


def test_a_plugins_rows_come_first_and_none_means_ours(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(10))
    asked: list[tuple[str, str | None]] = []

    def plugin(source: str, split: str | None) -> RawRows | None:
        asked.append((source, split))
        return RawRows(pairs(6), lambda i: f"plugin:{i}", "plugin") if source == "theirs" else None

    config = RunConfig(method="m", data={"source": "theirs", "eval_source": str(path), "limit": 4})
    data = load_data(config, "preference", TOKENIZER, plugin)
    assert (len(data.train), len(data.eval)) == (4, 10)
    assert asked == [("theirs", None), (str(path), None)]


def test_the_demo_trains_on_train_and_evaluates_on_test() -> None:
    data = load_data(RunConfig(method="m"), "preference", TOKENIZER)
    trained, held_out = data.report.sources
    assert (trained.source, held_out.source) == ("demo train", "demo test")
    assert {e.cluster for e in data.train}.isdisjoint(e.cluster for e in data.eval)
    with pytest.raises(
        DataError, match=r'demo has no split "tests", did you mean "test"\?; its splits are train, dev, test'
    ):
        load_data(RunConfig(method="m", data={"eval_split": "tests"}), "preference", TOKENIZER)


# ------------------------------------------------------------------------------------------------ store, order


def test_tokenised_rows_are_a_sequence(tmp_path: Path) -> None:
    rows = load(write_jsonl(tmp_path / "rows.jsonl", pairs(8)), eval_split=0.0).train
    assert [e.index for e in rows] == list(range(8))
    assert rows[-1] == rows[7]
    assert [e.id for e in rows[2:8:3]] == ["p2", "p5"]
    chosen = rows.select([5, 0, 5])
    assert [(e.id, e.index, e.prompt, e.completions) for e in chosen] == [
        (rows[i].id, at, rows[i].prompt, rows[i].completions) for at, i in enumerate([5, 0, 5])
    ]
    assert rows.lengths().tolist() == [e.tokens for e in rows]
    assert len(rows.select([])) == 0
    assert rows.select(range(8)).fingerprint == rows.fingerprint != rows[:7].fingerprint != rows[1:].fingerprint
    with pytest.raises(IndexError):
        rows[8]


def test_digest_is_of_the_content() -> None:
    assert text_digest("a") == text_digest("a") != text_digest("b")
    assert text_digest(({"role": "user", "content": "a"},)) == text_digest(({"content": "a", "role": "user"},))


def test_importing_the_data_modules_loads_no_heavy_library() -> None:
    heavy = "torch transformers datasets trl tokenizers pyarrow".split()
    code = (
        "import sys, pkgutil, importlib, alignkit.data as d\n"
        "[importlib.import_module(f'alignkit.data.{m.name}') for m in pkgutil.iter_modules(d.__path__)]\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_fingerprint_covers_the_columns_that_rewards_read(tmp_path: Path) -> None:
    """A resumed run refuses other data, and a run with other answers to check against trained on other data."""
    rows = [{"prompt": f"{i} and 1?", "answer": str(i + 1)} for i in range(4)]
    files = [
        write_jsonl(tmp_path / "one.jsonl", rows),
        write_jsonl(tmp_path / "two.jsonl", [{**rows[0], "answer": "2"}, *rows[1:]]),
    ]
    one, two = (load(file, "prompt", eval_split=0.0) for file in files)
    assert [e.prompt for e in one.train] == [e.prompt for e in two.train]
    assert (
        one.report.fingerprint != two.report.fingerprint == load(files[1], "prompt", eval_split=0.0).report.fingerprint
    )
