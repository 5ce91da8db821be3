"""The order of rows from the configuration: mixes, curricula, groups, phases; and checks before training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit.config import CheckConfig, DataConfig
from alignkit.data.load import Data
from alignkit.data.order import RowOrder, row_order
from alignkit.data.rows import UniqueIds
from alignkit.demo import data_path
from alignkit.errors import AlignError, ConfigError, DataError
from alignkit_checks.before_training import check_before_training
from pydantic import ValidationError

from tests.helpers.data import load_all, pairs, write_jsonl
from tests.helpers.runs import align


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
    data = load_all(sources=sources)
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
    data = load_all(sources=[one, two], eval_split=0.25)
    prompts = [{tuple(e.prompt) for e in part} for part in (data.train, data.eval)]
    assert prompts[0].isdisjoint(prompts[1])
    assert len(data.eval) == 20
    limited = load_all(sources=[one, two], eval_split=0.25, eval_limit=6)
    assert Counter(e.fields["source"] for e in limited.eval) == {"one": 3, "two": 3}
    completions = limited.held_out.examples("completion")
    assert [e.id for e in completions] == [e.id for e in limited.eval]


def test_ids_and_groups_of_several_sources_are_told_apart(tmp_path: Path) -> None:
    """Numbers from 0 as ids, in another order than the rows, the same in two sources, and once twice in one."""
    rows = [{"id": i, "prompt": f"{i}?", "chosen": "yes", "rejected": ["no", "maybe"]} for i in (3, 1, 0, 2, 3)]
    one = file(tmp_path, "one", *rows)
    two = file(tmp_path, "two", *[{**row, "prompt": "And " + str(row["prompt"])} for row in rows])
    data = load_all(sources=[one, two])
    assert Counter(Counter(e.fields["group"] for e in data.train).values()) == {2: 10}
    assert len({e.id for e in data.train}) == 20
    assert UniqueIds().unique(["a#2", "a", "a"]) == ["a#2", "a", "a#2#2"]
    assert [e.id for e in data.train][:6] == ["3/0", "3/1", "1/0", "1/1", "0/0", "0/1"]
    assert (
        [data.train_rows[i].id for i in range(20)] == [e.id for e in data.train] == data.train.column("id").to_pylist()
    )


def test_eval_limit_is_that_of_all_sources_together(tmp_path: Path) -> None:
    for name, held in (("one", 7), ("two", 2)):
        (tmp_path / name).mkdir()
        file(tmp_path / name, "train", *named(name, 4))
        file(tmp_path / name, "test", *named(f"held {name}", held))
    sources = [str(tmp_path / "one"), str(tmp_path / "two")]
    data = load_all(sources=sources, eval_split="test", eval_limit=5)
    assert [row.prompt.split()[1] for row in data.held_out.rows("preference")] == ["one"] * 3 + ["two"] * 2
    assert [e.id for e in data.held_out.examples("completion")] == [e.id for e in data.eval]
    assert [(report.read, report.kept) for report in data.report.sources] == [(4, 4), (4, 4), (3, 3), (2, 2)]


def test_weights_and_repeats(tmp_path: Path) -> None:
    a, b = file(tmp_path, "a", *named("a", 30)), file(tmp_path, "b", *named("b", 10))
    weighted = {"sources": [{"source": a, "weight": 3}, {"source": b, "weight": 2}]}
    data = load_all(**weighted)
    order = order_of(data, **weighted)
    assert order.amounts == (15, 10)
    rows = Counter(data.train[int(i)].fields["source"] for i in order.epoch(0))
    assert rows == {"a": 15, "b": 10}
    assert list(order.described(DataConfig(**weighted).names)) == [
        "a: 15 rows per epoch of 30 (0.50 times), 60.0% of all",
        "b: 10 rows per epoch of 10 (1.00 times), 40.0% of all",
    ]
    assert order_of(data, **weighted, exhausted="all").amounts == (30, 20)
    repeated = {"sources": [{"source": a, "repeat": 0.5}, {"source": b, "repeat": 3}]}
    assert order_of(load_all(**repeated), **repeated).amounts == (15, 30)
    assert order_of(data, sources=[a, b]).amounts is None


def test_a_source_of_which_every_row_is_held_out(tmp_path: Path) -> None:
    sources = [
        {"source": file(tmp_path, name, *named(name, n)), "repeat": 2} for name, n in (("many", 6), ("single", 1))
    ]
    refused = []
    for fold in range(7):
        data = load_all(sources=sources, folds=7, fold=fold)
        try:
            assert len(order_of(data, sources=sources).epoch(0)) == 12
        except DataError as error:
            refused.append(str(error))
    assert refused == ["data.sources: every row of single is held out, and none is left to repeat or to weigh"]


def test_curriculum_by_length_column_and_margin(tmp_path: Path) -> None:
    rows = [{**row, "level": 9 - i, "chosen": "It is " + "blue " * (i % 4) + "."} for i, row in enumerate(pairs(10))]
    source = file(tmp_path, "rows", *rows)
    data = load_all(source=source)
    by_length = order_of(data, curriculum={"by": "length"}).epoch(0)
    assert (np.diff(data.train.lengths()[by_length]) >= 0).all()
    assert order_of(data, curriculum={"by": "level"}).epoch(0).tolist() == list(range(9, -1, -1))
    assert order_of(data, curriculum={"by": "level", "descending": True}).epoch(0).tolist() == list(range(10))
    margins = np.array([3.0, -1, 2, 0, 1, 9, 8, 7, 6, 5])
    section = DataConfig(curriculum={"by": "margin"})  # type: ignore[arg-type]
    sure = row_order(section, data.train, 0, lambda: margins).epoch(0)
    assert (np.diff(margins[sure]) <= 0).all(), "a large margin of the start model counts as easy"
    with pytest.raises(ConfigError, match="margin needs a method with preference rows"):
        row_order(section, data.train, 0)


def test_groups_and_phases_by_name(tmp_path: Path) -> None:
    rows = [{**row, "topic": "ab"[i % 2]} for i, row in enumerate(pairs(20))]
    data = load_all(source=file(tmp_path, "rows", *rows))
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
        "{file}:1: \"name\" is 'n0', but data.curriculum.by needs a number",
    ),
    "no such group": (
        {"group_by": "topic"},
        '{file}:1: no column "topic" for data.group_by (the row has level, name)',
    ),
    "phases of one source": (
        {"phases": [{"until": 1, "weights": {"x": 1}}]},
        "data.phases needs several data.sources, or data.group_by",
    ),
    "phase of an unknown source": (
        {"group_by": "name", "phases": [{"until": 1, "weights": {"n9": 1}}]},
        'data.phases[0].weights: unknown name "n9" (known: n0, n1, n2)',
    ),
    "phase of nothing": (
        {"group_by": "name", "phases": [{"until": 1, "weights": {"n1": 0}}]},
        "data.phases[0].weights must have at least one weight above 0",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ORDERS)
def test_orders_that_cannot_be(tmp_path: Path, case: str) -> None:
    section, expected = BROKEN_ORDERS[case]
    path = file(tmp_path, "rows", *[{**row, "level": i, "name": f"n{i}"} for i, row in enumerate(pairs(3))])
    with pytest.raises(AlignError) as caught:
        order_of(load_all(source=path), **section)
    assert str(caught.value) == expected.replace("{file}", path)


BROKEN_SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "weights for some": (
        {"sources": [{"source": "a", "weight": 1}, "b"]},
        "set a weight for every source or for none",
    ),
    "weight and repeat": ({"sources": [{"source": "a", "weight": 1, "repeat": 2}]}, "set one of them"),
    "one name twice": ({"sources": ["a/x.jsonl", "b/x.jsonl"]}, "two sources have the same name"),
    "phases that fall": ({"phases": [{"until": 1, "weights": {}}, {"until": 0.5, "weights": {}}]}, "must increase"),
    "phases that end early": ({"phases": [{"until": 0.5, "weights": {}}]}, "the last one must be 1"),
    "a fold too many": ({"folds": 3, "fold": 3}, r"fold must be less than folds \(3\), not 3"),
    "source and sources": (
        {"source": "a.jsonl", "sources": ["b.jsonl"]},
        r"source \(a.jsonl\) and sources are both set: use only one of them",
    ),
    "no weight at all": ({"sources": [{"source": "a", "weight": 0}]}, "greater than 0"),
}


@pytest.mark.parametrize("case", BROKEN_SECTIONS)
def test_sections_that_cannot_be(case: str) -> None:
    section, expected = BROKEN_SECTIONS[case]
    with pytest.raises(ValidationError, match=expected):
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
    held = [{e.id for e in load_all(source=source, folds=3, fold=fold).eval} for fold in range(3)]
    assert sorted(name for fold in held for name in fold) == sorted(f"p{i}" for i in range(30))
    assert all(len(fold) == 10 for fold in held)


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
    data = load_all(source=source)
    (line,) = check_before_training(data, CheckConfig())
    assert line == (f"data check: 1 (10.0%) duplicate rows [duplicate] (first: {source}:10: the same as {source}:1)")
    assert check_before_training(data, CheckConfig(enabled=False)) == []
    assert check_before_training(data, CheckConfig(most={"duplicate": 0.1})) == [line]
    with pytest.raises(DataError) as caught:
        check_before_training(data, CheckConfig(most={"duplicate": 0.05}))
    assert str(caught.value) == (
        "data check: 1 of 10 rows (10.0%): duplicate rows [duplicate], but data.check.most allows 5.0% "
        f"(first: {source}:10: the same as {source}:1)"
    )
    with pytest.raises(ConfigError, match=r'unknown rule "leek", did you mean "leak"\?'):
        check_before_training(data, CheckConfig(most={"leek": 0}))
    leaky = load_all(source=source, eval_source=file(tmp_path, "held", pairs(3)[2]))
    with pytest.raises(DataError, match=r"\[leak\], but data.check.most allows 0.0%"):
        check_before_training(leaky, CheckConfig(most={"leak": 0}))
