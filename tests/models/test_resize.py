"""Tokens that a tokenizer has and the model lacks: refused with the remedy, or given embeddings that plain loading finds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.__main__ import main
from alignkit.demo import model_path
from alignkit.errors import ModelError
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.runs import align, short_run

LORA = {"r": 2}
BOTH = {"r": 2, "modules_to_save": ["embed_tokens", "lm_head"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo's model with two tokens more in its tokenizer."""
    path = shutil.copytree(model_path(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(path)
    return path


def run(where: Path, model: Path, name: str, **settings: Any) -> Any:
    quick: dict[str, Any] = {"train": {"max_steps": 2}, "eval": {"suites": [], "samples": 0}, "run": {"plots": False}}
    return short_run(where, name, "sft", model={"name": str(model), **settings}, data={"limit": 40}, **quick)


def test_refused_with_the_remedy(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"only \d+ embeddings: .* model\.resize_embeddings: true"):
        run(tmp_path, model, "refused")
    assert main(["run", "--dry-run", "--method", "orpo", "--model", str(model)]) == 2
    assert "model.resize_embeddings: true" in capfd.readouterr().err


@pytest.mark.parametrize("lora", [None, LORA, BOTH], ids=["full", "adapter", "adapter with embeddings"])
def test_saved_model_is_loaded_by_plain_libraries_and_scores_the_same(
    tmp_path: Path, model: Path, lora: dict[str, Any] | None
) -> None:
    trained = run(tmp_path, model, "run", resize_embeddings=True, lora=lora)
    own, tokenizer = trained.load()
    auto = AutoModelForCausalLM if lora is None else AutoPeftModelForCausalLM
    plain = auto.from_pretrained(trained.directory / "model", dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer("<think> what is two plus one ? </think>")["input_ids"]])
    assert int(ids.max()) >= len(tokenizer) - 2
    with torch.no_grad():
        torch.testing.assert_close(own(ids).logits, plain(ids).logits)
    assert own.get_input_embeddings().weight.shape[0] == len(tokenizer)
    # The saved run is a start model like any other, without the setting.
    run(tmp_path, trained.directory, "continued")


def test_start_model_is_the_same_for_every_seed(model: Path) -> None:
    from alignkit import build_model
    from alignkit.config import ModelConfig

    config = ModelConfig(name=str(model), resize_embeddings=True)
    assert build_model(config, seed=1).fingerprint == build_model(config, seed=2).fingerprint


def test_rank_that_fits_no_machine(capfd: pytest.CaptureFixture[str]) -> None:
    for dry in (["--dry-run"], []):
        assert main(["run", "--method", "orpo", *dry, "--set", "model.lora.r=1000000000"]) == 2
        assert "model.lora.r 1,000,000,000 needs" in capfd.readouterr().err


def test_commands_of_a_chat(tmp_path: Path) -> None:
    question = "what is two plus one ?"
    typed = "\n".join(["/help", question, "/clear", question, "/nothing", "/exit", question]) + "\n"
    done = align("chat", "demo", "--max-new-tokens", "8", cwd=tmp_path, input=typed)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert done.stderr.count("(also /clear, /new)") == 2
    assert "/nothing is not a command" in done.stderr
