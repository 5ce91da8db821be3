"""Two processes (gloo) train exactly as one does, stop, and go on."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.__main__ import main
from transformers import AutoModelForCausalLM

from tests.helpers import ddp_worker
from tests.helpers.engine import flat
from tests.helpers.forked import python, run_ranks

pytestmark = pytest.mark.slow

WHOLE_STEP = {"name": "dpo", "loss": {"bco": {"weight": 1, "beta": 0.1}, "aot": 1, "beta-dpo": 1, "sigmoid": 1}}
METHODS: dict[str, Any] = {
    "orpo": "orpo",
    "dpo": "dpo",
    "lambda0": {"name": "orpo", "lambda": 0.0},
    "step": WHOLE_STEP,
    "kto": "kto",
    "moving": {"name": "dpo", "reference_update_every": 1, "reference_mix": 0.5},
    "listwise-dpo": "listwise-dpo",
}
PPO: dict[str, Any] = {
    "name": "ppo",
    "reward": "length",
    "max_new_tokens": 6,
    "epochs": 2,
    "minibatches": 2,
    "kl_target": 0.1,
    "kl_horizon": 20,
}
CUT = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_grad_norm": 0.5}
ADAM = {"per_device_train_batch_size": 4, "optim": "adamw_torch", "max_steps": 5, "logging_steps": 2}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two processes, all jobs in one launch."""
    folder = tmp_path_factory.mktemp("ddp")
    jobs = [
        {"method": method, "train": CUT, "output": str(folder / name), "result": "two.pt"}
        for name, method in METHODS.items()
    ]
    adam = {"method": "orpo", "train": ADAM}
    jobs += [
        adam | {"output": str(folder / "whole"), "result": "whole.pt"},
        adam | {"output": str(folder / "cut"), "result": "first.pt", "stop": 3},
        adam | {"output": str(folder / "cut"), "result": "second.pt", "resume": True},
    ]
    ppo = {"method": PPO, "train": ADAM | {"max_steps": 8}, "prompts": True}
    jobs += [
        ppo | {"output": str(folder / "ppo"), "result": "whole.pt"},
        ppo | {"output": str(folder / "ppo-cut"), "result": "first.pt", "stop": 3},
        ppo | {"output": str(folder / "ppo-cut"), "result": "second.pt", "resume": True},
    ]
    sharded = {"sharded": True, "save": True}
    jobs += [
        {"method": WHOLE_STEP, "train": CUT, "output": str(folder / "sharded-step"), "result": "two.pt", **sharded},
        {"method": "orpo", "train": CUT, "output": str(folder / "sharded"), "result": "two.pt", **sharded},
        adam | sharded | {"method": "dpo", "output": str(folder / "sharded-whole"), "result": "whole.pt"},
        adam | sharded | {"method": "dpo", "output": str(folder / "sharded-cut"), "result": "first.pt", "stop": 3},
        adam
        | sharded
        | {"method": "dpo", "output": str(folder / "sharded-cut"), "result": "second.pt", "resume": True},
        ppo | sharded | {"output": str(folder / "sharded-ppo"), "result": "whole.pt"},
        ppo | sharded | {"output": str(folder / "sharded-ppo-cut"), "result": "first.pt", "stop": 3},
        ppo | sharded | {"output": str(folder / "sharded-ppo-cut"), "result": "second.pt", "resume": True},
    ]
    run_ranks(2, ddp_worker.work, jobs, cwd=folder)
    return folder


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(two: Path, tmp_path: Path, name: str) -> None:
    """Steps of 8, 8 and 4 rows, one process cut into (8, 1), two into (1, 4) each; the last step leaves ranks uneven passes."""
    job = {"method": METHODS[name], "train": {"max_grad_norm": 0.5}, "output": str(tmp_path), "result": "one.pt"}
    a, b = load(two / name / "two.pt"), ddp_worker.train(job)
    assert a["wrapper"] == "DistributedDataParallel"
    assert a["losses"] == pytest.approx(b["losses"], rel=1e-6)
    assert a["accuracies"] == pytest.approx(b["accuracies"])
    assert a["eval"]["eval_loss"] == pytest.approx(b["eval"]["eval_loss"], rel=1e-6)
    for mine, other in zip(a["gradients"], b["gradients"], strict=True):
        assert float((mine.double() - other.double()).norm() / other.double().norm()) < 1e-6
    assert float((a["weights"] - b["weights"]).norm() / b["weights"].norm()) < 1e-6


