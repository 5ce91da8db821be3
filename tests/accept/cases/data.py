"""Cases of data: tool calls in Parquet, messages stored as text, columns and prompts that must not be lost."""

from __future__ import annotations

import csv
import itertools
import json
from typing import Any

from alignkit.errors import AlignError

from tests.accept.cases.place import QUIET, Place, refused

CHAT: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f"Name metal {i}."}],
        "chosen": [{"role": "assistant", "content": 'Iron, it"s\nhard'}],
        "rejected": [{"role": "assistant", "content": "Wood"}],
    }
    for i in range(6)
]


def _call(question: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "n"}],
    }


def tool_calls_in_parquet(at: Place) -> str:
    """The same rows as JSONL and as Parquet give the same ids, and rows of datasets' Json() type are read."""
    from datasets import Dataset, load_dataset

    rows = [_call("A", "f", {"x": 1}), _call("B", "g", {"y": "2"})]
    lines = at.rows("calls.jsonl", rows)
    Dataset.from_list(rows).to_parquet(at.path / "calls.parquet")
    as_lines, as_parquet = at.tokens("qwen3", lines), at.tokens("qwen3", "calls.parquet")
    assert as_lines == as_parquet, f"{as_lines[0]} became {as_parquet[0]}"
    mixed = at.rows("mixed.jsonl", [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows * 3])
    loaded = load_dataset("json", data_files=str(at.path / mixed), split="train", cache_dir=str(at.path / "hf"))
    loaded.to_parquet(at.path / "mixed.parquet")
    model = ["--model", at.model("qwen3"), "--set", "train.max_steps=1"]
    at.good("run", "--method", "sft", *model, "--data", "mixed.parquet", *QUIET, "--name", "mixed")
    return f"equal ids; {as_parquet[0][1]!r}"


def messages_as_text(at: Place) -> str:
    """Messages stored as JSON or Python text in cells are read as messages, refused, or reported by data check."""
    right = at.tokens("llama3", at.rows("right.jsonl", CHAT))
    as_json = [{key: json.dumps(value) for key, value in row.items()} for row in CHAT]
    as_python = [{key: str(value) for key, value in row.items()} for row in CHAT]
    for name, rows in (("json.csv", as_json), ("python.csv", as_python)):
        with (at.path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    at.rows("json.jsonl", as_json)
    seen = []
    for name in ("json.csv", "python.csv", "json.jsonl"):
        try:
            if at.tokens("llama3", name) == right:
                seen.append(f"{name}: read")
                continue
        except AlignError as error:
            seen.append(f"{name}: refused, {error}")
            continue
        check = at("data", "check", name, "--model", at.model("llama3"))
        assert "no problems found" not in check.out, f"{name} is trained on as text, and data check finds nothing"
        seen.append(f"{name}: reported")
    return "; ".join(seen)


def a_system_column(at: Place) -> str:
    """A system column, and a prompt that only later rows have, are used, named as unused, or refused."""
    user = [{"role": "user", "content": "Name a metal."}]
    said = lambda text: [{"role": "assistant", "content": text}]
    rows = [
        {"system": "Answer like a pirate.", "prompt": user, "chosen": said("Iron, arr"), "rejected": said("Wood")},
        {"system": "Answer in a word.", "prompt": user, "chosen": said("Iron"), "rejected": said("Cow")},
    ]
    beside = at.rows("beside.jsonl", rows)
    later = [{"chosen": "Q: a\n\nAssistant: b", "rejected": "Q: a\n\nAssistant: c"}]
    later.append({"prompt": "Name a metal.", "chosen": " Iron", "rejected": " Wood"})
    at.rows("later.jsonl", later)
    seen = []
    for name, text in ((beside, "pirate"), ("later.jsonl", "Name a metal")):
        try:
            used = any(text in part for row in at.tokens("llama3", name) for part in row)
        except AlignError as error:
            seen.append(f"{name}: refused, {error}")
            continue
        assert used, f"{name}: {text!r} is in no prompt"
        seen.append(f"{name}: used")
    text_rows = [{"system": "Answer like a pirate.", "question": "Name a metal.", "chosen": "Iron", "rejected": "Wood"}]
    at.rows("text.jsonl", text_rows)
    if any("pirate" in part for row in at.tokens("llama3", "text.jsonl", prompt="question") for part in row):
        return "; ".join([*seen, "text.jsonl: used"])
    check = at("data", "check", "text.jsonl", "--model", at.model("llama3"), "--column", "prompt=question")
    assert "system" in check.out + check.err, check
    return "; ".join([*seen, "text.jsonl: data check names the column"])


def aliases_that_multiply(at: Place) -> str:
    """YAML aliases that expand to 10**9 values are refused in seconds."""
    names = "abcdefghi"
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise(names)]
    (at.path / "bomb.yaml").write_text("\n".join([*bomb, "method: orpo", ""]))
    ended = at("run", "bomb.yaml", timeout=30)
    return f"{refused(ended)} ({ended.seconds:.1f} s)"
