"""Liger's kernels against the plain layers, on small models of the architectures that both packages know.

``python -m tests.accept.kernels FOLDER`` prints what was seen as a line of JSON, and fails by an ``AssertionError``.
"""

from __future__ import annotations

from tests.helpers import interpreted  # isort: skip  # before liger-kernel

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from alignkit import Run, RunConfig, run
from alignkit.config import LoraConfig, TrainConfig
from alignkit.errors import ConfigError
from alignkit.models.adapters import add_adapter
from alignkit.scoring import probe
from alignkit.scoring.backends import innermost
from alignkit.scoring.scorer import install
from alignkit_precision import set_precision, settle
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.engine import VOCAB, build_trainer, configuration, random_pairs

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
WINDOWED: dict[str, Any] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6},
}

LORA, HALF, CHECKPOINTS = {"lora": True}, {"bf16": True}, {"gradient_checkpointing": True}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    **{kind: [{"method": "orpo"}, {"method": "orpo", **LORA, **HALF, **CHECKPOINTS}] for kind in KINDS},
    "llama": [
        {"method": "orpo"},
        {"method": "orpo", "scorer": "rows"},
        {"method": "orpo", "tie_word_embeddings": True},
        {"method": "orpo", **HALF},
        {"method": "sft", **CHECKPOINTS},
        {"method": "sft", **HALF},
        {"method": "dpo", **LORA},
        {"method": "dpo", **HALF},
        {"method": "dpo", **LORA, **HALF, **CHECKPOINTS},
        {"method": "dpo", "scorer": "rows", **LORA, **HALF},
    ],
}
SAME, ROUNDED, FARTHER = 1e-5, 0.3, 1.5
"""Most that float32 may be apart, relative, and the plain layers in bfloat16 from float32; how much farther the kernels may be."""


def build(kind: str, lora: bool = False, **config: Any) -> Any:
    """Return a small model of a kind with random weights, those of norms included, and an adapter that is not zero."""
    torch.manual_seed(0)
    sizes = SIZES | WINDOWED.get(kind, {}) | config
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).float()
    if lora:
        model = add_adapter(model, LoraConfig(r=2, target_modules="all-linear"), 0, "CAUSAL_LM")
    for name, p in model.named_parameters():
        if p.ndim < 2 or "lora_B" in name:
            p.data += 0.2 * torch.randn_like(p)
    return model


def trained(
    folder: Path, kind: str, fused: bool, *, method: str, scorer: str = "auto", **given: Any
) -> list[torch.Tensor]:
    """Return the losses of two optimizer steps, and the gradient of each trained weight in the first."""
    train = {key: given.pop(key) for key in ("bf16", "gradient_checkpointing") if key in given}
    model = build(kind, **given)
    steps = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 1}
    config = configuration(method, **steps, **train, use_liger_kernel=fused)
    trainer, seen = build_trainer(config, folder, random_pairs(2, longest=7), model=model, scorer=scorer)
    precision = set_precision(innermost(model), config)
    assert precision.get("layers") == ("liger" if fused else None), precision
    trainer.train()
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    return [torch.tensor(seen.losses()), *seen.gradients[0].split(sizes)]


def apart(found: list[torch.Tensor], truth: list[torch.Tensor], *, each: bool) -> float:
    """Return the distance from the true tensors over their norm: of all together, or the largest of each.

    Of each, norms count as at least a thousandth of the largest.
    """
    assert len(found) == len(truth)
    if not each:
        found, truth = [torch.cat(found)], [torch.cat(truth)]
    least = max(float(one.norm()) for one in truth[1:] or truth) / 1e3
    pairs = zip(found, truth, strict=True)
    return max(float((one - other).norm()) / max(float(other.norm()), least) for one, other in pairs)


def parity(folder: Path) -> Iterator[tuple[str, float, float | None]]:
    """Yield each variant, how far it is from the plain layers in float32, and in bfloat16 how far these are."""
    for kind, variants in VARIANTS.items():
        for number, variant in enumerate(variants):
            name = f"{kind} {' '.join(str(v) if isinstance(v, str) else k for k, v in variant.items())}"
            at = lambda side, f=folder, k=kind, n=number: f / f"{k}-{n}-{side}"
            exact = {key: value for key, value in variant.items() if key != "bf16"}
            truth = trained(at("truth"), kind, False, **exact)
            half = bool(variant.get("bf16"))
            away = apart(trained(at("fused"), kind, True, **variant), truth, each=not half)
            if not half:
                assert away <= SAME, f"{name}: {away:.1e}"
                yield name, away, None
                continue
            plain = apart(trained(at("plain"), kind, False, **variant), truth, each=False)
            assert away <= FARTHER * plain <= FARTHER * ROUNDED, f"{name}: {away:.1e}, plain layers {plain:.1e}"
            yield name, away, plain