@pytest.mark.parametrize("name", ["orpo", "kto"])
def test_a_process_without_held_out_rows_knows_their_loss(two: Path, name: str) -> None:
    first, second = load(two / f"{name}/two.pt")["losses_of_one_row"]
    assert first == second > 0


def test_two_processes_resume_bit_for_bit(two: Path) -> None:
    whole, first, second = (load(two / p) for p in ("whole/whole.pt", "cut/first.pt", "cut/second.pt"))
    assert not torch.equal(first["weights"], whole["weights"])
    assert torch.equal(second["weights"], whole["weights"])


def test_two_processes_resume_inside_a_rollout(two: Path) -> None:
    """Each has its own half of the rollout, whitened over both, and one adaptive penalty."""
    whole, first, second = (load(two / p) for p in ("ppo/whole.pt", "ppo-cut/first.pt", "ppo-cut/second.pt"))
    assert not torch.equal(first["weights"], whole["weights"])
    assert torch.equal(second["weights"], whole["weights"])
    assert whole["eval"]["eval_reward"] <= 1
    assert all(length is not None and 0 < length <= 6 for length in whole["lengths"])


def test_a_sharded_model_trains_as_a_whole_one(two: Path) -> None:
    """Each process holds half of the weights; losses, gradients, weights and what is saved are those of data parallelism."""
    same = {
        "sharded/two.pt": "orpo/two.pt",
        "sharded-step/two.pt": "step/two.pt",
        "sharded-ppo/whole.pt": "ppo/whole.pt",
    }
    for name, other in same.items():
        a, b = load(two / name), load(two / other)
        assert a["wrapper"] == "FSDPLlamaForCausalLM"
        assert b["sharded"] / 2 <= a["sharded"] < b["sharded"] / 1.9
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-5, abs=1e-6)
        assert a["eval"]["eval_loss"] == pytest.approx(b["eval"]["eval_loss"], rel=1e-5, abs=1e-6)
        for mine, their in zip(a["gradients"], b["gradients"], strict=True):
            assert float((mine - their).norm() / their.norm()) < 1e-4
        assert float((a["weights"] - b["weights"]).norm() / b["weights"].norm()) < 1e-4  # Adam divides by small numbers


@pytest.mark.parametrize("name", ["sharded", "sharded-ppo"])
def test_a_sharded_model_resumes_bit_for_bit(two: Path, name: str) -> None:
    start = two / ("sharded-whole" if name == "sharded" else "sharded-ppo")
    whole = load(start / "whole.pt")
    cut = two / ("sharded-cut" if name == "sharded" else "sharded-ppo-cut")
    assert not torch.equal(load(cut / "first.pt")["weights"], whole["weights"])
    assert torch.equal(load(cut / "second.pt")["weights"], whole["weights"])


def test_what_a_sharded_run_saves_is_a_stock_model(two: Path) -> None:
    """Its weights are whole, the critic is beside it, and plain transformers loads both without a remark."""
    for name, result in (("sharded-whole", "whole.pt"), ("sharded-ppo", "whole.pt")):
        model, info = AutoModelForCausalLM.from_pretrained(two / name / "model", output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"]
        assert "distributed" not in (two / name / "model" / "config.json").read_text()
        own = flat(model.parameters())
        assert torch.equal(own, load(two / name / result)["weights"][: len(own)])
    assert (two / "sharded-ppo/model/critic.safetensors").is_file()


def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    """Both processes evaluate, one speaks and writes; both leave in peace."""
    launcher = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "alignkit"]
    sets = ("train.max_steps=2", "train.stop_on=prefs/accuracy_sum", "train.eval_steps=1", "data.eval_limit=20")
    options = ["--method", "dpo", "--name", "pair", *(word for text in sets for word in ("--set", text))]
    run = ["run", *options, "--set", "run.plots=false"]
    done = subprocess.run([*launcher, *run], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    words = ["eval", "runs/pair", "--suite", "prefs,perplexity", "--json"]
    (stdout, stderr), (silent, _) = run_ranks(2, main, words, cwd=tmp_path)
    assert not re.search("warn|error|terminate", done.stderr + stderr, re.IGNORECASE)
    record = json.loads((tmp_path / "runs/pair/run.json").read_text())
    assert record["status"] == "finished"
    assert record["best"]["metric"] == "prefs/accuracy_sum"
    assert (done.stdout + done.stderr).count("parameters") == 1
    (found,) = json.loads(stdout)
    assert silent == ""
    assert found["suites"]["perplexity"]["cached"] is True  # the run's own result
    metrics = record["evaluation"]["after"]["perplexity"]
    assert found["suites"]["perplexity"]["metrics"]["perplexity"] == metrics["perplexity"]
