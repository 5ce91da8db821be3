"""Malformed and nasty data, each with the exact sentence a user gets; and whatever random rows go in, a run trains or says why not."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import pytest
from alignkit.config import RunConfig
from alignkit.contract.types import RowKind
from alignkit.data.load import load_data
from alignkit.data.order.mixing import row_order
from alignkit.errors import AlignError
from alignkit.testing.engine import build_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.data import make_tokenizer, pairs
from tests.helpers.engine import tiny_llama

TOKENIZER = make_tokenizer()
GOOD = [json.dumps(row) for row in pairs(4)]


def lines(*rows: Any, at: int = 2) -> bytes:
    """Good rows with others from line ``at`` + 1 on."""
    made = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    encoded = [row.encode() if isinstance(row, str) else row for row in [*GOOD[:at], *made, *GOOD[at:]]]
    return b"".join(row + b"\n" for row in encoded)


def changed(**columns: Any) -> bytes:
    """Good rows, and on line 3 one with other columns (``...`` leaves a column out)."""
    row = {**pairs(9)[8], **columns}
    return lines({key: value for key, value in row.items() if value is not ...})


def talk(**columns: Any) -> bytes:
    row = {
        "prompt": [{"role": "user", "content": "sky?"}],
        "chosen": [{"role": "assistant", "content": "blue"}],
        "rejected": [{"role": "assistant", "content": "green"}],
    }
    return b"".join(json.dumps(r).encode() + b"\n" for r in ({**row, **columns}, row, row))


def parquet(*rows: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


class Case(NamedTuple):
    content: bytes
    says: str
    name: str = "d.jsonl"
    section: dict[str, Any] = {}
    kind: RowKind = "preference"
    tokenizer: Callable[[], Any] = lambda: TOKENIZER


HAS = "(the row has id, prompt, chosen, rejected)"
UNUSABLE = "1 of 5 rows cannot be used (data.max_dropped allows 2%): 1"

CASES: dict[str, Case] = {
    # ---------------------------------------------------------------- JSON Lines
    "nothing": Case(b"", "{file} is empty"),
    "white space": Case(b" \n\t\n \n", "{file} holds no rows"),
    "half a line": Case(lines('{"prompt": "a'), "{file}:3: broken JSON: Unterminated string starting at (column 12)"),
    "a comma too many": Case(
        lines('{"prompt": "a",}'),
        "{file}:3: broken JSON: Expecting property name enclosed in double quotes (column 16)",
    ),
    "two objects on a line": Case(lines('{"prompt": "a"} {"b": 1}'), "{file}:3: broken JSON: Extra data (column 17)"),
    "single quotes": Case(
        lines("{'prompt': 'a'}"), "{file}:3: broken JSON: Expecting property name enclosed in double quotes (column 2)"
    ),
    "a list a line": Case(lines([1, 2]), "{file}:3: the line is a list, expected an object with the row's columns"),
    "a number a line": Case(lines("17"), "{file}:3: the line is a number, expected an object with the row's columns"),
    "a text a line": Case(lines('"prompt"'), "{file}:3: the line is text, expected an object with the row's columns"),
    "null a line": Case(lines("null"), "{file}:3: the line is null, expected an object with the row's columns"),
    "a JSON list named jsonl": Case(
        json.dumps(pairs(2), indent=1).encode(),
        "{file}:1: broken JSON: Expecting value (column 2); a file that is one JSON list is named .json",
    ),
    "nested too deeply": Case(lines("[" * 100_000), "{file}:3: broken JSON: nested too deeply"),
    "a number of ten thousand digits": Case(
        lines('{"prompt": ' + "9" * 10_000 + "}"),
        "{file}:3: broken JSON: Exceeds the limit (4300 digits) for integer string conversion: value has 10000 digits",
    ),
    "Latin-1": Case(
        lines('{"prompt": "caf\xe9"}'.encode("latin-1")), "{file}:3: not UTF-8 (byte 0xe9); save the file as UTF-8"
    ),
    "UTF-16": Case("\n".join(GOOD).encode("utf-16"), "{file}:1: the file is UTF-16; save it as UTF-8"),
    "half a surrogate pair": Case(
        lines('{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}'),
        '{file}:3: "prompt" holds half a surrogate pair, which is no character',
    ),
    "NUL bytes for a file": Case(
        b"\0" * 64,
        "{file}:1: broken JSON: Expecting value (column 1); these are NUL bytes, as in a file whose download broke off",
    ),
    "a web page": Case(
        b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        "{file}:1: broken JSON: Expecting value (column 1); this is a web page or XML",
    ),
    "a Git LFS pointer": Case(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "{file}:1: broken JSON: Expecting value (column 1); this stands for a file that Git LFS has: fetch it with git lfs pull",
    ),
    # ---------------------------------------------------------------- columns
    "a column is missing": Case(
        changed(rejected=...), '{file}:3: no "rejected" in this row (the row has id, prompt, chosen)'
    ),
    "a column is null": Case(
        changed(chosen=None), '{file}:3: "chosen" is null (the row has id, prompt, chosen, rejected)'
    ),
    "a column is a number": Case(
        changed(chosen=7), '{file}:3: "chosen" is a number, expected text or a list of messages'
    ),
    "a column is true": Case(changed(prompt=True), '{file}:3: "prompt" is true, expected text or a list of messages'),
    "a column is an object": Case(changed(chosen={"text": "x"}), '{file}:3: "chosen" has no role (its keys are text)'),
    "a column is an empty list": Case(changed(chosen=[]), '{file}:3: "chosen" is an empty list'),
    "no columns": Case(
        b"{}\n{}\n",
        "{file}:1: preference rows need prompt, chosen and rejected; this row has no columns; map names with data.columns",
    ),
    "other columns": Case(
        b'{"question": "a", "answer": "b"}\n',
        "{file}:1: preference rows need prompt, chosen and rejected; this row has question, answer; map names with data.columns",
    ),
    "a misspelt column": Case(
        b'{"prompt": "a", "choosen": "b", "rejected": "c"}\n',
        '{file}:1: preference rows need prompt, chosen and rejected; this row has prompt, choosen, rejected (choosen, did you mean "chosen"?); map names with data.columns',
    ),
    "a name that is a list": Case(changed(id=[1]), '{file}:3: "id" is a list, expected text or a number'),
    "a cluster that is an object": Case(
        changed(cluster={"a": 1}), '{file}:3: "cluster" is an object, expected text or a number'
    ),
    "a mapping of ours that is none": Case(
        lines(),
        'data.columns: unknown column "promt", did you mean "prompt"? (known: id, cluster, category, prompt, chosen, rejected, completion, label, messages, conversations, text, instruction, input, output, system, tools, answers, ratings, rating)',
        section={"columns": {"promt": "prompt"}},
    ),
    "a mapping of theirs that is none": Case(
        lines(),
        'data.columns maps prompt to "promt", which {file} does not have, did you mean "prompt"? (it has chosen, id, prompt, rejected)',
        section={"columns": {"prompt": "promt"}},
    ),
    # ---------------------------------------------------------------- rows nobody can train on
    "an empty answer": Case(
        changed(chosen=""),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 empty completion (first: {file}:3)",
    ),
    "an answer of white space": Case(
        changed(rejected=" \n\t"),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 empty completion (first: {file}:3)",
    ),
    "one answer twice": Case(
        changed(chosen="It is.", rejected="It is."),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 chosen and rejected are the same (first: {file}:3)",
    ),
    "answers alike in tokens": Case(
        changed(chosen="It is.", rejected="It is.</s>"),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 chosen and rejected are the same tokens (after truncation) (first: {file}:3)",
    ),
    "an answer of special tokens": Case(
        changed(chosen="</s><|end|>"),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 completion of special tokens alone (first: {file}:3)",
    ),
    "no text at all": Case(
        b'{"prompt": "", "chosen": "", "rejected": ""}\n' * 2,
        "{file}: 2 of 2 rows cannot be used (none is left): 2 empty completion (first: {file}:1)",
    ),
    "nothing to begin with": Case(
        b'{"prompt": "", "chosen": "It", "rejected": "no"}\n',
        "{file}: 1 of 1 rows cannot be used (none is left): 1 empty prompt, and no token to begin with (first: {file}:1)",
        tokenizer=lambda: _without_start(),
    ),
    "prompts without end": Case(
        lines(),
        "data.max_length 2 is shorter than every prompt with one token of its completion of {file} (the shortest prompt has 9 tokens)",
        section={"max_length": 2},
    ),
    "all rows of one prompt": Case(
        b"".join(json.dumps({**row, "prompt": "x"}).encode() + b"\n" for row in pairs(3)),
        "{file}: all rows share one prompt or cluster, so none can be held out; set data.eval_source",
    ),
    "one row": Case(GOOD[0].encode() + b"\n", "{file} holds one row, so none can be held out; set data.eval_source"),
    "a share beyond one": Case(
        lines(),
        "data.eval_split is 1.5, expected the name of a split or a share from 0 up to 1",
        section={"eval_split": 1.5},
    ),
    "more folds than rows": Case(
        lines(), "{file}: 4 groups of rows (clusters, prompts) cannot be cut into 9 folds", section={"folds": 9}
    ),
    # ---------------------------------------------------------------- conversations
    "a turn without a role": Case(
        talk(prompt=[{"content": "sky?"}]), '{file}:1: "prompt[0]" has no role (its keys are content)'
    ),
    "a turn of text": Case(
        talk(prompt=["sky?", 3]), '{file}:1: "prompt[0]" is text, expected a message with role and content'
    ),
    "a turn without content": Case(
        talk(prompt=[{"role": "user"}]), '{file}:1: "prompt[0].content" is null, expected text'
    ),
    "content that is a number": Case(
        talk(prompt=[{"role": "user", "content": 3}]), '{file}:1: "prompt[0].content" is a number, expected text'
    ),
    "content with a picture": Case(
        talk(prompt=[{"role": "user", "content": [{"type": "image", "url": "x"}]}]),
        '{file}:1: "prompt[0].content" holds a part of type image, and only text is read',
    ),
    "a role that is a number": Case(
        talk(prompt=[{"role": 1, "content": "x"}]), '{file}:1: "prompt[0].role" is a number, expected text'
    ),
    "a ShareGPT role nobody knows": Case(
        b'{"conversations": [{"from": "bard", "value": "x"}]}\n',
        "{file}:1: \"messages[0].from\" is 'bard', expected one of human, user, gpt, chatgpt, assistant, model, function_call, system, observation, tool",
        kind="completion",
    ),
    "a conversation of nobody": Case(b'{"messages": []}\n', '{file}:1: "messages" is an empty list', kind="completion"),
    "a conversation without an answer": Case(
        b'{"messages": [{"role": "user", "content": "x"}]}\n',
        "{file}: 1 of 1 rows cannot be used (none is left): 1 the conversation does not end with an answer (first: {file}:1)",
        kind="completion",
    ),
    "messages that are text": Case(
        b'{"messages": "hello"}\n', '{file}:1: "messages" is text, expected a list of messages', kind="completion"
    ),
    "a template that refuses": Case(
        talk(),
        "{file}:1: the chat template refuses this conversation: roles must alternate",
        tokenizer=lambda: _refusing(),
    ),
    "no template": Case(
        talk(),
        "{file}:1 is a conversation, and the tokenizer has no chat template: set model.chat_template, or write the rows as plain text",
        tokenizer=lambda: make_tokenizer(chat=False),
    ),
    "tools that are none": Case(talk(tools=[1]), '{file}:1: "tools" is a list, expected a list of function schemas'),
    "tools of broken JSON": Case(
        talk(tools="[{"),
        '{file}:1: "tools" is broken JSON: Expecting property name enclosed in double quotes: line 1 column 3 (char 2)',
    ),
    # ---------------------------------------------------------------- other kinds of rows
    "a label that is none": Case(
        b'{"prompt": "a", "completion": "b", "label": 2}\n',
        '{file}:1: "label" is 2, expected true or false',
        kind="unpaired",
    ),
    "no label": Case(
        b'{"prompt": "a", "completion": "b"}\n',
        "{file}:1: unpaired rows need prompt, completion and label (or prompt, chosen and rejected); this row has prompt, completion; map names with data.columns",
        kind="unpaired",
    ),
    "text as prompts": Case(
        b'{"text": "a"}\n',
        "{file}:1: prompt rows need prompt (or messages, instruction, chosen and rejected); this row has text; map names with data.columns",
        kind="prompt",
    ),
    "an empty prompt alone": Case(
        b'{"prompt": " "}\n',
        "{file}: 1 of 1 rows cannot be used (none is left): 1 empty prompt (first: {file}:1)",
        kind="prompt",
    ),
    # ---------------------------------------------------------------- JSON
    "broken JSON file": Case(
        b'[{"prompt": "a"},\n {"prompt": \n]', "{file}:3: broken JSON: Expecting value (column 1)", "d.json"
    ),
    "one object": Case(
        b'{"prompt": "a", "chosen": "b", "rejected": "c"}',
        "{file}:1: the file holds one object without a list of rows",
        "d.json",
    ),
    "a text for a file": Case(b'"hello"', "{file}:1: the file holds text, expected a list of objects", "d.json"),
    "a list of texts": Case(
        b'[\n"a",\n"b"]', "{file}:2: the row is text, expected an object with the row's columns", "d.json"
    ),
    "an empty list": Case(b"[]", "{file} holds no rows", "d.json"),
    "two lists": Case(
        b'{"train": [{}], "test": [{}]}',
        "{file}:1: the file holds several lists (train, test); name one as data.split",
        "d.json",
    ),
    # ---------------------------------------------------------------- CSV
    "CSV without rows": Case(b"prompt,chosen,rejected\n", "{file} holds no rows", "d.csv"),
    "CSV without a header": Case(b"\n\n", "{file}:1: no header: the first line names the columns", "d.csv"),
    "a field too few": Case(
        b"prompt,chosen,rejected\na,b,c\na,b\n", "{file}:3: 2 fields, but the header names 3 columns", "d.csv"
    ),
    "a field too many": Case(
        b"prompt,chosen,rejected\na,b,c,d\n", "{file}:2: 4 fields, but the header names 3 columns", "d.csv"
    ),
    "a column twice": Case(
        b"prompt,chosen,chosen\na,b,c\n", '{file}:1: the header names column "chosen" twice', "d.csv"
    ),
    "a quote without end": Case(
        b'prompt,chosen,rejected\n"a,b,c\n', "{file}:2: broken CSV: unexpected end of data", "d.csv"
    ),
    "CSV in Latin-1": Case(
        "prompt,chosen,rejected\na,b,caf\xe9\n".encode("latin-1"),
        "{file}:2: not UTF-8 (byte 0xe9); save the file as UTF-8",
        "d.csv",
    ),
    "CSV in UTF-16": Case(
        "prompt,chosen,rejected\na,b,c\n".encode("utf-16"), "{file}:1: the file is UTF-16; save it as UTF-8", "d.csv"
    ),
    # ---------------------------------------------------------------- binary files, names
    "no Parquet": Case(
        b"PAR1 not at all",
        "{file} cannot be read as Parquet: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.",
        "d.parquet",
    ),
    "half a Parquet": Case(
        parquet(*pairs(50))[:200],
        "{file} cannot be read as Parquet: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.",
        "d.parquet",
    ),
    "Parquet of other columns": Case(
        parquet({"a": 1}),
        "{file} row 1: preference rows need prompt, chosen and rejected; this row has a; map names with data.columns",
        "d.parquet",
    ),
    "Parquet with a null": Case(
        parquet(*pairs(2), {"id": "x", "prompt": "a", "chosen": None, "rejected": "b"}),
        '{file} row 3: "chosen" is null (the row has id, prompt, chosen, rejected)',
        "d.parquet",
    ),
    "no Arrow": Case(
        b"ARROW1 not at all",
        "{file} cannot be read as Arrow: Expected to read 1330795073 metadata bytes, but only read 13",
        "d.arrow",
    ),
    "a broken archive": Case(
        gzip.compress(lines())[:-9],
        "{file} cannot be read: Compressed file ended before the end-of-stream marker was reached",
        "d.jsonl.gz",
    ),
    "no archive": Case(lines(), "{file} cannot be read: Not a gzipped file (b'{\"')", "d.jsonl.gz"),
    "a packed Parquet": Case(b"x", "{file}: unpack it first; only the text formats are read gzipped", "d.parquet.gz"),
    "a pickle": Case(
        pickle.dumps(pairs(2)),
        "{file}: .pkl files can run code when they are loaded; save the rows as JSON Lines or Parquet",
        "d.pkl",
    ),
    "an unknown ending": Case(
        lines(),
        '{file}: unknown file type ".docx"; known are .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .feather, and .gz of the text formats',
        "d.docx",
    ),
    "no ending": Case(
        lines(),
        "{file}: no file type in the name; known are .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .feather, and .gz of the text formats",
        "data",
    ),
    "a split of one file": Case(lines(), '{file} is one file and has no split "test"', section={"split": "test"}),
    "a subset of a file": Case(
        lines(), 'data.subset "main" is for hub data sets, and {file} is a local path', section={"subset": "main"}
    ),
}


def _without_start() -> Any:
    return make_tokenizer(adds_bos=False, bos=False, eos=False)


def _refusing() -> Any:
    made = make_tokenizer()
    made.chat_template = "{{ raise_exception('roles must alternate') }}"
    return made


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_one_exact_sentence_and_nothing_lost(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = tmp_path / case.name
    path.write_bytes(case.content)
    section = {"source": str(path), "eval_split": 0.3, **case.section}
    with pytest.raises(AlignError) as caught:
        load_data(RunConfig(method="m", data=section), case.kind, case.tokenizer())
    assert caught.value.exit_code == 2
    assert str(caught.value).replace(str(path), "{file}") == case.says
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(case.content).digest()
    left = [file.name for file in (tmp_path / "cache").rglob("*") if file.suffix in (".partial", ".lock")]
    assert not left, "half-made files in the cache"


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    assert len({case.says for case in CASES.values()}) >= 60


# ------------------------------------------------------------------------------------------------ whatever goes in

WORD = st.sampled_from(
    ["", " ", "sky?", "It is blue.", "It is", "</s>", "<|end|>", "\u00e9\u0301", "\x00", "four " * 9]
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": WORD})
TALK = st.lists(TURN, max_size=4)
VALUE = st.one_of(WORD, TALK, st.none(), st.integers(-2, 2), st.booleans(), st.lists(WORD, max_size=3))
FINE = st.fixed_dictionaries({"prompt": WORD, "chosen": WORD, "rejected": WORD})
ROW = st.one_of(
    FINE,
    st.fixed_dictionaries({"prompt": VALUE, "chosen": VALUE, "rejected": VALUE}),
    st.fixed_dictionaries({"messages": TALK}),
    st.fixed_dictionaries(
        {"prompt": WORD, "answers": st.lists(WORD, max_size=3), "ratings": st.lists(st.integers(0, 3), max_size=3)}
    ),
    st.fixed_dictionaries({"prompt": WORD, "completion": WORD, "label": st.booleans()}),
)
SAID = st.sampled_from(["sky?", "It is blue.", "four", "It is <|end|>", "I do not know.", " ", "</s>"])
PAIR = st.fixed_dictionaries({"prompt": SAID, "chosen": SAID, "rejected": SAID}, optional={"category": SAID})
RATED = st.lists(st.tuples(SAID, st.integers(0, 3)), min_size=1, max_size=4).map(
    lambda answers: {"prompt": "sky?", "answers": [a for a, _ in answers], "ratings": [r for _, r in answers]}
)
LABELLED = st.fixed_dictionaries({"prompt": SAID, "completion": SAID, "label": st.booleans()})
CHAT = st.lists(SAID, min_size=1, max_size=5).map(
    lambda texts: {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    }
)


def some(row: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(row, min_size=1, max_size=8)


MIXED = st.tuples(st.integers(0, 6), some(ROW)).map(lambda drawn: [*pairs(drawn[0]), *drawn[1]])
FILE = st.one_of(some(PAIR), some(RATED), some(LABELLED), some(CHAT), MIXED)
SECTION = st.fixed_dictionaries(
    {
        "max_length": st.integers(4, 40),
        "append_eos": st.booleans(),
        "train_on": st.sampled_from(["last", "all"]),
        "pairs": st.sampled_from(["all", "best_worst", None]),
        "eval_split": st.sampled_from([0.0, 0.3]),
        "curriculum": st.sampled_from([None, {"by": "length"}]),
        "group_by": st.sampled_from([None, "category", "cluster"]),
    }
)
METHODS: dict[str, RowKind] = {"orpo": "preference", "sft": "completion"}


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=FILE, section=SECTION, method=st.sampled_from(["orpo", "sft"]))
def test_a_run_trains_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], section: dict[str, Any], method: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(
        method=method,
        data={"source": str(path), "max_dropped": 1.0, "cache": False, **section},
        train={"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
        eval={"suites": []},
    )
    refused = None
    try:
        data = load_data(config, METHODS[method], TOKENIZER)
        order = row_order(config.data, data.train, 0)
    except AlignError as error:
        refused = error
    if refused is not None:
        assert refused.exit_code == 2
        assert str(refused).strip()
        assert "\n" not in str(refused)
        return
    (report,) = data.report.sources
    assert report.read == report.kept + report.unusable
    assert report.kept == len(data.train) + len(data.eval)
    assert sorted(order.epoch(0).tolist()) == list(range(len(data.train)))
    trainer = build_trainer(config, folder / "out", data.train, model=tiny_llama(vocab_size=len(TOKENIZER)))
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())
