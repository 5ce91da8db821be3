"""Acceptance check of ``--dry-run``: the estimated peak of memory against the measured one, on models of different shapes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from tests.accept.commands import ALIGN, command, settings
from tests.accept.models import make_tokenizer

TOLERANCE = 0.15
POSITIONS = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "30M": (
        "LlamaConfig",
        {"vocab_size": 32000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8},
    ),
    "100M": (
        "LlamaConfig",
        {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8},
    ),
    "deep": (
        "Qwen3Config",
        {"vocab_size": 8000, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 32},
    ),
    "270M": (
        "Gemma3TextConfig",
        {"vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "head_dim": 256},
    ),
}
HEADS = {"30M": (6, 6), "100M": (12, 4), "deep": (4, 2), "270M": (4, 1)}


class Case(NamedTuple):
    """A run whose memory is estimated and measured."""

    model: str
    method: str
    settings: dict[str, Any]


LORA = {"model__lora__r": 8}
CHECKPOINTING = {"train__gradient_checkpointing": "true"}
BF16 = {"train__bf16": "true"}
CASES = [
    Case("demo", "orpo", {}),
    Case("30M", "orpo", {}),
    Case("30M", "dpo", CHECKPOINTING),
    Case("30M", "sft", BF16),
    Case("30M", "sft", {"train__optim": "adafactor"}),
    Case("100M", "dpo", LORA),
    Case("100M", "orpo", {**LORA, **CHECKPOINTING, **BF16}),
    Case("deep", "sft", {}),
    Case("deep", "grpo", {"reward": "length", "group": 4, "max_new_tokens": 48}),
    Case("270M", "orpo", LORA),
    Case("270M", "sft", {"model__dtype": "bfloat16"}),
    Case("270M", "dpo", {}),
]


def dry_run_memory(work: Path) -> dict[str, Any]:
    """``align run --dry-run`` estimates the peak of a process's memory to 15 %, on five models, four methods and both precisions."""
    rows = [measured(work, case, f"case-{number}") for number, case in enumerate(CASES)]
    for row in rows:
        print("      {case:<60} estimated {estimated:6.2f} GiB, measured {measured:6.2f}, {error:+.0%}".format(**row))
    (work / "memory.json").write_text(json.dumps(rows, indent=2) + "\n")
    worst = max(rows, key=lambda row: abs(row["error"]))
    assert abs(worst["error"]) <= TOLERANCE, worst
    return {"cases": len(rows), "worst": worst}


def measured(work: Path, case: Case, name: str) -> dict[str, Any]:
    """Return the estimated and the measured peak of a case, in GiB."""
    options = ["--method", case.method, *settings(**case.settings)]
    if case.model != "demo":
        options += ["--model", str(_model(work, case.model)), "--data", str(_rows(work))]
    options += settings(
        train__max_steps=3,
        train__logging_steps=1,
        train__save_strategy="no",
        eval__samples=0,
        eval__suites="prefs",
        data__eval_limit=8,
        data__check__enabled="false",
        run__plots="false",
    )
    dry = command(ALIGN, "run", *options, "--dry-run", cwd=work).stderr
    command(ALIGN, "run", *options, "--name", name, cwd=work)
    peak = json.loads((work / "runs" / name / "run.json").read_text())["processes"]["peak_memory_gb"][0]
    words = " ".join(re.sub("[│\\s]+", " ", dry).split())
    found = re.search(r"memory about ([\d.]+) GiB", words)
    assert found, dry
    estimated = float(found[1])
    what = " ".join(
        [case.model, case.method, *(f"{key.replace('__', '.')}={value}" for key, value in case.settings.items())]
    )
    return {"case": what, "estimated": estimated, "measured": peak, "error": round(estimated / peak - 1, 3)}


def _rows(work: Path) -> Path:
    """Write pairs whose prompts and answers are all about as long, and return the file."""
    from alignkit.demo import data_path

    texts = [json.loads(line) for line in data_path("train").read_text().splitlines()]
    said = lambda value: value if isinstance(value, str) else value[-1]["content"]
    joined = lambda key, i, n: " ".join(said(texts[(i * n + k) % len(texts)][key]) for k in range(n))
    path = work / "rows.jsonl"
    pairs = [
        {"prompt": joined("prompt", i, 8), "chosen": joined("chosen", i, 6), "rejected": joined("rejected", i, 6)}
        for i in range(64)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def _model(work: Path, name: str) -> Path:
    """Write a model with random weights, in bfloat16 as they are published, and return its directory."""
    import torch
    import transformers

    path = work / "models" / name
    if not path.exists():
        kind, sizes = MODELS[name]
        heads, groups = HEADS[name]
        config = getattr(transformers, kind)(
            num_attention_heads=heads, num_key_value_heads=groups, **sizes, **POSITIONS
        )
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(path)
        make_tokenizer().save_pretrained(path)
    return path