def exchanged(kind: str, kernels: dict[str, bool] | None = None, **config: Any) -> str:
    """Return the reason why the kernels of a kind are refused (empty: they compute the same)."""
    model = build(kind, **config)
    install(model)
    given = {"use_liger_kernel": True, "liger_kernel_config": kernels}
    try:
        set_precision(model, RunConfig(method="sft", train=TrainConfig.model_validate(given)))
    except ConfigError as error:
        return str(error)
    return ""


def finished(folder: Path, fused: bool) -> Run:
    """Train, evaluate and sample by way of ``align run``'s own code, on two rows."""
    pairs = [
        {"prompt": f"{word} is", "chosen": " good", "rejected": " a bad one"} for word in ("tea", "rain", "snow", "sun")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    steps = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "bf16": False}
    done = run(
        RunConfig.model_validate(
            {
                "method": "dpo",
                "model": str(folder / "model"),
                "data": {"source": str(folder / "pairs.jsonl"), "eval_split": 0.5},
                "train": {**steps, "use_liger_kernel": fused, "save_strategy": "no"},
                "eval": {"samples": 1, "sample_tokens": 4, "suites": ["prefs"]},
                "run": {"output": str(folder), "name": "fused" if fused else "plain", "plots": False},
            }
        )
    )
    assert done is not None
    return done


def whole_run(folder: Path) -> dict[str, Any]:
    """Compare a run with the kernels and one without: reference, losses, evaluation, answers, record, saved model."""
    from alignkit.demo import model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    build("llama", **ends, vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with patch.object(settle, "refuse_without_liger"):  # there is no GPU here
        fused, plain = finished(folder, True), finished(folder, False)
    assert fused.record["precision"] == {**plain.record["precision"], "layers": "liger"}, fused.record["precision"]
    read = lambda one, name: [json.loads(line) for line in (one.directory / name).read_text().splitlines()]
    losses = [[line["loss"] for line in read(one, "metrics.jsonl") if "loss" in line] for one in (fused, plain)]
    assert len(losses[0]) == 2, losses
    assert torch.allclose(*map(torch.tensor, losses), rtol=SAME), losses
    assert abs(losses[0][0] - torch.tensor(2.0).log()) < SAME, losses  # the reference is the policy
    scores = [json.loads((one.directory / "eval/prefs.json").read_text())["metrics"] for one in (fused, plain)]
    for name, metric in scores[1].items():
        assert abs(scores[0][name]["value"] - metric["value"]) <= SAME * (1 + abs(metric["value"])), name
    models = [AutoModelForCausalLM.from_pretrained(one.directory / "model") for one in (fused, plain)]
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert torch.allclose(*weights, atol=1e-5)
    assert not any("Liger" in repr(model) for model in models)
    stored = [(one.directory / "model/config.json").read_text() for one in (fused, plain)]
    assert stored[0] == stored[1]
    answers = [sorted(path.name for path in one.directory.glob("*sample*")) for one in (fused, plain)]
    assert answers[0] == answers[1]
    for name in answers[0]:
        assert (fused.directory / name).read_text() == (plain.directory / name).read_text(), name
    return {
        "metrics": len(scores[1]),
        "files of answers": answers[0],
        "weights apart": float((weights[0] - weights[1]).abs().max()),
    }


def main(folder: Path) -> None:
    """Run every part and print what was seen."""
    # Shorter rows for the comparison before a run: here a token takes a tenth of a second.
    with patch.object(probe, "WINDOW", 4), patch.object(probe, "_SHAPES", ((4, (2, 3)), (2, (5, 1)))):
        partial = exchanged(
            "phi3", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
        )
        assert "{rope: false}" in partial, partial
        seen: dict[str, Any] = {"partial rotary embeddings": partial.partition("does: ")[2]}
        gelu = exchanged("llama", hidden_act="gelu")
        assert "{swiglu: false}" in gelu, gelu
        assert not exchanged("llama", {"swiglu": False}, hidden_act="gelu")
        seen["run"] = whole_run(folder)
        for name, away, plain in parity(folder):
            seen[name] = f"{away:.1e}" + (f" (plain {plain:.1e})" if plain else "")
            print(name, seen[name], file=sys.stderr, flush=True)
    for kind in KINDS:
        parts = vars(sys.modules[type(build(kind)).__module__])
        assert not [
            name for name, value in parts.items() if str(getattr(value, "__module__", "")).startswith("liger")
        ], kind
    print(json.dumps(seen))


if __name__ == "__main__":
    assert interpreted
    main(Path(sys.argv[1]))
