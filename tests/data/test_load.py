"""From configuration to tokenised rows: counts, the held-out split, the cache, the order of rows."""

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
from alignkit.data.load import Data, load_data
from alignkit.data.rows import digest
from alignkit.data.table import cache as cache_module
from alignkit.data.table.split import held_out
from alignkit.data.table.tokenised_rows import TokenisedRows
from alignkit.data.tokenise.encode import SEGMENTS
from alignkit.errors import ConfigError, DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.data import make_tokenizer, pairs, write_jsonl

TOKENIZER = make_tokenizer()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def load(source: Path, kind: RowKind = "preference", tokenizer: Any = TOKENIZER, **data: Any) -> Data:
    return load_data(RunConfig(method="m", data={"source": str(source)} | data), kind, tokenizer)


def same(first: TokenisedRows, second: TokenisedRows) -> bool:
    return list(first) == list(second) and first.fingerprint == second.fingerprint


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
    assert f"1 completion of special tokens alone (first: {path}:7)" in message
    assert len(load(path, max_dropped=0.1).train) > 0


def test_all_rows_unusable_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    rows = [row | {"chosen": ""} for row in pairs(3)]
    with pytest.raises(DataError, match=r"3 of 3 rows cannot be used \(none is left\): 3 empty completion"):
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
        assert "none is left" in refused or "data.max_length" in refused
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


# ------------------------------------------------------------------------------------------------ held out


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
        assert "cannot be cut" in str(error) or "share one prompt" in str(error)  # noqa: PT017
        return
    assert all(any(part) for part in parts)
    assert [sum(row) for row in zip(*parts, strict=True)] == [1] * len(which)


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
    assert (Path(trained.source).stem, Path(held_out.source).stem) == ("train", "test")
    assert {e.cluster for e in data.train}.isdisjoint(e.cluster for e in data.eval)
    with pytest.raises(
        DataError, match=r'demo has no split "tests", did you mean "test"\?; its splits are train, dev, test'
    ):
        load_data(RunConfig(method="m", data={"eval_split": "tests"}), "preference", TOKENIZER)


# ------------------------------------------------------------------------------------------------ cache


def test_cache_hit_equals_miss_and_corrupt_files_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl", [*pairs(10), {"id": "x", "prompt": "a", "chosen": "</s>", "rejected": "b"}]
    )
    miss = load(path, max_dropped=0.2)
    (file,) = (tmp_path / "cache" / "tokens").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr("alignkit.data.load.encode", lambda *a: pytest.fail("tokenised in spite of the cache"))
        hit = load(path, max_dropped=0.2)
    assert same(hit.train, miss.train)
    assert same(hit.eval, miss.eval)
    assert hit.report == miss.report
    whole = file.read_bytes()
    for corrupt in (
        b"",
        whole[:-30],
        whole[: len(whole) // 2],
        b"\0" * len(whole),
        whole.replace(b"alignkit", b"misalign"),
    ):
        file.unlink()  # the rows of the first load are still mapped from it
        file.write_bytes(corrupt)
        assert same(load(path, max_dropped=0.2).train, miss.train)
        assert file.read_bytes() == whole
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]  # nothing temporary is left behind


def test_processes_may_share_the_cache(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(50))
    code = (
        "import sys; from pathlib import Path; from tests.data.test_load import load; "
        "print(load(Path(sys.argv[1])).report.fingerprint)"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in running}
    assert printed == {load(path).report.fingerprint}
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_cache_key_is_rows_tokenizer_and_rules(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(10))
    folder = tmp_path / "cache" / "tokens"
    other_template = make_tokenizer()
    other_template.chat_template = "{{ messages }}"
    for files, (tokenizer, options) in enumerate(
        [
            (TOKENIZER, {}),
            (make_tokenizer(adds_bos=False), {}),
            (make_tokenizer(eos=False), {}),
            (other_template, {}),
            (TOKENIZER, {"max_length": 30}),
            (TOKENIZER, {"append_eos": False}),
            (TOKENIZER, {"limit": 9}),
        ],
        1,
    ):
        load(path, tokenizer=tokenizer, **options)
        assert len(list(folder.iterdir())) == files
    load(path, eval_split=0.3, max_dropped=0.5)  # neither changes a token
    load(path, tokenizer=make_tokenizer())
    assert len(list(folder.iterdir())) == files


def test_cache_directory_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "file"))
    data = load(write_jsonl(tmp_path / "rows.jsonl", pairs(10)))
    assert len(data.train) + len(data.eval) == 10
    assert "tokenised rows are not cached" in caplog.text


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_module.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("ALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_module.cache_directory() == Path("/x/alignkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_module.cache_directory() == Path.home() / ".cache" / "alignkit"


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
    assert digest("a") == digest("a") != digest("b")
    assert digest(({"role": "user", "content": "a"},)) == digest(({"content": "a", "role": "user"},))


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
