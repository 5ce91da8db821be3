"""``align data check`` of a configuration counts what a run with it counts: rows dropped, cut, merged at the border, ended."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit import settings as run_settings
from alignkit.__main__ import main
from alignkit.data.load import Data
from alignkit.data.table.report import SUMS
from alignkit.errors import DataError
from alignkit.models.positions import named_positions
from alignkit.models.tokenizer import load_tokenizer
from alignkit.runs.data import run_data
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.data import make_tokenizer, write_jsonl

TEXT = st.sampled_from(
    [
        "The sky is ",
        "What? ",
        "blue.",
        " blue.",
        "It is four.",
        "It",
        "",
        " ",
        "</s>",
        "<s>It",
        "<|end|>",
        "I do not know",
        "\u00e9 ",
    ]
)
PAIR = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT})
ANSWERS = st.lists(TEXT, min_size=2, max_size=3)
TALK = st.lists(TEXT, min_size=1, max_size=6).map(
    lambda texts: {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    }
)
SHAPES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "pairs": PAIR,
    "instructions": st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}),
    "texts": st.fixed_dictionaries({"text": TEXT}),
    "conversations": TALK,
    "alternatives": st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": ANSWERS}),
    "rated": st.lists(st.tuples(TEXT, st.integers(0, 2)), min_size=1, max_size=3).map(
        lambda rated: {"prompt": "sky?", "answers": [a for a, _ in rated], "ratings": [r for _, r in rated]}
    ),
    "labelled": st.fixed_dictionaries(
        {"prompt": st.sampled_from(["sky?", "sea? "]), "completion": TEXT, "label": st.booleans()}
    ),
}
ONE_FOR_ONE = ("pairs", "instructions", "texts", "conversations")
"""Shapes of which a row of the source is a row of training (of a pair, two where answers are judged one by one)."""

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "orpo": {"name": "orpo"},
    "trl-kto": {"name": "trl-kto"},
    "grpo": {"name": "grpo", "reward": "length"},
}
SECTION = st.fixed_dictionaries(
    {
        "max_length": st.integers(4, 30),
        "append_eos": st.booleans(),
        "train_on": st.sampled_from(["last", "all"]),
        "pairs": st.sampled_from([None, "all", "best_worst"]),
        "limit": st.sampled_from([None, 4]),
        "template": st.sampled_from([{}, {}, {"prompt": "Q: {{ prompt }} A:"}]),
    }
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def checked(file: Path) -> list[dict[str, Any]] | str:
    """Return what ``align data check FILE --json`` prints, or the error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["data", "check", str(file), "--json"])
    return json.loads(out.getvalue()) if code == 0 else err.getvalue()


def trained(file: Path) -> Data | DataError:
    """Load what a run would train on."""
    config = run_settings.resolve(file).config
    try:
        return run_data(config, load_tokenizer(config.model, "unused"), named_positions(config.model))
    except DataError as error:
        return error


def refused(error: DataError, found: list[dict[str, Any]] | str) -> bool:
    """Whether a check refuses what a run refuses: an unreadable row, a row the template rejects, or no row that is left."""
    if isinstance(found, str) or re.search("is shorter than every prompt|are too few for every", str(error)):
        return True
    counts = {one["source"]: {finding["rule"]: finding["count"] for finding in one["findings"]} for one in found}
    none_left = re.match(r"(.*): ([\d,]+) of \2 rows cannot be used", str(error))
    if none_left:
        return dropped(counts[none_left[1]]) == int(none_left[2])
    return any("broken" in rules or "template" in rules for rules in counts.values())


def dropped(counts: dict[str, int]) -> int:
    return counts.get("unusable", 0) + counts.get("lost", 0)


@pytest.mark.parametrize("shape", SHAPES)
@given(section=SECTION, drawn=st.data())
@settings(deadline=None, max_examples=20)
def test_check_counts_what_training_counts(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: str,
    shape: str,
    section: dict[str, Any],
    drawn: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    method = drawn.draw(st.sampled_from(["sft", "grpo"] if shape in ("conversations", "texts") else list(METHODS)))
    rows = [drawn.draw(st.lists(SHAPES[shape], min_size=1, max_size=6), label=name) for name in ("one", "two")]
    sources = [str(write_jsonl(folder / f"{i}.jsonl", found)) for i, found in enumerate(rows)]
    data = {"sources": sources, "eval_split": 0.0, "max_dropped": 1.0, "cache": False, **section}
    config = {"method": METHODS[method], "model": {"name": "demo", "tokenizer": tokenizer}, "data": data}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    found, loaded = checked(folder / "run.yaml"), trained(folder / "run.yaml")
    if isinstance(loaded, DataError):
        assert refused(loaded, found), str(loaded)
        return
    assert not isinstance(found, str), found
    for one, report in zip(found, loaded.report.sources, strict=True):
        counts = {finding["rule"]: finding["count"] for finding in one["findings"]}
        assert dropped(counts) == report.unusable
        if shape in ONE_FOR_ONE and method != "trl-kto":
            assert one["rows"] - dropped(counts) == report.kept
        assert counts.get("broken", 0) + counts.get("template", 0) == 0
        for name in ("truncated_prompts", *SUMS):
            assert one["tokens"][name] == getattr(report, name), name


@pytest.mark.parametrize(
    ("row", "section", "reason"),
    [
        ({"prompt": "a", "answers": ["x"], "ratings": [1, 2]}, {}, '"answers" and "ratings" are 1 and 2 long'),
        (
            {"prompt": "a", "completion": "x", "label": "q"},
            {"pairs": "all"},
            "\"label\" is 'q', expected true or false",
        ),
        ({"prompt": "a", "chosen": "x"}, {"template": {"rejected": "{{ no }}"}}, "'no' is undefined"),
    ],
)
def test_a_source_without_a_readable_row_is_an_error_with_the_reason(
    tmp_path: Path, tokenizer: str, row: dict[str, Any], section: dict[str, Any], reason: str
) -> None:
    data = {"source": str(write_jsonl(tmp_path / "rows.jsonl", [row])), **section}
    config = {"method": "orpo", "model": {"name": "demo", "tokenizer": tokenizer}, "data": data}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    found = checked(tmp_path / "run.yaml")
    assert f"{data['source']} has no readable rows ({data['source']}:1: " in found
    assert reason in found
    assert reason in str(trained(tmp_path / "run.yaml"))
