"""Acceptance check of strategies: every method, trained by one, two and four processes in every way to share a model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, OUTPUT, command, settings

STEPS, ROWS = 6, 16
SUITES = "prefs,kl,perplexity"
SAMPLED = settings(reward="length", max_new_tokens=8)
METHODS: dict[str, list[str]] = {
    "sft": ["--method", "sft"],
    "dpo": ["--method", "dpo"],
    "dpo with LoRA": ["--method", "dpo", *settings(model__lora__r=8)],
    "orpo": ["--method", "orpo"],
    "ppo": ["--method", "ppo", *SAMPLED],
    "grpo": ["--method", "grpo", *SAMPLED],
    "reward": ["--method", "reward", *settings(eval__suites="prefs", eval__samples=0)],
    "trl-dpo": ["--method", "trl-dpo"],
    "trl-kto": ["--method", "trl-kto"],
}
STRATEGIES = ("ddp", "fsdp", "zero2", "zero3")
FOUR = ("dpo", "grpo")
"""Methods that four processes train as well."""
LIMITS = {"losses": 1e-5, "metrics": 1e-4, "weights": 1e-5, "suites before": 1e-6, "suites after": 1e-4}
"""Largest differences from one process: of losses relative to the run's largest, of a tensor of weights relative to its
norm, of metrics relative to their value or to 1, whichever is larger."""
_OF_THE_MACHINE = {"tokens_per_second", "tokens_per_second_per_device", "memory_gb", "seconds", "time", "epoch", "step"}


def strategies(work: Path) -> dict[str, Any]:
    """Two and four processes train what one trains, under every strategy: losses, metrics, weights and suites, as a table.

    The strategies of DeepSpeed are left out where it is not installed, and the table says so.
    """
    rows, faults = [], []
    for method, options in METHODS.items():
        one = _trained(work, method, "auto", 1, options)
        for strategy, processes in _columns(method):
            row: dict[str, Any] = {"method": method, "strategy": strategy, "processes": processes}
            rows.append(row)
            if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
                row["failed"] = "not installed"
                continue
            try:
                row |= _differences(one, _trained(work, method, strategy, processes, options))
            except AssertionError as error:
                row["failed"] = str(error)
                faults.append(f"{method} {strategy} {processes}: {error}")
            faults += [
                f"{method} with {strategy} over {processes}: {name} differ by {row[name]:.1e}"
                for name, limit in LIMITS.items()
                if not row.get(name, 0) <= limit
            ]
            _write(rows)
    assert not faults, "; ".join(faults)
    return {"runs": len(rows) + len(METHODS), **{name: max(row.get(name, 0) for row in rows) for name in LIMITS}}


def _columns(method: str) -> Iterator[tuple[str, int]]:
    for processes in (2, 4) if method in FOUR else (2,):
        yield from ((strategy, processes) for strategy in STRATEGIES)


def _trained(work: Path, method: str, strategy: str, processes: int, options: list[str]) -> Path:
    """Train a method for some steps of as many rows for any number of processes, with a cache of its own."""
    name = f"{method.replace(' ', '-')}-{strategy}-{processes}"
    several = ["--processes", str(processes), "--strategy", strategy] if processes > 1 else []
    common = settings(
        train__max_steps=STEPS, train__logging_steps=1, train__per_device_train_batch_size=ROWS // processes
    )
    common += settings(data__limit=200, data__eval_limit=60, eval__suites=SUITES, eval__samples=1, run__plots="false")
    command(ALIGN, "run", "--name", name, *common, *options, *several, cwd=work, ALIGN_CACHE=str(work / "cache" / name))
    return work / "runs" / name


def _differences(one: Path, other: Path) -> dict[str, float]:
    records, others = _records(one), _records(other)
    assert [r["step"] for r in others] == [r["step"] for r in records], "the steps logged differ"
    pairs = [(a, b, key) for a, b in zip(records, others, strict=True) for key in a if key not in _OF_THE_MACHINE]
    return {
        "losses": max(abs(b["loss"] - a["loss"]) for a, b, _ in pairs) / max(abs(a["loss"]) for a in records),
        "metrics": max(_apart(a[key], b[key]) for a, b, key in pairs if isinstance(a[key], float)),
        "weights": _weights_apart(_weights(one), _weights(other)),
        "suites before": _suites_apart(one / "eval/before", other / "eval/before"),
        "suites after": _suites_apart(one / "eval", other / "eval"),
    }


def _records(run: Path) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in r]


def _apart(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), 1.0)


def _suites_apart(one: Path, other: Path) -> float:
    """Return the largest difference of a metric; the suites and metrics themselves must be the same."""
    found = [{p.name: json.loads(p.read_text())["metrics"] for p in place.glob("*.json")} for place in (one, other)]
    assert found[0], f"{one} holds no suite"
    assert {k: v.keys() for k, v in found[0].items()} == {k: v.keys() for k, v in found[1].items()}, "suites differ"
    return max(
        _apart(estimate["value"], found[1][suite][name]["value"])
        for suite, metrics in found[0].items()
        for name, estimate in metrics.items()
    )


def _weights(run: Path) -> Mapping[str, Any]:
    """Return the weights of a run's model as plain transformers or peft loads it."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    model = run / "model"
    if (model / "adapter_config.json").is_file():
        # In the base model's bfloat16, merged elements that differ by 1e-7 may be rounded to different numbers, 4e-3 apart.
        tuned = AutoPeftModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        merged: Mapping[str, Any] = tuned.merge_and_unload().state_dict()
        return merged
    classifier = "SequenceClassification" in json.loads((model / "config.json").read_text())["architectures"][0]
    auto: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), f"{model} does not load as a stock model: {info}"
    weights: Mapping[str, Any] = loaded.state_dict()
    return weights


def _weights_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the largest norm of a tensor's difference, relative to the tensor's."""
    assert one.keys() == other.keys(), "the tensors saved differ"
    return max(float((one[k] - other[k]).norm() / one[k].norm().clamp(min=1e-12)) for k in one)


def _write(rows: list[dict[str, Any]]) -> None:
    """Write the table and its numbers to ``accept/strategies.md`` and ``accept/strategies.json``."""
    names = ["method", "strategy", "processes", *LIMITS]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [row["failed"]] + [""] * (len(LIMITS) - 1) if "failed" in row else [f"{row[n]:.1e}" for n in LIMITS]
        lines.append(f"| {' | '.join([str(row[n]) for n in names[:3]] + cells)} |")
    (OUTPUT / "strategies.md").write_text("\n".join(lines) + "\n")
    (OUTPUT / "strategies.json").write_text(json.dumps(rows, indent=2) + "\n")
