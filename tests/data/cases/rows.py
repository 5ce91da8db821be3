"""Rows that cannot be used: columns, empty answers, conversations, labels, splits."""

from __future__ import annotations

import json
from typing import Any

from tests.data.cases import GOOD, Case, changed, lines, talk
from tests.helpers.data import make_tokenizer, pairs


def _without_start() -> Any:
    return make_tokenizer(adds_bos=False, bos=False, eos=False)


def _refusing() -> Any:
    made = make_tokenizer()
    made.chat_template = "{{ raise_exception('roles must alternate') }}"
    return made


ROWS: dict[str, Case] = {
    # ---------------------------------------------------------------- columns
    "a column is missing": Case(
        changed(rejected=...),
        '{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 no column "rejected", which other rows have (first: {file}:3); align data check --fix OUT writes a copy without them',
    ),
    "a column is null": Case(
        changed(chosen=None),
        '{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 "chosen" is null (first: {file}:3); align data check --fix OUT writes a copy without them',
    ),
    "a column is a number": Case(
        changed(chosen=7), '{file}:3: "chosen" is a number, expected text or a list of messages'
    ),
    "a column is true": Case(changed(prompt=True), '{file}:3: "prompt" is true, expected text or a list of messages'),
    "a column is an object": Case(changed(chosen={"text": "x"}), '{file}:3: "chosen" has no role (its keys are text)'),
    "a column is an empty list": Case(changed(chosen=[]), '{file}:3: "chosen" is an empty list'),
    "no columns": Case(
        b"{}\n{}\n",
        "{file}:1: preference rows need prompt, chosen and rejected; this row has no columns; map names with data.columns (align data check: --column)",
    ),
    "other columns": Case(
        b'{"question": "a", "answer": "b"}\n',
        "{file}:1: preference rows need prompt, chosen and rejected; this row has question, answer; map names with data.columns (align data check: --column)",
    ),
    "a prompt under another name": Case(
        b'{"system": "Be brief.", "question": "a", "chosen": "b", "rejected": "c"}\n',
        '{file}:1: the row has "question" and no "prompt", and its answers do not begin with it; name it with data.columns.prompt: question (align data check: --column prompt=question), or leave the column out',
    ),
    "a misspelt column": Case(
        b'{"prompt": "a", "choosen": "b", "rejected": "c"}\n',
        '{file}:1: preference rows need prompt, chosen and rejected; this row has prompt, choosen, rejected (choosen, did you mean "chosen"?); map names with data.columns (align data check: --column)',
    ),
    "a name that is a list": Case(changed(id=[1]), '{file}:3: "id" is a list, expected text or a number'),
    "a cluster that is an object": Case(
        changed(cluster={"a": 1}), '{file}:3: "cluster" is an object, expected text or a number'
    ),
    "a mapping of ours that is none": Case(
        lines(),
        'data.columns: unknown column "promt", did you mean "prompt"? (known: id, cluster, category, prompt, chosen, rejected, completion, label, messages, conversations, text, instruction, input, output, system, tools, answers, ratings, rating, ranks, rank)',
        section={"columns": {"promt": "prompt"}},
    ),
    "a mapping of theirs that is none": Case(
        lines(),
        'data.columns maps prompt to "promt", which {file} does not have, did you mean "prompt"? (it has chosen, id, prompt, rejected)',
        section={"columns": {"prompt": "promt"}},
    ),
    # ---------------------------------------------------------------- unusable rows
    "an empty answer": Case(
        changed(chosen=""),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 empty completion (first: {file}:3); align data check --fix OUT writes a copy without them",
    ),
    "an answer of white space": Case(
        changed(rejected=" \n\t"),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 empty completion (first: {file}:3); align data check --fix OUT writes a copy without them",
    ),
    "one answer twice": Case(
        changed(chosen="It is.", rejected="It is."),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 chosen and rejected are the same (first: {file}:3); align data check --fix OUT writes a copy without them",
    ),
    "answers alike in tokens": Case(
        changed(chosen="It is.", rejected="It is.</s>"),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 chosen and rejected have the same tokens (after truncation) (first: {file}:3); align data check --fix OUT writes a copy without them",
    ),
    "an answer of special tokens": Case(
        changed(chosen="</s><|end|>"),
        "{file}: 1 of 5 rows cannot be used (data.max_dropped allows 2%): 1 completion has only special tokens (first: {file}:3); align data check --fix OUT writes a copy without them",
    ),
    "no text at all": Case(
        b'{"prompt": "", "chosen": "", "rejected": ""}\n' * 2,
        "{file}: 2 of 2 rows cannot be used (no row is left): 2 empty completion (first: {file}:1)",
    ),
    "nothing to begin with": Case(
        b'{"prompt": "", "chosen": "It", "rejected": "no"}\n',
        "{file}: 1 of 1 rows cannot be used (no row is left): 1 empty prompt, and the tokenizer has no BOS or EOS token (first: {file}:1)",
        tokenizer=lambda: _without_start(),
    ),
    "prompts without end": Case(
        lines(),
        "data.max_length 2 is shorter than every prompt with one completion token of {file} (the shortest prompt has 9 tokens)",
        section={"max_length": 2},
    ),
    "all rows of one prompt": Case(
        b"".join(json.dumps({**row, "prompt": "x"}).encode() + b"\n" for row in pairs(3)),
        "{file}: all rows share one prompt or cluster, so none can be held out; set data.eval_source",
    ),
    "one row": Case(GOOD[0].encode() + b"\n", "{file} has only one row, so none can be held out; set data.eval_source"),
    "a share beyond one": Case(
        lines(),
        "data.eval_split is 1.5, expected a split name or a share of at least 0 and below 1",
        section={"eval_split": 1.5},
    ),
    "more folds than rows": Case(
        lines(), "{file}: 4 groups of rows (clusters, prompts) cannot be split into 9 folds", section={"folds": 9}
    ),
    # ---------------------------------------------------------------- half a surrogate pair
    "half a character in a name": Case(
        changed(id="\ud800"), '{file}:3: "id" contains an unpaired surrogate, which is not a character'
    ),
    "half a character in a cluster": Case(
        changed(cluster="x\udfff"), '{file}:3: "cluster" contains an unpaired surrogate, which is not a character'
    ),
    "half a character in a role": Case(
        talk(prompt=[{"role": "\ud800", "content": "sky?"}]),
        '{file}:1: "prompt[0].role" contains an unpaired surrogate, which is not a character',
    ),
    "half a character in a key of a message": Case(
        talk(prompt=[{"role": "user", "content": "sky?", "name": {"\ud800": 1}}]),
        '{file}:1: "prompt[0]" contains an unpaired surrogate, which is not a character',
    ),
    "half a character in a tool": Case(
        talk(tools=[{"type": "function", "function": {"name": "\udc00"}}]),
        '{file}:1: "tools" contains an unpaired surrogate, which is not a character',
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
        '{file}:1: "prompt[0].content" has a part of type image; only text is supported',
    ),
    "a role that is a number": Case(
        talk(prompt=[{"role": 1, "content": "x"}]), '{file}:1: "prompt[0].role" is a number, expected text'
    ),
    "an unknown ShareGPT role": Case(
        b'{"conversations": [{"from": "bard", "value": "x"}]}\n',
        "{file}:1: \"messages[0].from\" is 'bard', expected one of human, user, gpt, chatgpt, assistant, model, function_call, system, observation, tool",
        kind="completion",
    ),
    "an empty conversation": Case(b'{"messages": []}\n', '{file}:1: "messages" is an empty list', kind="completion"),
    "a conversation without an answer": Case(
        b'{"messages": [{"role": "user", "content": "x"}]}\n',
        "{file}: 1 of 1 rows cannot be used (no row is left): 1 the conversation does not end with an assistant turn (first: {file}:1)",
        kind="completion",
    ),
    "messages that are text": Case(
        b'{"messages": "hello"}\n', '{file}:1: "messages" is text, expected a list of messages', kind="completion"
    ),
    "a template that refuses": Case(
        talk(),
        "{file}:1: the chat template rejects this conversation: roles must alternate",
        tokenizer=lambda: _refusing(),
    ),
    "no template": Case(
        talk(),
        "{file}:1: the row is a conversation, but the tokenizer has no chat template: set model.chat_template, or use plain text rows",
        tokenizer=lambda: make_tokenizer(chat=False),
    ),
    "tools that are none": Case(talk(tools=[1]), '{file}:1: "tools" is a list, expected a list of function schemas'),
    "tools of broken JSON": Case(
        talk(tools="[{"),
        '{file}:1: "tools" is invalid JSON: column 3, at the end',
    ),
    # ---------------------------------------------------------------- other kinds of rows
    "a label that is none": Case(
        b'{"prompt": "a", "completion": "b", "label": 2}\n',
        '{file}:1: "label" is 2, expected true or false',
        kind="unpaired",
    ),
    "no label": Case(
        b'{"prompt": "a", "completion": "b"}\n',
        "{file}:1: unpaired rows need prompt, completion and label (or prompt, chosen and rejected); this row has prompt, completion; map names with data.columns (align data check: --column)",
        kind="unpaired",
    ),
    "text as prompts": Case(
        b'{"text": "a"}\n',
        "{file}:1: prompt rows need prompt (or messages, instruction, chosen and rejected); this row has text; map names with data.columns (align data check: --column)",
        kind="prompt",
    ),
    "an empty prompt alone": Case(
        b'{"prompt": " "}\n',
        "{file}: 1 of 1 rows cannot be used (no row is left): 1 empty prompt (first: {file}:1)",
        kind="prompt",
    ),
}
