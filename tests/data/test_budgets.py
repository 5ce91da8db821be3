"""Files and templates made to take all time or memory are refused with a sentence, in seconds."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import ModelConfig
from alignkit.errors import AlignError, DataError, ModelError
from alignkit.models.tokenizer import load_tokenizer
from alignkit.system.budget import time_limit

from tests.helpers.data import load_all, make_tokenizer, pairs, write_jsonl

TALK = {
    "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sky?"}],
    "chosen": [{"role": "assistant", "content": "blue"}],
    "rejected": [{"role": "assistant", "content": "green"}],
}


def sparse(path: Path, size: int, begin: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)


def zipped(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


HUGE: dict[str, tuple[Any, str]] = {
    "line.jsonl": (lambda path: sparse(path, 30 << 30), "{}:1: the line is longer than 67,108,864 bytes"),
    "list.json": (lambda path: sparse(path, 30 << 30), "{}:1: invalid JSON: column 1"),
    "text.jsonl": (
        lambda path: path.write_bytes(b'{"prompt": "' + b"a " * 4_100_000 + b'", "chosen": "b", "rejected": "c"}\n'),
        "{}:1: the texts have 8,200,002 characters, and at most 8,000,000 can be used",
    ),
    "header.csv": (lambda path: sparse(path, 30 << 30), "{}:1: no header: the first line is longer than 4,194,304"),
    "field.csv": (
        lambda path: sparse(path, 30 << 30, b'prompt,chosen,rejected\n"'),
        "a field has more than 67,108,864 characters",
    ),
    "empty.jsonl": (lambda path: path.write_bytes(b"\n" * 1_100_000), "{}:1000001: more than 1,000,000 empty lines"),
    "bomb.json.gz": (lambda path: zipped(path, b"[" + b" " * (20 << 20)), "{} expands to more than 100 times its size"),
    "bomb.csv.gz": (
        lambda path: zipped(path, b'prompt,chosen,rejected\n"' + b"a" * (20 << 20)),
        "{} expands to more than 100 times its size",
    ),
    "columns.csv": (
        lambda path: path.write_text("\n".join(",".join(f"c{i}" for i in range(50_000)) for _ in range(2))),
        "this row has c0, c1, c2, ",
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_files(tmp_path: Path, name: str) -> None:
    make, expected = HUGE[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(DataError) as caught:
        load_all(source=str(path), cache=False)
    path.unlink()
    assert expected.format(path) in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_list_on_one_line_is_located_by_item_and_semicolons_separate(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([*pairs(2), {"prompt": 1, "chosen": "a", "rejected": "b"}]))
    with pytest.raises(DataError, match=r'd\.json:1 item 3: "prompt" is a number'):
        load_all(source=str(tmp_path / "d.json"))
    for separator in ";\t|":
        text = f'"prompt";chosen;rejected\n"a;b, c";d;"{"x;" * 50}"\n'.replace(";", separator)
        (tmp_path / "d.csv").write_text(text)
        (row,) = load_all(source=str(tmp_path / "d.csv")).train_rows
        assert (row.prompt, row.answers) == (f"a{separator}b, c", ("d", f"x{separator}" * 50))


TEMPLATES = {
    "{{ 1/0 }}": "rejects this conversation: division by zero",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "rejects this conversation: maximum recursion depth",
    "{% for m in messages %}" * 25 + "x" + "{% endfor %}" * 25: "rejects this conversation: too many statically nested",
    "{{ 'a' * 9000000 }}": "makes a text of 9,000,000 characters, more than 8,000,000",
    "{{ messages[0].content.nope.nope }}": "rejects this conversation: ",
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}": (
        "System role not supported; move the system text into the first user turn, or set model.chat_template"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_whatever_a_chat_template_does_is_one_sentence(tmp_path: Path, template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    path = write_jsonl(tmp_path / "d.jsonl", [TALK])
    with pytest.raises(DataError) as caught:
        load_all(tokenizer=tokenizer, source=str(path))
    assert str(caught.value).startswith(f"{path}:1: the chat template ")
    assert TEMPLATES[template] in str(caught.value)
    section = {"template": {"prompt": template.replace("messages", "prompt")}}
    if "raise_exception" not in template and "'a' *" not in template:
        with pytest.raises(AlignError, match=r"data\.template"):
            load_all(source=str(path), **section)


def endless() -> None:
    while True:
        pass


def test_code_that_does_not_end_is_stopped() -> None:
    with pytest.raises(TimeoutError, match=r"more than 0\.05 seconds"), time_limit(0.05):
        endless()
    with time_limit(0.05):
        pass
    for _ in range(1_000_000):
        pass


TRAINING = Path(str(find_spec("trl").origin)).parent / "chat_templates" / "qwen3_training.jinja"  # type: ignore[union-attr]


def test_trls_training_templates_locate_the_turns_of_the_assistant(tmp_path: Path) -> None:
    make_tokenizer(chat=False).save_pretrained(tmp_path / "bare")

    def tokenizer(template: str) -> Any:
        return load_tokenizer(ModelConfig(name="x", tokenizer=str(tmp_path / "bare"), chat_template=template), "unused")

    made = tokenizer(str(TRAINING))
    turns = [("user", "sky?"), ("assistant", "It is blue."), ("user", "sea?"), ("assistant", "green")]
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    (example,) = load_all("completion", made, source=str(path), train_on="all").train
    assert example.masks is not None
    (mask,) = example.masks
    assert mask is not None
    scored = made.decode([t for t, on in zip(example.completions[0], mask, strict=True) if on])
    assert "It is blue." in scored
    assert "green" in scored
    assert "sea?" not in scored
    with pytest.raises(ModelError, match="nested too deeply"):
        tokenizer("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}")
    (tmp_path / "latin.jinja").write_bytes(b"{{ '\xe9' }}")
    with pytest.raises(ModelError, match=r"latin\.jinja cannot be read"):
        tokenizer(str(tmp_path / "latin.jinja"))
