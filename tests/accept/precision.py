"""Acceptance check of ``model.dtype: auto`` against float32: time, memory and accuracy."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tests.accept.commands import ALIGN, command, settings

GOAL = 1.8
"""Least ratio of CPU seconds of the reference pass and the training of DPO with LoRA, where bfloat16 is faster."""
EQUIVALENT = 0.01
SEEDS = 24
"""Accuracy on the demo differs by .017 (standard deviation) between runs of one seed: three seeds cannot show .01."""
LONG = "prompt of a row that takes a few hundred tokens".split()


def precision(work: Path) -> dict[str, Any]:
    """DPO with LoRA on 270M parameters takes at most 1/1.8 of float32's CPU time; accuracy on the demo is within .01."""
    from alignkit_precision.settle import faster_in_bfloat16

    found = speed(work, layers=20, hidden=1024, rows=32, steps=6)
    if faster_in_bfloat16():
        assert found["ratio"] >= GOAL, f"{found['ratio']:.2f} times as fast"
    seeds = ",".join(map(str, range(SEEDS)))
    over = ["--over", "method=dpo", "--over", "model.dtype=float32,auto", "--seeds", seeds, "--name", "types"]
    command(ALIGN, "sweep", *over, cwd=work)
    low, mean, high = _paired(
        [_accuracy(work, "auto", seed) - _accuracy(work, "float32", seed) for seed in range(SEEDS)]
    )
    shown = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    assert -EQUIVALENT < low < high < EQUIVALENT, shown
    return {**found, "accuracy, auto minus float32": shown}


def _accuracy(work: Path, dtype: str, seed: int) -> float:
    stored = json.loads((work / f"runs/types/dpo-model.dtype={dtype}-seed={seed}/eval/prefs.json").read_text())
    return float(stored["metrics"]["accuracy_sum"]["value"])


def _paired(differences: list[float]) -> tuple[float, float, float]:
    """Return the mean of the differences of seeds with its 95 % t interval, these held-out items being fixed."""
    from scipy.stats import t

    mean = fmean(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / len(differences) ** 0.5
    return mean - half, mean, mean + half


def speed(work: Path, *, layers: int, hidden: int, rows: int, steps: int) -> dict[str, Any]:
    """Return the CPU seconds of DPO with LoRA in float32 and as ``auto`` has it, their ratios, and the peaks of memory."""
    _write(work, layers, hidden, rows)
    spent: dict[str, tuple[float, float, float]] = {}
    for dtype in ("float32", "auto"):
        short = settings(train__max_steps=steps, eval__suites="[]", eval__samples=0, run__plots="false")
        tuned = settings(model__lora__r=16, model__dtype=dtype, train__per_device_train_batch_size=4)
        source = ["--model", "model", "--data", "pairs.jsonl", "--name", dtype]
        command(ALIGN, "run", "--method", "dpo", *source, *short, *tuned, cwd=work)
        record = json.loads((work / "runs" / dtype / "run.json").read_text())
        seconds = {stage: record["timings"][stage]["cpu_seconds"] for stage in ("reference", "train")}
        spent[dtype] = (seconds["reference"], seconds["train"], record["train"]["memory_gb"])
    exact, auto = spent["float32"], spent["auto"]
    return {
        "reference": f"{exact[0]:.1f} s, {auto[0]:.1f} s ({exact[0] / auto[0]:.2f} x)",
        "training": f"{exact[1]:.1f} s, {auto[1]:.1f} s ({exact[1] / auto[1]:.2f} x)",
        "ratio": round((exact[0] + exact[1]) / (auto[0] + auto[1]), 2),
        "memory": f"{exact[2]:.2f} GB, {auto[2]:.2f} GB",
    }


def _write(work: Path, layers: int, hidden: int, rows: int) -> None:
    """Write a random Llama in bfloat16 with the demo's tokenizer, and pairs of a few hundred tokens."""
    import torch
    from alignkit.demo import model_path
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32_000, "tie_word_embeddings": True}
    config = LlamaConfig(hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, **shape)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(work / "model")
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(work / "model")
    draw = random.Random(0)
    text = lambda count: " ".join(draw.choices(LONG, k=count))
    pairs = [{"prompt": text(100), "chosen": text(40), "rejected": text(40)} for _ in range(rows)]
    (work / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
