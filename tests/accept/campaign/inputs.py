"""Malformed configurations, options, data and templates, drawn at random: each a command line and words for the fault."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.accept.campaign.base import Base, dialogues, pairs, short
from tests.accept.campaign.mutations import ODD_VALUES, changed_bytes, changed_value

Input = tuple[Sequence[str], str]
Kind = Callable[["Place"], Input]


@dataclass(frozen=True)
class Place:
    """Where one input is made: its directory, the prepared base, and its own random numbers."""

    path: Path
    base: Base
    draw: random.Random

    def write(self, name: str, content: str | bytes) -> str:
        """Write a file and return its name."""
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(data)
        return name

    def damage(self, name: str, *, values: bool = True) -> str:
        """Damage a file of this place and return words: one value of a JSON or YAML file, or the file as a whole."""
        file = self.path / name
        content = file.read_bytes()
        if values and self.draw.random() < 0.6:
            loads, dumps = _FORMATS[file.suffix]
            value, words = changed_value(loads(content), self.draw)
            file.write_bytes(dumps(value).encode("utf-8", "surrogatepass"))
        else:
            changed, words = changed_bytes(content, self.draw)
            file.write_bytes(changed)
        return f"{name}: {words}"


def _lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def _json(value: Any) -> str:
    with_digits = json.dumps(value, indent=1, default=str) if not isinstance(value, int) else str(value)
    return with_digits + "\n"


def _to_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=False)


_FORMATS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], str]]] = {
    ".json": (json.loads, _json),
    ".jsonl": (_lines, lambda rows: "".join(json.dumps(row) + "\n" for row in rows)),
    ".yaml": (yaml.safe_load, _to_yaml),
}


def run_options(place: Place, **changes: str) -> list[str]:
    """Return the arguments of a one-step run, without evaluation."""
    base = place.base
    given = {"model": str(base.model), "data": str(base.data), "eval-data": str(base.held_out)} | changes
    named = [part for key, value in given.items() for part in (f"--{key}", value)]
    return ["run", "--method", "dpo", *named, *short(), "--set", "train.max_steps=1", "--set", "eval.suites=[]"]


# ------------------------------------------------------------------------------------------------ configurations

_YAML = {
    "aliases that expand to millions": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "a tag of Python": "method: !!python/object/apply:os.system ['echo tagged']\n",
    "a duplicate key": "method: dpo\nmethod: orpo\n",
    "a tab": "method:\n\tname: dpo\n",
    "two documents": "method: dpo\n---\nmethod: orpo\n",
    "an alias of itself": "method: &m\n  name: dpo\n  beta: *m\n",
    "an unknown anchor": "method: *nothing\n",
    "nested deeply": "[" * 3000,
    "a text alone": "dpo\n",
    "a list alone": "- method: dpo\n",
    "comments alone": "# method: dpo\n",
    "a binary tag": "method: !!binary aGVsbG8=\n",
    "a key that is a list": "? [a, b]\n: 1\nmethod: dpo\n",
    "a number as key": "1: 2\nmethod: dpo\n",
    "a date": "method: dpo\nrun: {name: 2026-11-25, seed: 2026-11-25}\n",
    "a set": "method: dpo\ndata: !!set {a, b}\n",
    "a method's key on top": "method: dpo\nbeta: 0.5\n",
    "dots in a key": "method: dpo\ntrain.max_steps: 3\n",
    "merge of a text": "method: dpo\ntrain: {<<: text}\n",
}


def configuration(place: Place) -> Input:
    """A configuration file with a wrong value, key or syntax."""
    name = place.write("config.yaml", place.base.config.read_bytes())
    if place.draw.random() < 0.3:
        words = place.draw.choice(list(_YAML))
        place.write(name, _YAML[words])
    else:
        words = place.damage(name)
    command = ["data", "check", name] if place.draw.random() < 0.15 else ["run", name]
    return command + (["--dry-run"] if command[0] == "run" and place.draw.random() < 0.4 else []), words


_KEYS = """
beta loss label_smoothing ratio train.max_steps train.learning_rate train.num_train_epochs train.save_steps train.optim
train.per_device_train_batch_size train.gradient_accumulation_steps train.lr_scheduler_type train.warmup_steps train.max_grad_norm
train.save_strategy train.report_to train.early_stopping_patience train.bf16 train.logging_steps model.dtype model.lora
model.lora.r model.lora.target_modules model.quantization model.scorer model.attention model.revision model.chat_template model.tokenizer
data.max_length data.eval_split data.folds data.fold data.columns data.limit data.split data.train_on data.workers data.curriculum
data.phases data.max_dropped data.sources data.check.most data.check.near eval.suites eval.during eval.settings eval.sample_tokens
run.seed run.services run.output run.name nothing.such train train. .train = a=b beta.gamma model.lora.x.y
""".split()
_TEXTS = {
    **{words: json.dumps(value) for words, value in ODD_VALUES.items() if words != "an integer of 400 digits"},
    "5,000 digits": "9" * 5000,
    "not a number": ".nan",
    "infinity": "-.inf",
    "a broken list": "[1, 2",
    "a broken mapping": "{a: ",
    "nothing": "",
    "deep nesting": "[" * 400,
    "an alias": "*a",
    "a tag": "!!python/name:os.system",
    "bytes that are no UTF-8": os.fsdecode(b"caf\xe9"),
    "a colon": "a: b: c",
    "Unicode digits": "\u0663\u0664",
    "octal": "0o17",
    "several": "1,2,3",
}


def setting(place: Place) -> Input:
    """``--set KEY=VALUE`` with a value of the wrong kind, an odd key or none."""
    key, odd = place.draw.choice(_KEYS), place.draw.choice(list(_TEXTS))
    return [*run_options(place), "--set", f"{key}={_TEXTS[odd]}".replace("\0", "")], f"--set {key}: {odd}"


def command_line(place: Place) -> Input:
    """A wrong command, option or argument."""
    base, draw = place.base, place.draw
    run, data = "a", str(base.data)
    shutil.copytree(base.runs / run, place.path / run)
    odd = draw.choice(list(_TEXTS))
    text = _TEXTS[odd].replace("\0", "")
    fixed = [
        ["rnu"], ["run", "orpo"], ["run", "--methd", "dpo"], ["run", "--method", "dpo", "--seed", "-1"],
        ["run", "--method", "dpo", "--name", ""], ["run", "--method", "dpo", "--name", "../x"],
        ["run", "--method", "dpo", "--output", data], ["run", "--method", "dpo", "--resume"], ["resume"],
        ["resume", "nowhere"], ["resume", data], ["resume", run], ["compare", run], ["compare", run, "nowhere"],
        ["compare", run, run, "--baseline", "nowhere"], ["compare", run, run, "--html", "/proc/x/y.html"],
        ["eval", "nowhere"], ["eval", run, "--suite", "pref"], ["eval", run, "--suite", ""], ["eval", run, "--tasks", ""],
        ["eval", run, "--ratings", data], ["eval", run, "--rate"], ["export", run, "--output", str(base.path)],
        ["export", run, "--merge", "nowhere"], ["export", run, "--weights", "abc", "--merge", run],
        ["export", run, "--weights", "1", "--merge", run], ["export", str(base.model)], ["data", "check"],
        ["data", "check", "nowhere.jsonl"], ["data", "check", data, "--fix", "/proc/x/y.jsonl"],
        ["data", "check", data, "--column", "prompt"], ["data", "check", data, "--near", "nan"],
        ["data", "check", data, "--html", str(base.path)], ["data", "check", data, "--script", "Klingon"],
        ["data", "check", data, "--fix", data], ["data", "check", "/dev/zero"], ["data", "check", str(base.path)],
        ["sweep", "--method", "dpo"], ["sweep", "--method", "dpo", "--over", "lamda=1"], ["sweep", "--over", "beta"],
        ["sweep", "--method", "dpo", "--over", "beta=1,1"], ["sweep", "--method", "dpo", "--over", "beta=0.1", "--seeds", "a"],
        ["sweep", "--resume", run], ["sweep", "--method", "dpo", "--jobs", "0"], ["pipeline", data], ["pipeline", "nowhere"],
        ["pipeline", str(base.pipeline), "--from", "nowhere"], ["pipeline", str(base.pipeline), "--set", "beta=1"],
        ["status", "nowhere"], ["watch", "nowhere"], ["cache", "prune", "--older", "x"], ["schema", "dpoo"], ["methods", "x"],
        ["generate", "nowhere", "--prompt", "a"], ["new-plugin", "../x"], ["new-plugin", "dpo"], ["plugins", "nothing"],
    ]  # fmt: skip
    odd_ones = [
        ["run", "--method", text], run_options(place, name=text), run_options(place, model=text), ["run", text],
        run_options(place, data=text), run_options(place, output=text), ["resume", text], ["eval", text], ["compare", run, text],
        ["eval", run, "--suite", text], ["eval", run, "--data", text], ["export", run, "--weights", text, "--merge", run],
        ["data", "check", text], ["data", "check", data, "--column", text], ["data", "check", data, "--near", text],
        ["sweep", "--method", "dpo", "--over", text], ["sweep", "--method", "dpo", "--over", f"beta={text}", *base.options()],
        ["sweep", "--method", "dpo", "--over", "beta=0.1", "--seeds", text], ["pipeline", str(base.pipeline), "--set", text],
        ["status", text], ["generate", str(base.model), "--prompt", text, "--max-new-tokens", "3"], ["schema", text],
        ["new-plugin", text],
    ]  # fmt: skip
    if draw.random() < 0.6:
        return draw.choice(fixed), "a wrong command line"
    return draw.choice(odd_ones), f"an argument that is {odd}"


# ------------------------------------------------------------------------------------------------ data and templates


def data(place: Place) -> Input:
    """A data file with a wrong row, cell or syntax."""
    draw = place.draw
    suffix = draw.choice([".jsonl", ".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
    rows: list[Any] = draw.choice([pairs, pairs, dialogues])(12)
    words = "whole rows"
    if draw.random() < 0.6:
        rows, words = changed_value(rows, draw)
    try:
        content = _encode(rows, suffix)
    except (TypeError, ValueError, OverflowError, AttributeError):
        suffix, content = ".jsonl", _encode(rows if isinstance(rows, list) else [rows], ".jsonl")
    if words == "whole rows" or draw.random() < 0.2:
        content, more = changed_bytes(content, draw)
        words += f", then {more}"
    name = place.write(f"rows{suffix}", content)
    model = str(place.base.models / draw.choice(["tiny", "llama3"]))
    command = draw.choice(["run", "run", "check", "check with a model", "fix", "eval"])
    arguments = {
        "run": run_options(place, data=name, model=model),
        "check": ["data", "check", name],
        "check with a model": ["data", "check", name, "--model", model],
        "fix": ["data", "check", name, "--fix", "fixed.jsonl"],
        "eval": ["eval", model, "--data", name, "--suite", "prefs"],
    }[command]
    return arguments, f"{name}: {words}"


def _encode(rows: Any, suffix: str) -> bytes:
    """Return rows as the content of a file of this kind."""
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix.startswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text
    if suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue().encode("utf-8", "surrogatepass")
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


_TEMPLATES = {
    "a division by zero": "{{ 1/0 }}",
    "a block without end": "{% for m in messages %}{{ m.content }}",
    "an unknown filter": "{{ messages | nothing }}",
    "an unknown tag": "{% nothing %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a loop of 10**9": "{% for i in range(1000000000) %}{% endfor %}",
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
    "a text of gigabytes": "{{ 'x' * 3000000000 }}",
    "a number of gigabytes": "{{ 9 ** 999999999 }}",
    "a way out of the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "an include": "{% include '/etc/passwd' %}",
    "its own error": "{{ raise_exception('roles must alternate') }}",
    "an attribute of nothing": "{{ messages[99].content.x.y }}",
    "nothing printed": "{# nothing #}",
    "no roles": "{{ messages }}",
    "control characters": "{% for m in messages %}\x1b[31m{{ m.content }}{% endfor %}\x00",
    "half a surrogate pair": "{% for m in messages %}{{ m.content }}{% endfor %}{{ '\\ud800' }}",
    "nested deeply": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "no Jinja": "def template(messages): pass",
    "another text every time": "{% for m in messages %}{{ m.content }}{% endfor %}{{ range(9) | random }}",
}


def template(place: Place) -> Input:
    """A chat template that cannot be rendered, or is no template."""
    draw = place.draw
    rows = place.write("chat.jsonl", "".join(json.dumps(row) + "\n" for row in dialogues(10)))
    file = place.base.models / "llama3" / "chat_template.jinja"
    if draw.random() < 0.7:
        words = draw.choice(list(_TEMPLATES))
        name = place.write("template.jinja", _TEMPLATES[words])
    else:
        content, words = changed_bytes(file.read_bytes(), draw)
        name = place.write("template.jinja", content)
    return [*run_options(place, data=rows), "--set", f"model.chat_template={name}"], f"template: {words}"
