"""Writes docs/migrating.md: keys of other libraries and ours, from the tables that ``align init --from`` carries them over by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alignkit_commands

HERE = Path(__file__).parent
TABLES = Path(alignkit_commands.__file__).parent / "init" / "libraries"

HEAD = """\
# From TRL, LLaMA-Factory, axolotl and AutoTrain

`align init --from FILE` reads the configuration of one of these libraries (YAML or JSON; a command line in a file too) and writes ours. Every key
that it cannot carry over is named with its line, and defaults that differ from ours are written out, so that the run stays the same:

```bash
printf 'model_name_or_path: demo\\ndataset_name: demo\\nloss_type: ipo\\nbeta: 0.2\\nmax_steps: 4\\n' > their.yaml
align init ours.yaml --from their.yaml --tool trl --method dpo
align run ours.yaml --dry-run
```

What differs, whatever you come from:

- Rows are packed without padding and a prompt is computed once for all of its completions: there is nothing to switch on (`packing`,
  `padding_free`). A step is cut into micro-batches by a number of tokens (`train.tokens_per_micro_batch`), and its loss does not depend on the cut.
- Reference log-probabilities are computed once, before training, and cached; with an adapter the reference is the model without it.
- Every run is evaluated before and after training on held-out rows, a tenth of the prompts unless you name some (`data.eval_source`).
- Any other key of `transformers.TrainingArguments` is `train.KEY`. `align schema METHOD` lists what a configuration may have, and names of these
  libraries that are given to `align run --set` are answered with ours.
"""

WORDS = {
    "trl": """\
The trainers are methods: `DPOTrainer(model, args, train_dataset=...)` is `align run --method dpo --model MODEL --data DATA`, or `run(RunConfig(...))`
in Python ([reference.md](reference.md)). TRL's own trainers run unchanged as `trl-sft`, `trl-dpo`, `trl-kto`, `trl-orpo`, `trl-grpo` and `trl-rloo`, with the data,
evaluation and records of all runs: to see whether the engine changes anything, train with both and `align compare` them.
""",
    "llamafactory": """\
A data set that `dataset_info.json` explains is read with its file, columns and format. Templates are the chat template of the model's tokenizer
(`model.chat_template` for another one).
""",
    "axolotl": "Several `datasets` become `data.sources`, each with its type's columns.\n",
    "autotrain": "The sections `data`, `params` and `hub` are read as they are, and so is `autotrain llm` with its options.\n",
}


def migrating_page() -> str:
    """Return the page, as Markdown."""
    lines = [HEAD]
    for name in WORDS:
        table = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
        lines += [f"## From {table['about']}", "", WORDS[name], *_methods(table), *_keys(table["keys"])]
    return "\n".join(lines)


def _methods(table: dict[str, Any]) -> Iterator[str]:
    names = ", ".join(f"{theirs} → {ours}" for theirs, ours in table["methods"].items() if theirs and theirs != ours)
    same = ", ".join(theirs for theirs, ours in table["methods"].items() if theirs == ours)
    yield f"Methods: {names}; the same names: {same}." if names else f"Methods of the same names: {same}."
    yield ""


def _keys(keys: dict[str, Any]) -> Iterator[str]:
    yield "| theirs | ours |"
    yield "|---|---|"
    for theirs, ours in keys.items():
        if ours not in ([""], {}):
            yield f"| `{theirs}` | {_ours(ours).replace(chr(124), chr(92) + chr(124))} |"
    yield ""


def _ours(found: Any) -> str:
    """Return what a key becomes: a key, a remark, keys with values, or one of these for each value."""
    if isinstance(found, str):
        return ", ".join(f"`{key}`" for key in found.split("+"))
    if isinstance(found, list):
        return "; ".join(found)
    if [*found] == ["*"]:
        return _values(found["*"])
    return "; ".join(f"{_when(value)}{_values(what)}" for value, what in found.items())


def _when(value: str) -> str:
    if value == "*":
        return "else "
    if value.startswith("~"):  # a regular expression
        return f"like `{value[1:]}`: "
    return f"{value[1:]}: " if value.startswith("@") else f"`{value or 'empty'}`: "


def _values(what: Any) -> str:
    if not isinstance(what, dict):
        return _ours(what)
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in what.items()) or "the default"


def write() -> None:
    """Write the page."""
    (HERE / "migrating.md").write_text(migrating_page(), encoding="utf-8")


if __name__ == "__main__":
    write()
