"""The guard against non-finite gradients over two processes: all stop together, before the optimizer, under every strategy."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from alignkit.training.non_finite import gradient_norm, watch_gradients
from torch import nn

from tests.helpers import ranks_worker
from tests.helpers.forked import run_ranks
from tests.helpers.third_party import Site

METHOD = """
import os
from pathlib import Path
import torch
from alignkit import LossOutput, LossTerm, Method, Settings, hookimpl
from torch.optim.optimizer import register_optimizer_step_pre_hook

class Steep(Method[Settings]):
    name, paper, rows, settings_type = "steep", "none", "completion", Settings
    poisoned = False

    @hookimpl
    def align_compute_loss(self, policy, batch, progress):
        total = -policy.score(batch.examples).logps.sum()
        if progress > 0.3 and os.environ["RANK"] == "1" and total.requires_grad:
            self.poisoned = True
            total = total + (total * 0.0).sqrt()  # a finite loss; the gradient is not a number
            register_optimizer_step_pre_hook(lambda *_: Path("stepped").touch())
        return LossOutput([LossTerm("steep", total, "rows")])
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_a_gradient_of_one_process_stops_all_before_the_optimizer(strategy: str, tmp_path: Path) -> None:
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip(f"the strategy {strategy} needs deepspeed, which is not installed")
    (tmp_path / "site").mkdir()
    Site(tmp_path / "site").install("align-steep", METHOD, steep="align_steep:Steep")
    settings = {
        "method": "steep",
        "data": {"limit": 40, "eval_limit": 4},
        "train": {"max_steps": 3, "save_strategy": "no", "per_device_train_batch_size": 3},
        "eval": {"suites": [], "samples": 0},
        "run": {"plots": False, "strategy": strategy},
    }
    jobs = [{"name": "steep", "run": settings}]
    run_ranks(2, ranks_worker.main, tmp_path, jobs, cwd=tmp_path, path=[tmp_path / "site"])
    first, second = [json.loads((tmp_path / f"steep.{rank}.json").read_text()) for rank in range(2)]
    assert "results" not in first
    assert first["error"].startswith("non-finite gradient (norm nan) at step 2, rows train-")
    assert first["error"].count("train-") == 6  # the rows of both
    assert (first["error"], first["origin"]) == (second["error"], second["origin"])
    assert not (tmp_path / "stepped").exists()


def test_gradients_that_are_taken_away_are_seen() -> None:
    """As DeepSpeed's: each is taken when it is made, in every micro-batch."""
    norms: list[torch.Tensor] = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    watch_gradients(model, norms)
    expected = []
    for seed in range(2):
        torch.manual_seed(seed)
        model(torch.randn(5, 3)).sum().backward()
        expected += [p.grad.norm() for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
    assert float(gradient_norm(model, norms)) == pytest.approx(float(torch.stack(expected).norm()))
    norms.clear()
    (model(torch.randn(5, 3)).sum() * 0.0).sqrt().backward()
    model.zero_grad(set_to_none=True)
    assert not torch.isfinite(gradient_norm(model, norms))
