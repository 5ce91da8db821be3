"""Several sources, several answers to a prompt, templates, tools, turns: from the configuration to the rows of a step."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit.config import CheckConfig, DataConfig, ModelConfig, RunConfig
from alignkit.contract.types import RowKind
from alignkit.data.checking.before_training import check_before_training
from alignkit.data.load import Data, load_data
from alignkit.data.order.mixing import describe_mix, row_order
from alignkit.data.order.row_order import RowOrder
from alignkit.demo import data_path
from alignkit.errors import AlignError, ConfigError, DataError
from alignkit.models.chat_templates import NAMED
from alignkit.models.tokenizer import load_tokenizer
from pydantic import ValidationError

from tests.helpers.data import make_tokenizer, pairs, write_jsonl
from tests.helpers.runs import align

TOKENIZER = make_tokenizer()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def load(kind: RowKind = "preference", tokenizer: Any = TOKENIZER, **data: Any) -> Data:
    return load_data(RunConfig(method="m", data={"eval_split": 0.0, **data}), kind, tokenizer)


def order_of(data: Data, seed: int = 0, **section: Any) -> RowOrder:
    return row_order(DataConfig(**section), data.train, seed)


def file(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    return str(write_jsonl(folder / f"{name}.jsonl", list(rows)))


def named(prefix: str, n: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {**row, "id": f"{prefix}{i}", "prompt": f"{prefix} {row['prompt']}", **more} for i, row in enumerate(pairs(n))
    ]


# ------------------------------------------------------------------------------------------------ sources


def test_sources_have_their_own_columns_templates_and_limits(tmp_path: Path) -> None:
    plain = file(tmp_path, "plain", *named("a", 6))
    other = file(tmp_path, "other", *[{"q": f"sky {i}", "good": "blue", "bad": "green"} for i in range(9)])
    sources = [
        plain,
        {
            "source": other,
            "name": "theirs",
            "limit": 5,
            "columns": {"chosen": "good", "rejected": "bad"},
            "template": {"prompt": "Q: {{ q }}?\n"},
        },
    ]
    data = load(sources=sources)
    assert [report.source for report in data.report.sources] == [plain, other]
    assert Counter(e.fields["source"] for e in data.train) == {"plain": 6, "theirs": 5}
    assert Counter(e.category for e in data.train) == {"plain": 6, "theirs": 5}
    assert data.train_rows[6].prompt == "Q: sky 0?\n"
    assert data.train_rows[6].place == f"{other}:1"
    assert data.train.select([7, 2]).fingerprint != data.train.select([2, 7]).fingerprint
    assert [e.id for e in data.train.select([7, 2])] == [data.train[7].id, "a2"]


def test_a_cluster_that_two_sources_share_stays_on_one_side(tmp_path: Path) -> None:
    one = file(tmp_path, "one", *named("a", 40))
    two = file(tmp_path, "two", *[{**row, "chosen": "Other."} for row in named("a", 40)])
    data = load(sources=[one, two], eval_split=0.25)
    prompts = [{tuple(e.prompt) for e in part} for part in (data.train, data.eval)]
    assert prompts[0].isdisjoint(prompts[1])
    assert len(data.eval) == 20
    limited = load(sources=[one, two], eval_split=0.25, eval_limit=6)
    assert Counter(e.fields["source"] for e in limited.eval) == {"one": 3, "two": 3}
    completions = limited.held_out.examples("completion")
    assert [e.id for e in completions] == [e.id for e in limited.eval]


def test_weights_and_repeats(tmp_path: Path) -> None:
    a, b = file(tmp_path, "a", *named("a", 30)), file(tmp_path, "b", *named("b", 10))
    weighted = {"sources": [{"source": a, "weight": 3}, {"source": b, "weight": 2}]}
    data = load(**weighted)
    order = order_of(data, **weighted)
    assert order.amounts == (15, 10)
    rows = Counter(data.train[int(i)].fields["source"] for i in order.epoch(0))
    assert rows == {"a": 15, "b": 10}
    assert list(describe_mix(DataConfig(**weighted), order)) == [
        "a 15 of its 30 rows an epoch (0.50 times), 60.0% of all",
        "b 10 of its 10 rows an epoch (1.00 times), 40.0% of all",
    ]
    assert order_of(data, **weighted, exhausted="all").amounts == (30, 20)
    repeated = {"sources": [{"source": a, "repeat": 0.5}, {"source": b, "repeat": 3}]}
    assert order_of(load(**repeated), **repeated).amounts == (15, 30)
    assert order_of(data, sources=[a, b]).amounts is None


def test_curriculum_by_length_column_and_margin(tmp_path: Path) -> None:
    rows = [{**row, "level": 9 - i, "chosen": "It is " + "blue " * (i % 4) + "."} for i, row in enumerate(pairs(10))]
    source = file(tmp_path, "rows", *rows)
    data = load(source=source)
    by_length = order_of(data, curriculum={"by": "length"}).epoch(0)
    assert (np.diff(data.train.lengths()[by_length]) >= 0).all()
    assert order_of(data, curriculum={"by": "level"}).epoch(0).tolist() == list(range(9, -1, -1))
    assert order_of(data, curriculum={"by": "level", "descending": True}).epoch(0).tolist() == list(range(10))
    margins = np.array([3.0, -1, 2, 0, 1, 9, 8, 7, 6, 5])
    section = DataConfig(curriculum={"by": "margin"})  # type: ignore[arg-type]
    sure = row_order(section, data.train, 0, lambda: margins).epoch(0)
    assert (np.diff(margins[sure]) <= 0).all(), "what the start model is sure of is easy"
    with pytest.raises(ConfigError, match="margin needs preference rows"):
        row_order(section, data.train, 0)


def test_groups_and_phases_by_name(tmp_path: Path) -> None:
    rows = [{**row, "topic": "ab"[i % 2]} for i, row in enumerate(pairs(20))]
    data = load(source=file(tmp_path, "rows", *rows))
    section = {
        "group_by": "topic",
        "phases": [{"until": 0.5, "weights": {"a": 1}}, {"until": 1, "weights": {"b": 1, "a": 1}}],
    }
    order = order_of(data, **section)
    topics = [{data.train[row].fields["topic"] for row in order.step(4, step, 8)} for step in range(8)]
    assert topics[:4] == [{"a"}] * 4
    assert all(len(topic) == 1 for topic in topics)
    assert {"b"} in topics[4:]


BROKEN_ORDERS: dict[str, tuple[dict[str, Any], str]] = {
    "no such column": (
        {"curriculum": {"by": "levle"}},
        '{file}:1: no column "levle" for data.curriculum.by, did you mean "level"? (the row has level, name)',
    ),
    "no number": (
        {"curriculum": {"by": "name"}},
        "{file}:1: \"name\" is 'n0', and data.curriculum.by needs a number",
    ),
    "no such group": (
        {"group_by": "topic"},
        '{file}:1: no column "topic" for data.group_by (the row has level, name)',
    ),
    "phases of one source": (
        {"phases": [{"until": 1, "weights": {"x": 1}}]},
        "data.phases changes the mix of several data.sources, or of what data.group_by tells apart",
    ),
    "phase of nobody": (
        {"group_by": "name", "phases": [{"until": 1, "weights": {"n9": 1}}]},
        'data.phases[0].weights names "n9"; known are n0, n1, n2',
    ),
    "phase of nothing": (
        {"group_by": "name", "phases": [{"until": 1, "weights": {"n1": 0}}]},
        "data.phases[0].weights takes no rows at all",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ORDERS)
def test_orders_that_cannot_be(tmp_path: Path, case: str) -> None:
    section, says = BROKEN_ORDERS[case]
    path = file(tmp_path, "rows", *[{**row, "level": i, "name": f"n{i}"} for i, row in enumerate(pairs(3))])
    with pytest.raises(AlignError) as caught:
        order_of(load(source=path), **section)
    assert str(caught.value) == says.replace("{file}", path)


BROKEN_SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "weights for some": (
        {"sources": [{"source": "a", "weight": 1}, "b"]},
        "some sources have a weight and some have none",
    ),
    "weight and repeat": ({"sources": [{"source": "a", "weight": 1, "repeat": 2}]}, "set one of them"),
    "one name twice": ({"sources": ["a/x.jsonl", "b/x.jsonl"]}, "two sources have one name"),
    "phases that fall": ({"phases": [{"until": 1, "weights": {}}, {"until": 0.5, "weights": {}}]}, "must rise"),
    "phases that end early": ({"phases": [{"until": 0.5, "weights": {}}]}, "the last one must be 1"),
    "a fold too many": ({"folds": 3, "fold": 3}, "fold 3 of 3 folds"),
    "source and sources": (
        {"source": "a.jsonl", "sources": ["b.jsonl"]},
        r"source \(a.jsonl\) and sources are both given: name the data in one of them",
    ),
    "no weight at all": ({"sources": [{"source": "a", "weight": 0}]}, "greater than 0"),
}


@pytest.mark.parametrize("case", BROKEN_SECTIONS)
def test_sections_that_cannot_be(case: str) -> None:
    section, says = BROKEN_SECTIONS[case]
    with pytest.raises(ValidationError, match=says):
        DataConfig(**section)


def test_what_a_source_leaves_open_is_as_the_section_has_it() -> None:
    section = DataConfig(
        sources=["a.jsonl", {"source": "b.jsonl", "columns": {}, "limit": 3}],  # type: ignore[list-item]
        columns={"prompt": "q"},
        pairs="all",
        limit=9,
    )
    a, b = section.parts
    assert (a.columns, a.pairs, a.limit) == ({"prompt": "q"}, "all", 9)
    assert (b.columns, b.pairs, b.limit) == ({}, "all", 3)
    assert DataConfig(**section.model_dump()) == section, "a run's own run.yaml repeats it"


def test_folds_hold_every_row_out_once(tmp_path: Path) -> None:
    source = file(tmp_path, "rows", *pairs(30))
    held = [{e.id for e in load(source=source, folds=3, fold=fold).eval} for fold in range(3)]
    assert sorted(name for fold in held for name in fold) == sorted(f"p{i}" for i in range(30))
    assert all(len(fold) == 10 for fold in held)


# ------------------------------------------------------------------------------------------------ answers to pairs

RATED = {"prompt": "sky?", "answers": ["blue", "green", "red", "grey"], "ratings": [5, 1, 3, 3]}


def made(path: str, kind: RowKind = "preference", **data: Any) -> list[tuple[str, ...]]:
    return [tuple(map(str, row.answers)) for row in load(kind, source=path, max_dropped=1.0, **data).train_rows]


def test_rated_answers_become_pairs(tmp_path: Path) -> None:
    path = file(tmp_path, "rated", RATED, {**RATED, "prompt": "sea?", "ratings": [1, 1, 1, 1]})
    assert made(path) == [("blue", "green")]
    data = load(source=path, max_dropped=0.5)
    assert (
        data.report.sources[0].dropped["no two answers to its prompt that are rated differently"].first == f"{path}:2"
    )
    assert [e.fields["margin"] for e in data.train] == [4]
    both = load(source=path, pairs="all", max_dropped=0.5).train_rows
    found = {row.answers: row.fields["margin"] for row in both}
    assert found == {
        ("blue", "green"): 4,
        ("blue", "red"): 2,
        ("blue", "grey"): 2,
        ("red", "green"): 2,
        ("grey", "green"): 2,
    }
    assert len({row.id for row in both}) == 5
    assert {row.cluster for row in both} == {both[0].cluster}


def test_rows_of_one_prompt_become_pairs_and_back(tmp_path: Path) -> None:
    rows = [
        {"prompt": "sky?", "completion": "blue", "label": True},
        {"prompt": "sea?", "completion": "wet", "label": True},
        {"prompt": "sky?", "completion": "green", "label": False},
        {"prompt": "sky?", "completion": "azure", "label": 1},
    ]
    path = file(tmp_path, "unpaired", *rows)
    assert made(path, pairs="all") == [("blue", "green"), ("azure", "green")]
    assert made(path, pairs="best_worst") == [("blue", "green")]
    assert sorted(made(path, "unpaired")) == [("azure",), ("blue",), ("green",), ("wet",)]
    with pytest.raises(
        DataError, match=r"map names with data\.columns, or pair the answers of one prompt with data\.pairs"
    ):
        load(source=path)
    rated = file(
        tmp_path,
        "scores",
        *[{"q": "sky?", "a": text, "s": score} for text, score in zip("xyz", (2, 0, 1), strict=True)],
    )
    columns = {"prompt": "q", "completion": "a", "rating": "s"}
    assert made(rated, pairs="best_worst", columns=columns) == [("x", "y")]
    assert made(rated, "unpaired", pairs="best_worst", columns=columns) == [("x",), ("y",)]


BROKEN_ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "lists of two lengths": (
        {**RATED, "ratings": [1]},
        {},
        '"answers" and "ratings" are 4 and 1 long, expected two lists of one length',
    ),
    "no lists": (
        {**RATED, "ratings": 3},
        {},
        '"answers" and "ratings" are a list and a number, expected two lists of one length',
    ),
    "a rating of words": ({**RATED, "ratings": [1, 2, "good", 4]}, {}, "a rating is 'good', expected a number"),
    "no rating": (
        {"prompt": "a", "completion": "b"},
        {"pairs": "all"},
        "preference rows need prompt, chosen and rejected; this row has prompt, completion; map names with data.columns",
    ),
    "a label that is none": (
        {"prompt": "a", "completion": "b", "label": "maybe"},
        {"pairs": "all"},
        "\"label\" is 'maybe', expected true or false",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ANSWERS)
def test_answers_that_cannot_be_paired(tmp_path: Path, case: str) -> None:
    row, section, says = BROKEN_ANSWERS[case]
    path = file(tmp_path, "rows", row)
    with pytest.raises(DataError) as caught:
        load(source=path, **section)
    assert str(caught.value) == f"{path}:1: {says}"


# ------------------------------------------------------------------------------------------------ templates, tools, turns


def test_templates_that_cannot_be_filled(tmp_path: Path) -> None:
    path = file(tmp_path, "rows", *pairs(2))
    with pytest.raises(DataError, match=rf"^{path}:1: data\.template: 'question' is undefined$"):
        load(source=path, template={"prompt": "{{ question }}"})
    with pytest.raises(ConfigError, match=r"^data\.template\.prompt: "):
        load(source=path, template={"prompt": "{{ question "})
    with pytest.raises(DataError, match="unsafe"):
        load(source=path, template={"prompt": "{{ prompt.__class__.__mro__ }}"})


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_templates_end_answers_and_extend_prompts(tmp_path: Path, name: str) -> None:
    bare = make_tokenizer(chat=False)
    bare.save_pretrained(tmp_path / "bare")
    tokenizer = load_tokenizer(ModelConfig(name="x", tokenizer=str(tmp_path / "bare"), chat_template=name), "unused")
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "sky?"}],
        "chosen": [{"role": "assistant", "content": "blue"}],
        "rejected": [{"role": "assistant", "content": "green"}],
    }
    (example,) = load(tokenizer=tokenizer, source=file(tmp_path, "chat", row)).train
    prompt, chosen = tokenizer.decode(example.prompt), tokenizer.decode(example.completions[0])
    assert "Be brief." in prompt
    assert "sky?" in prompt
    assert chosen.strip().startswith("blue")
    assert chosen.strip().endswith("</s>")
    assert "green" in tokenizer.decode(example.completions[1])


def test_a_template_that_is_none(tmp_path: Path) -> None:
    make_tokenizer(chat=False).save_pretrained(tmp_path / "bare")

    def tokenizer(template: str) -> Any:
        return load_tokenizer(ModelConfig(name="x", tokenizer=str(tmp_path / "bare"), chat_template=template), "unused")

    with pytest.raises(
        AlignError, match=r'"chatmll" is no Jinja template, no file, and no name, did you mean "chatml"\?'
    ):
        tokenizer("chatmll")
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    with pytest.raises(AlignError, match=r"broken\.jinja: line 2 is no Jinja"):
        tokenizer(str(tmp_path / "broken.jinja"))


TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks a word up.", "parameters": None}}


def test_tools_reach_the_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}{% for tool in tools %}{{ tool.function.name }};{{ tool.function | length }}\n{% endfor %}{% endif %}"
        + str(tokenizer.chat_template)
    )
    row = {"messages": [{"role": "user", "content": "sky?"}, {"role": "assistant", "content": "blue"}]}
    rows = [{**row, "tools": [TOOL]}, {**row, "tools": json.dumps([TOOL])}, {**row, "tools": []}, row]
    data = load("completion", tokenizer, source=file(tmp_path, "tools", *rows))
    texts = [tokenizer.decode(e.prompt) for e in data.train]
    assert ["look_up;2\n" in text for text in texts] == [True, True, False, False], (
        "less what a table filled with nulls"
    )
    assert texts[2] == texts[3]
    assert [row.tools is None for row in data.train_rows] == [False, False, True, True]
    with pytest.raises(DataError, match=r':1: "tools" is text, expected a list|:1: "tools" is broken JSON'):
        load("completion", tokenizer, source=file(tmp_path, "bad", {**row, "tools": "look_up"}))


def test_the_loss_is_on_all_turns_of_the_assistant(tmp_path: Path) -> None:
    turns = [
        ("user", "sky?"),
        ("assistant", "blue"),
        ("user", "sea?"),
        ("assistant", "It is green."),
        ("user", "I do not know"),
    ]
    messages = [{"role": role, "content": text} for role, text in turns]
    row = {"messages": [*messages, {"role": "assistant", "content": "four"}]}
    path = file(tmp_path, "talk", row, {"messages": messages[:2]})
    last, every = load("completion", source=path).train, load("completion", source=path, train_on="all").train
    decode = TOKENIZER.decode
    assert decode(last[0].completions[0]) == "four<|end|>\n"
    assert last[0].masks is None
    first = every[0]
    assert decode([*first.prompt, *first.completions[0]]) == decode([*last[0].prompt, *last[0].completions[0]])
    assert first.masks is not None
    (mask,) = first.masks
    assert mask is not None
    scored = decode([t for t, on in zip(first.completions[0], mask, strict=True) if on])
    assert scored == "blue<|end|>\nIt is green.<|end|>\nfour<|end|>\n"
    assert every[1].masks is None, "one turn needs no mask"
    assert first.scored_tokens(0) == sum(mask)
    cut = load("completion", source=path, train_on="all", max_length=len(first.prompt) + 6).train
    assert all(len(e.prompt) + len(e.completions[0]) <= len(first.prompt) + 6 for e in cut)


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{% if not loop.last and m.role == 'assistant' %}-{% else %}{{ m.content }}"
        "{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    talk = [{"role": role, "content": "sky"} for role in ("user", "assistant", "user", "assistant")]
    path = file(tmp_path, "talk", {"messages": talk})
    with pytest.raises(
        DataError, match=r":1: the chat template writes turn 2 differently once others follow.*train_on: last"
    ):
        load("completion", tokenizer, source=path, train_on="all")


# ------------------------------------------------------------------------------------------------ on the command line


@pytest.mark.slow
def test_a_mixed_run_with_phases_trains(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data_path("train").open()]
    write_jsonl(tmp_path / "easy.jsonl", rows[:120])
    write_jsonl(tmp_path / "hard.jsonl", rows[120:240])
    (tmp_path / "run.yaml").write_text(
        """
