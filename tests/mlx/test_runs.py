"""Runs with the MLX engine beside runs with torch, from the same seed, on a small model with the demo's tokenizer."""

import json

import pytest
from alignkit import build_model
from alignkit.config import ModelConfig
from alignkit.testing.tiny import tiny_llama
from safetensors.torch import load_file

from tests.helpers.runs import short_run

pytest.importorskip("mlx_lm", reason='pip install "alignkit[mlx]"')

STEPS = {
    "max_steps": 20,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "save_strategy": "no",
}
LORA = {"lora": {"r": 4}, "dtype": "float32"}
DORA = {"lora": {"r": 4, "dora": True, "modules_to_save": ["norm"]}, "dtype": "float32"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A directory with a Llama of two layers and the demo's tokenizer."""
    path = tmp_path_factory.mktemp("models") / "small"
    tiny_llama(vocab_size=1000, tie_word_embeddings=True).save_pretrained(path)
    build_model(ModelConfig()).tokenizer.save_pretrained(path)
    return path


def runs(tmp_path, small, method, model=None, train=None, **run):
    """Return the directories of a run with torch and one with MLX."""
    return [
        short_run(
            tmp_path,
            engine,
            method,
            model={"name": str(small), **(model or {})},
            data={"limit": 40, "eval_limit": 12, "check": {"enabled": False}},
            train=STEPS | (train or {}),
            eval={"suites": [], "samples": 0},
            run={"engine": engine, **run},
        ).directory
        for engine in ("torch", "mlx")
    ]


def numbers(path, name="loss"):
    return [row[name] for row in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if name in row]


def weights(path):
    return {k: v.float() for file in (path / "model").glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize(
    ("method", "model", "train"),
    [
        ("sft", None, {"optim": "adafactor", "weight_decay": 0.1}),
        ("dpo", None, {"gradient_checkpointing": True}),
        ("orpo", LORA, {"gradient_checkpointing": True, "lr_scheduler_type": "cosine", "warmup_steps": 2}),
        ("kto", DORA, None),
        ("reward", LORA, None),
        ("orpo", None, {"weight_decay": 0.1, "adam_beta2": 0.95, "max_grad_norm": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_training_is_that_of_torch(tmp_path, small, method, model, train):
    """Losses, gradient norms and learning rates of 20 steps, and the saved weights, agree."""
    torch_run, mlx_run = runs(tmp_path, small, method, model, train)
    for name, bound in {"loss": 1e-4, "grad_norm": 1e-2, "learning_rate": 1e-12}.items():
        found, expected = numbers(mlx_run, name), numbers(torch_run, name)
        assert len(found) == len(expected) == 20
        assert found == pytest.approx(expected, rel=0, abs=bound), name
    found, expected = weights(mlx_run), weights(torch_run)
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 2e-3
    assert json.loads((mlx_run / "run.json").read_text())["status"] == "finished"
