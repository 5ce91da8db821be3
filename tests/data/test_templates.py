"""Row templates, chat templates, tools, and training on all assistant turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import ModelConfig
from alignkit.errors import AlignError, ConfigError, DataError
from alignkit.models.chat_templates import NAMED
from alignkit.models.tokenizer import load_tokenizer

from tests.helpers.data import TOKENIZER, load_all, make_tokenizer, pairs, write_jsonl


def file(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    return str(write_jsonl(folder / f"{name}.jsonl", list(rows)))


def test_templates_that_cannot_be_filled(tmp_path: Path) -> None:
    path = file(tmp_path, "rows", *pairs(2))
    with pytest.raises(DataError, match=rf"^{path}:1: data\.template: 'question' is undefined$"):
        load_all(source=path, template={"prompt": "{{ question }}"})
    with pytest.raises(ConfigError, match=r"^data\.template\.prompt: "):
        load_all(source=path, template={"prompt": "{{ question "})
    with pytest.raises(DataError, match="unsafe"):
        load_all(source=path, template={"prompt": "{{ prompt.__class__.__mro__ }}"})


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
    (example,) = load_all(tokenizer=tokenizer, source=file(tmp_path, "chat", row)).train
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
        AlignError, match=r'"chatmll" is not a template name, a file, or a Jinja template, did you mean "chatml"\?'
    ):
        tokenizer("chatmll")
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    with pytest.raises(AlignError, match=r"broken\.jinja: line 2 is not valid Jinja"):
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
    data = load_all("completion", tokenizer, source=file(tmp_path, "tools", *rows))
    texts = [tokenizer.decode(e.prompt) for e in data.train]
    assert ["look_up;2\n" in text for text in texts] == [True, True, False, False], (
        "less what a table filled with nulls"
    )
    assert texts[2] == texts[3]
    assert [row.tools is None for row in data.train_rows] == [False, False, True, True]
    with pytest.raises(DataError, match=r':1: "tools" is text, expected a list|:1: "tools" is invalid JSON'):
        load_all("completion", tokenizer, source=file(tmp_path, "bad", {**row, "tools": "look_up"}))


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
    last, every = load_all("completion", source=path).train, load_all("completion", source=path, train_on="all").train
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
    cut = load_all("completion", source=path, train_on="all", max_length=len(first.prompt) + 6).train
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
        DataError, match=r":1: the chat template renders turn 2 differently when later turns follow.*train_on: last"
    ):
        load_all("completion", tokenizer, source=path, train_on="all")