method: orpo
model: demo
data:
  sources:
    - easy.jsonl
    - {source: hard.jsonl, limit: 80}
  phases:
    - {until: 0.5, weights: {easy: 1}}
    - {until: 1.0, weights: {easy: 1, hard: 3}}
  curriculum: {by: margin, buckets: 4}
  check: {most: {duplicate: 0.5}}
train: {max_steps: 6, per_device_train_batch_size: 4}
eval: {suites: prefs, samples: 0}
run: {plots: false}
"""
    )
    done = align("run", "run.yaml", "--name", "mixed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "runs" / "mixed" / "run.json").read_text())
    assert record["status"] == "finished"
    assert [Path(source["source"]).name for source in record["data"]["sources"]] == ["easy.jsonl", "hard.jsonl"]


def test_rules_with_a_limit_refuse_a_run(tmp_path: Path) -> None:
    source = file(tmp_path, "rows", *pairs(9), {**pairs(1)[0], "id": "again"})
    data = load(source=source)
    (line,) = check_before_training(data, CheckConfig())
    assert line == (
        f"data check: 1 (10.0%) rows that stand there twice [duplicate] (first: {source}:10: the same as {source}:1)"
    )
    assert check_before_training(data, CheckConfig(enabled=False)) == []
    assert check_before_training(data, CheckConfig(most={"duplicate": 0.1})) == [line]
    with pytest.raises(DataError) as caught:
        check_before_training(data, CheckConfig(most={"duplicate": 0.05}))
    assert str(caught.value) == (
        "data check: 1 of 10 rows (10.0%): rows that stand there twice [duplicate], and data.check.most allows 5.0% "
        f"(first: {source}:10: the same as {source}:1)"
    )
    with pytest.raises(ConfigError, match=r'unknown rule "leek", did you mean "leak"\?'):
        check_before_training(data, CheckConfig(most={"leek": 0}))
    leaky = load(source=source, eval_source=file(tmp_path, "held", pairs(3)[2]))
    with pytest.raises(DataError, match=r"\[leak\], and data.check.most allows 0.0%"):
        check_before_training(leaky, CheckConfig(most={"leak": 0}))
