"""The model card: README.md of a trained model, with the metadata the Hugging Face Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.rundir.record import ModelRecord, RunRecord
from alignkit.settings.layers import dotted
from alignkit.system.files import write_text
from alignkit.system.terminal import duration

from alignkit_eval.headline import headline, signed, with_interval

Merged = Sequence[tuple[str, float]]


def write_card(directory: Path, record: RunRecord, merged: Merged = (), how: str = "") -> Path:
    """Write the card of the model in ``directory`` (see :func:`model_card`) and return its path."""
    write_text(directory / "README.md", model_card(record, merged, how))
    return directory / "README.md"


def model_card(record: RunRecord, merged: Merged = (), how: str = "") -> str:
    """Return the card of a run's model as Markdown with a YAML head. Local directories are not disclosed.

    ``merged`` is the name and weight of each run where the model is made of several, and ``how`` says in what way. Settings and
    results of the first run, whose record this is, are then left out.
    """
    sections = [_head(record, merged), _introduction(record, merged, how), _use(record.model)]
    if not merged:
        sections += [_evaluation(record), _training(record), _hyper_parameters(record), _cost(record)]
    sections.append(_table("### Versions", ("package", "version"), record.environment.versions.items()))
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(record: RunRecord, merged: Merged) -> str:
    import yaml

    model = record.model
    head: dict[str, Any] = {"base_model": model.name} if model.is_hub_id else {}  # the hub refuses a path
    head |= {
        "library_name": "peft" if model.adapter else "transformers",
        "pipeline_tag": "text-classification" if model.is_classifier else "text-generation",
        "tags": ["alignkit", "merge" if merged else record.method, *(["lora"] if model.adapter else [])],
    }
    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---"


def _introduction(record: RunRecord, merged: Merged, how: str) -> str:
    model, name = record.model, _name(record.model.name)
    base = "alignkit's embedded demo model" if name == "demo" else f"`{name}`"
    kind = "low-rank adapter (LoRA) for" if model.adapter else "fine-tuned version of"
    kind = f"reward model: a {kind}" if model.is_classifier else kind
    if merged:
        text = f"{how} of {len(merged)} models, each a {kind} {base}, made with alignkit."
        weights = _table("## Merged runs", ("run", "weight"), ((run, f"{weight:g}") for run, weight in merged))
        return f"# {' + '.join(run for run, _ in merged)}\n\n{text}\n\n{weights}"
    text = f"# {Path(name).name}-{record.method}\n\nA {kind} {base}, trained with **{record.method}** by alignkit."
    paper = re.sub(r"https?://[^\s,]+", r"<\g<0>>", record.paper)
    return f"{text}\n\nMethod: {paper}" if paper else text


def _use(model: ModelRecord) -> str:
    task = "SequenceClassification" if model.is_classifier else "CausalLM"
    auto = f"Auto{'Peft' if model.adapter else ''}ModelFor{task}"
    labels = ", num_labels=1" if model.is_classifier else ""
    if model.adapter:
        lines = [f"from peft import {auto}", "from transformers import AutoTokenizer", ""]
        lines.append("# The base model named in adapter_config.json is loaded as well.")
    else:
        lines = [f"from transformers import {auto}, AutoTokenizer", ""]
    lines += [
        f'model = {auto}.from_pretrained("path/to/model"{labels})',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/model")',
        "# Format the text as in training: with the chat template if the tokenizer has one.",
    ]
    if model.is_classifier:
        lines += [
            'inputs = tokenizer("Your prompt and its completion" + tokenizer.eos_token, return_tensors="pt")',
            "reward = model(**inputs).logits[0, 0]",
        ]
    else:
        lines += [
            'inputs = tokenizer("Your prompt", return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=64)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    return "## How to use\n\n```python\n" + "\n".join(lines) + "\n```"


def _evaluation(record: RunRecord) -> str:
    rows = [
        (line.title, with_interval(line.before), with_interval(line.after), signed(line.change))
        for line in headline(record.evaluation.before, record.evaluation.after)
    ]
    title = "## Evaluation\n\nOn held-out data, before and after training, with 95 % confidence intervals."
    return _table(title, ("metric", "before", "after", "change"), rows)


def _training(record: RunRecord) -> str:
    data, train, held_out = record.config.get("data", {}), record.data.train, record.data.eval
    sources = [part["source"] for part in data.get("sources") or [data] if "source" in part]
    names = ", ".join(f"`{_name(source)}`" for source in sources) or "the training data"
    counts = {name: getattr(train, name) for name in ("clusters", "prompt_tokens", "completion_tokens")}
    size = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    steps = "" if record.steps is None else f" for {record.steps:,} optimizer steps"
    course = [f"Training was stopped early: {record.stopped}."] if record.stopped else []
    if (best := record.best) and best.saved:
        course.append(f"This is the model of step {best.step}, the best by {best.metric}.")
    course += [
        f"`{change.key}` was changed from `{_text(change.before)}` to `{_text(change.after)}` after step {change.step}."
        for change in record.changes
    ]
    return (
        f"## Training\n\nTrained{steps} on {train.rows:,} rows of {names} ({size}); "
        f"{held_out.rows:,} rows held out for evaluation.\n\n"
        f"SHA-256 of the data: `{record.data.hash}`; of the start weights: `{record.model.hash}`."
    ) + "".join(f"\n\n{sentence}" for sentence in course)


def _hyper_parameters(record: RunRecord) -> str:
    model, data = record.config.get("model", {}), record.config.get("data", {})
    settings = dict(record.conventions) | {
        "model": {key: model.get(key) for key in ("revision", "dtype", "quantization", "lora", "dropout")},
        "data": {key: data.get(key) for key in ("max_length", "train_on", "limit")},
        "train": record.config.get("train", {}),
        "run.seed": record.seed,
        "run.engine": None if (engine := record.config.get("run", {}).get("engine")) == "torch" else engine,
    }
    given = {key: _text(value) for key, value in dotted(settings).items() if value not in (None, [], {})}
    rows = ((key, "`{}`".format(text.replace("`", "'"))) for key, text in given.items())
    return _table("### Hyper-parameters", ("key", "value"), rows)


def _cost(record: RunRecord) -> str:
    model, train, hardware = record.model, record.train, record.environment.hardware
    several = record.processes if record.processes.world_size > 1 else None
    each = (
        f" ({train.tokens_per_second_per_device:,.0f} per device)"
        if several and train.tokens_per_second_per_device
        else ""
    )
    gpus = [str(gpu["name"]) for gpu in hardware.get("gpus") or ()]
    values = {
        "trained parameters": f"{model.trainable:,} of {model.parameters:,}",
        "training loss, last": None if train.loss is None else f"{train.loss:.4g}",
        "tokens": None if train.tokens is None else f"{train.tokens:,}",
        "tokens per second": None if train.tokens_per_second is None else f"{train.tokens_per_second:,.0f}{each}",
        "training time": None if train.seconds is None else duration(train.seconds),
        "peak memory": None if train.memory_gb is None else f"{train.memory_gb:.2f} GiB",
        "compute": None if train.flops is None else f"{train.flops:.3g} FLOPs (estimate)",
        "processes": several,
        "peak memory by rank": several and ", ".join(f"{peak:.2f} GiB" for peak in several.peak_memory_gb),
        "hardware": ", ".join(gpus) or hardware.get("cpu"),
    }
    return _table("### Cost", ("quantity", "value"), ((key, str(v)) for key, v in values.items() if v is not None))


def _text(value: Any) -> str:
    """Return a setting as people write it.

    >>> _text([{"name": "/models/judge", "weight": 0.5}, True, 1e-3])
    'name=judge weight=0.5, true, 0.001'
    """
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return _name(value) if isinstance(value, str) else str(value).lower()


def _name(text: str) -> str:
    """Return the name of a model or data source, an absolute path cut to its last component.

    >>> _name("org/model"), _name("runs/a"), _name("/home/me/data/prefs.jsonl"), _name("/home/me/runs/a/model")
    ('org/model', 'runs/a', 'prefs.jsonl', 'a/model')
    """
    if "://" in text:
        return text.partition("?")[0]  # a query may hold a secret
    path = Path(text)
    if len(path.parts) < 3 or not (path.is_absolute() or text.startswith("~")):
        return text
    return "/".join(path.parts[-2:]) if path.name == "model" else path.name


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a title and a Markdown table, nothing where there are no rows."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ("---",) * len(columns), *cells)]
    return "\n".join([title, "", *lines]) if cells else ""
