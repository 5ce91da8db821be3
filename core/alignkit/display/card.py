"""The model card: README.md of a trained model, in the form the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.display.headline import headline, signed, with_interval
from alignkit.system.files import write_text


def write_model_card(directory: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``README.md`` into a model directory; ``summary`` as in :func:`model_card`."""
    path = Path(directory) / "README.md"
    write_text(path, model_card(summary))
    return path


def model_card(summary: Mapping[str, Any]) -> str:
    """Return the card of a model as Markdown with a YAML head.

    Args:
        summary: the run's record (run.json). Only ``method`` is needed; what else is there is told:
            ``paper``, ``settings`` and ``conventions`` of the method, ``model`` (``name``, ``hash``, ``adapter``: whether
            only an adapter was trained), ``data`` (``source``, ``rows``, ``hash``, ...), ``steps``, ``seed``, ``train``,
            ``evaluation`` (``before``, ``after``: metrics by suite), ``versions`` or ``environment``.
    """
    sections = [_head(summary), _introduction(summary), _loading(summary), _evaluation(summary), _training(summary)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(summary: Mapping[str, Any]) -> str:
    import yaml

    adapter = _is_adapter(summary)
    head: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if _is_reward(summary) else "text-generation",
        "tags": ["alignkit", str(summary["method"]), *(["lora"] if adapter else [])],
    }
    base = _base_model(summary)
    if base and _is_hub_id(base):
        head = {"base_model": base} | head
    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---"


def _introduction(summary: Mapping[str, Any]) -> str:
    method, base = str(summary["method"]), _base_model(summary)
    what = "A low-rank adapter for" if _is_adapter(summary) else "A fine-tuned version of"
    what = f"A reward model: {what[0].lower()}{what[1:]}" if _is_reward(summary) else what
    first = f"{what} {f'`{base}`' if base else 'a causal language model'}, trained with **{method}** by alignkit."
    title = summary.get("name") or (f"{Path(base).name}-{method}" if base else method)
    paper = summary.get("paper")
    return f"# {title}\n\n{first}" + (f"\n\nMethod: {paper}" if paper else "")


def _loading(summary: Mapping[str, Any]) -> str:
    if _is_reward(summary):
        kind, library = ("AutoPeftModel", "peft") if _is_adapter(summary) else ("AutoModel", "transformers")
        return (
            f"## Use\n\n```python\nfrom {library} import {kind}ForSequenceClassification\n"
            "from transformers import AutoTokenizer\n\n"
            f'model = {kind}ForSequenceClassification.from_pretrained("path/to/model", num_labels=1)\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/model")\n'
            "# Prompt and answer as in training: the chat template, and the end token.\n"
            'inputs = tokenizer("A prompt and its answer", return_tensors="pt")\n'
            "reward = model(**inputs).logits[0, 0]\n```"
        )
    if _is_adapter(summary):
        loading = (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            "# Loads the base model named in adapter_config.json and puts the adapter on it.\n"
            'model = AutoPeftModelForCausalLM.from_pretrained("path/to/model")'
        )
    else:
        loading = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("path/to/model")'
        )
    use = (
        'tokenizer = AutoTokenizer.from_pretrained("path/to/model")\n'
        'inputs = tokenizer("Your prompt", return_tensors="pt")\n'
        "output = model.generate(**inputs, max_new_tokens=64)\n"
        "print(tokenizer.decode(output[0], skip_special_tokens=True))"
    )
    return f"## Use\n\n```python\n{loading}\n{use}\n```"


def _evaluation(summary: Mapping[str, Any]) -> str:
    results = summary.get("evaluation") or {}
    lines = headline(results.get("before") or {}, results.get("after") or {})
    if not lines:
        return ""
    rows = [(line.title, with_interval(line.before), with_interval(line.after), signed(line.change)) for line in lines]
    return "## Evaluation\n\nOn held-out data, with 95 % intervals.\n\n" + _table(
        ("metric", "before", "after", "change"), rows
    )


def _training(summary: Mapping[str, Any]) -> str:
    """Return the settings, loss conventions, data, course and versions, each as a table where it is known."""
    environment = summary.get("environment") or {}
    # A local path says nothing to a reader of the card and something about its author's machine.
    model = {f"model {k}": v for k, v in _mapping(summary.get("model"), "name").items() if k != "path"}
    course = {key: summary.get(key) for key in ("steps", "seed", "seconds")} | dict(summary.get("train") or {})
    parts = (
        ("Settings", summary.get("settings")),
        ("Loss conventions", summary.get("conventions")),
        ("Data", _mapping(summary.get("data"), "source")),
        ("Run", model | course),
        ("Versions", summary.get("versions") or environment.get("versions")),
    )
    tables = [f"### {title}\n\n{_key_values(values)}" for title, values in parts if _flat(values)]
    return "\n\n".join(["## Training", *tables]) if tables else ""


def _key_values(values: Mapping[str, Any] | None) -> str:
    return _table(("key", "value"), [(key, f"`{_text(value)}`") for key, value in _flat(values).items()])


def _flat(values: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys, without those that are None."""
    flat: dict[str, Any] = {}
    for key, value in (values or {}).items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("`", "'")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def _mapping(value: Any, key: str) -> dict[str, Any]:
    """Return a section of the record; one given as a plain string stands for its ``key``."""
    if isinstance(value, Mapping):
        return dict(value)
    return {} if value is None else {key: value}


def _is_adapter(summary: Mapping[str, Any]) -> bool:
    return bool(_mapping(summary.get("model"), "name").get("adapter"))


def _is_reward(summary: Mapping[str, Any]) -> bool:
    return _mapping(summary.get("model"), "name").get("scorer") == "classifier"


def _base_model(summary: Mapping[str, Any]) -> str | None:
    name = _mapping(summary.get("model"), "name").get("name")
    return None if name is None else str(name)


def _is_hub_id(name: str) -> bool:
    """Say whether a name can be a hub id: the hub refuses a card whose base_model is a path."""
    parts = name.split("/")
    valid = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    return len(parts) <= 2 and valid and name != "demo" and not Path(name).exists()
