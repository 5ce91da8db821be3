"""Two processes (gloo) train exactly as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


def train(tmp_path: Path, processes: int, result: str, **job: Any) -> dict[str, Any]:
    job = {"method": "orpo", "train": {"max_grad_norm": 0.5}, "output": str(tmp_path), "result": result} | job
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launch = launcher if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*launch, "-m", "tests.ddp_worker", json.dumps(job)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(tmp_path / result, weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["orpo", "dpo", {"name": "orpo", "lambda": 0.0}], ids=["orpo", "dpo", "lambda0"])
def test_two_processes_equal_one(tmp_path: Path, method: Any) -> None:
    """Steps of 8, 8 and 4 rows, one process cut into (8, 1), two into (1, 4) each; the last step leaves ranks uneven passes."""
    one = train(tmp_path, 1, "one.pt", method=method)
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_grad_norm": 0.5}
    two = train(tmp_path, 2, "two.pt", method=method, train=cut)
    assert two["wrapper"] == "DistributedDataParallel"
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert two["accuracies"] == pytest.approx(one["accuracies"])
    assert two["eval"]["eval_loss"] == pytest.approx(one["eval"]["eval_loss"], rel=1e-6)
    for a, b in zip(two["gradients"], one["gradients"], strict=True):
        assert float((a.double() - b.double()).norm() / b.double().norm()) < 1e-6
    assert float((two["weights"] - one["weights"]).norm() / one["weights"].norm()) < 1e-6
