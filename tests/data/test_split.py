"""Held-out rows: no cluster or prompt on both sides; shares, folds, limits, named splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit.data.table.split import held_out
from alignkit.errors import ConfigError, DataError
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data import load, pairs, same, write_jsonl


def test_split_never_leaks_a_cluster_or_prompt(tmp_path: Path) -> None:
    # A prompt is shared by two clusters, so both clusters must stay on one side.
    rows = [row | {"cluster": f"c{i // 3}", "prompt": f"How much is {i // 6}? "} for i, row in enumerate(pairs(120))]
    data = load(write_jsonl(tmp_path / "rows.jsonl", rows), eval_split=0.2)
    prompts = [{tuple(e.prompt) for e in part} for part in (data.train, data.eval)]
    clusters = [{e.cluster for e in part} for part in (data.train, data.eval)]
    assert prompts[0].isdisjoint(prompts[1])
    assert clusters[0].isdisjoint(clusters[1])
    assert data.report.shared_prompts == 0
    assert len(data.train) + len(data.eval) == 120


def test_share_is_met_and_same_rows_are_held_out_whatever_they_are_used_for(tmp_path: Path) -> None:
    rows = pairs(100)
    rows[0]["rejected"] = rows[0]["chosen"]  # unusable as a pair, usable as a completion
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    preference, completion = load(path, eval_split=0.2), load(path, "completion", eval_split=0.2)
    assert len(completion.eval) == 20
    held = {e.id for e in completion.eval}
    assert {e.id for e in preference.eval} == held - {"p0"}
    assert {e.id for e in load(path, "unpaired", eval_split=0.2).eval} == {
        f"{i}/{side}" for i in held for side in ("chosen", "rejected")
    }
    assert same(completion.held_out.examples("preference"), preference.eval)
    assert same(preference.held_out.examples("completion"), completion.eval)
    assert preference.held_out.examples("preference") is preference.eval
    assert preference.held_out.examples("completion") is preference.held_out.examples("completion")


def test_held_out_rows_that_cannot_serve(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(10)]
    data = load(write_jsonl(tmp_path / "rows.jsonl", rows), "completion")
    with pytest.raises(DataError, match="preference rows need prompt, chosen and rejected"):
        data.held_out.examples("preference")


def test_eval_source_and_shared_prompts_are_said(tmp_path: Path) -> None:
    train, test = write_jsonl(tmp_path / "a.jsonl", pairs(10)), write_jsonl(tmp_path / "b.jsonl", pairs(12)[8:])
    data = load(train, eval_source=str(test))
    assert [e.id for e in data.eval] == ["p8", "p9", "p10", "p11"]
    assert [row.id for row in data.held_out.rows(data.kind)] == ["p8", "p9", "p10", "p11"]
    assert (len(data.train), data.report.shared_prompts) == (10, 2)
    assert any("2 held-out rows have a prompt that is also trained on" in line for line in data.report.lines())
    assert len(load(train, eval_source=str(test), eval_limit=3).eval) == 3
    assert len(data.held_out.examples("completion")) == 4


def test_named_splits_of_a_directory(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", pairs(5))
    write_jsonl(tmp_path / "dev.jsonl", pairs(9)[5:])
    data = load(tmp_path, eval_split="dev")
    assert (len(data.train), len(data.eval)) == (5, 4)


def test_limits(tmp_path: Path) -> None:
    data = load(write_jsonl(tmp_path / "rows.jsonl", pairs(100)), limit=40, eval_split=0.5, eval_limit=7)
    assert (len(data.train), len(data.eval), data.report.sources[0].read) == (20, 7, 40)
    assert len(data.held_out.examples("completion")) == 7


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.eval_split is"):
        held_out(["a"], ["a"], share, "rows.jsonl")


def test_one_group_cannot_be_split() -> None:
    clusters, prompts = ["x", "y", "y"], ["a", "a", "b"]
    with pytest.raises(DataError, match="all rows share one prompt or cluster"):
        held_out(clusters, prompts, 0.5, "rows.jsonl")
    assert not held_out(clusters, prompts, 0.0, "rows.jsonl").any()


ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=40)


def _split(which: list[tuple[int, int]], share: float, fold: tuple[int, int] | None = None) -> list[bool]:
    clusters, prompts = [f"c{c}" for _, c in which], [f"p{p}" for p, _ in which]
    held: list[bool] = held_out(clusters, prompts, share, "rows.jsonl", fold).tolist()
    for values in (clusters, prompts):
        sides = [{value for value, out in zip(values, held, strict=True) if out is side} for side in (True, False)]
        assert sides[0].isdisjoint(sides[1])
    return held


@given(ROWS, st.floats(0.01, 0.99))
def test_split_property(which: list[tuple[int, int]], share: float) -> None:
    try:
        held = _split(which, share)
    except DataError:
        return
    assert 0 < sum(held) < len(which)
    assert _split(which[::-1], share) == held[::-1]  # the order of rows does not matter


@given(ROWS, st.integers(2, 6))
def test_every_row_is_in_one_fold(which: list[tuple[int, int]], folds: int) -> None:
    try:
        parts = [_split(which, 0.1, (fold, folds)) for fold in range(folds)]
    except DataError as error:
        assert "cannot be split into" in str(error) or "share one prompt" in str(error)  # noqa: PT017
        return
    assert all(any(part) for part in parts)
    assert [sum(row) for row in zip(*parts, strict=True)] == [1] * len(which)
