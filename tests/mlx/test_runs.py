"""Runs with the MLX engine beside runs with torch, from the same seed, on a small model with the demo's tokenizer."""

import json

import pytest
import torch
from alignkit import build_model
from alignkit.config import ModelConfig
from alignkit.runs.api import resume
from alignkit.testing.tiny import tiny_llama
from safetensors.torch import load_file

from tests.helpers.runs import align, short_run

pytest.importorskip("mlx_lm", reason='pip install "alignkit[mlx]"')

pytestmark = pytest.mark.slow

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


def test_a_run_that_pauses_has_the_bits_of_one_that_does_not(tmp_path, small):
    """With dropout, warm-up and clipping, from a checkpoint in the middle; scores of the saved model are the run's."""
    found = []
    for name, paused in {"whole": {}, "paused": {"pause_at": [0.5]}}.items():
        options = {
            "model": {
                "name": str(small),
                "lora": {"r": 4, "dropout": 0.2, "modules_to_save": ["norm"]},
                "dtype": "float32",
            },
            "data": {"limit": 40, "eval_limit": 12, "check": {"enabled": False}},
            "train": STEPS | {"max_steps": 6, "warmup_steps": 2, "save_strategy": "steps", "save_steps": 3},
            "eval": {
                "suites": ["prefs", "perplexity", "kl", "generate"],
                "settings": {"generate": {"max_new_tokens": 8}},
                "before": False,
                "samples": 0,
            },
        }
        done = short_run(tmp_path, name, "dpo", **options, run={"engine": "mlx", **paused})
        if paused:
            done = resume(done.directory)
        found.append(done)
    whole, paused = (load_file(one.directory / "model" / "adapter_model.safetensors") for one in found)
    assert all(torch.equal(whole[name], paused[name]) for name in whole)
    assert found[0].evaluation["after"] == found[1].evaluation["after"]
    again = align("eval", found[0].directory, "--engine", "torch", "--suite", "prefs", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    scored = found[0].evaluation["after"]["prefs"]["margin_sum"]["value"]
    assert scored == pytest.approx(
        json.loads(again.stdout)[0]["suites"]["prefs"]["metrics"]["margin_sum"]["value"], abs=1e-3
    )


def test_answers_are_sampled_with_it(tmp_path, small):
    """Rollouts by MLX have the rewards, losses and gradients of torch's."""
    method = {"name": "grpo", "reward": "length", "max_new_tokens": 8, "group": 4}
    torch_run, mlx_run = runs(tmp_path, small, method, None, {"max_steps": 3})
    for name in ("loss", "grad_norm", "reward"):
        assert numbers(mlx_run, name) == pytest.approx(numbers(torch_run, name), abs=1e-4), name


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_exported_for_mlx_lm(tmp_path, small, dora):
    """``mlx_lm.load`` loads it, and scores as the run does; what its format does not have is refused."""
    lora = {"r": 4, "dora": dora, "target_modules": ["q_proj", "down_proj"]}
    options = {
        "data": {"limit": 20, "eval_limit": 6, "check": {"enabled": False}},
        "eval": {"suites": [], "samples": 0},
    }
    train = STEPS | {"max_steps": 2}
    done = short_run(tmp_path, "a", "orpo", model={"name": str(small), "lora": lora}, train=train, **options)
    exported = align("export", done.directory, "--format", "mlx", "--output", tmp_path / "out", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert described["fine_tune_type"] == ("dora" if dora else "lora")
    assert described["lora_parameters"]["keys"] == ["mlp.down_proj", "self_attn.q_proj"]
    assert set(load_file(tmp_path / "out" / "adapters.safetensors")) >= {"model.layers.1.self_attn.q_proj.lora_a"}
    merged = align("export", done.directory, "--format", "mlx", "--merge", done.directory, cwd=tmp_path)
    assert (merged.returncode, "without --merge" in merged.stderr) == (2, True)
