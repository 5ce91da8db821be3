"""PPO and GRPO in two processes (gloo) sample, train and evaluate as in one, whatever rows of a rollout each of them has.

Answers are short and logits far apart compared with their rounding, so that it flips no token.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ddp_worker
from tests.helpers.forked import run_ranks
from tests.helpers.onpolicy import GRPO, PPO, SAMPLING

pytestmark = pytest.mark.slow

TRAIN: dict[str, Any] = {"learning_rate": 0.1, "max_steps": 6, "logging_steps": 1}
JOBS: dict[str, Any] = {
    "ppo": {
        "method": PPO | {"kl_target": 0.1, "kl_horizon": 20, "whiten_rewards": True, "max_new_tokens": 5},
        "rows": 4,
        "at_once": 40,
    },
    "grpo with an adapter": {
        "method": GRPO | {"epochs": 2, "minibatches": 2, "scale": "batch", "beta": 0.05, "max_new_tokens": 5},
        "rows": 2,  # a minibatch of two rows is often one process's alone
        "held_out": 1,
        "lora": True,
    },
    "grpo with dynamic sampling": {
        "method": GRPO
        | {"refill_rounds": 2, "group": 2, "max_new_tokens": 2, "minibatches": 2, "epochs": 2, "importance": "sequence"}
        | {"scale": "whiten", "entropy_coef": 0.01},
        "rows": 2,
    },
    "raft": {"method": {"name": "raft", **SAMPLING, "group": 3, "max_new_tokens": 4, "minibatches": 2}, "rows": 2},
    "distill": {
        "method": {"name": "distill", "teacher": "demo", "lmbda": 1.0, "max_new_tokens": 4, "minibatches": 2},
        "rows": 2,
    },
    "online-dpo": {
        "method": {"name": "online-dpo", **SAMPLING, "max_new_tokens": 2, "minibatches": 2, "refill_rounds": 1},
        "rows": 2,
    },
    "remax": {"method": GRPO | {"variant": "remax", "max_new_tokens": 4, "overlong_buffer": 0.5}, "rows": 2},
}

SHARDED = ("ppo", "grpo with dynamic sampling")


def job(name: str, output: Path, processes: int, **changes: Any) -> dict[str, Any]:
    given = {key: value for key, value in JOBS[name].items() if key != "rows"}
    train = TRAIN | {"per_device_train_batch_size": JOBS[name]["rows"] // processes}
    return given | {"train": train, "prompts": True, "output": str(output), "result": "found.pt", **changes}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    jobs = [job(name, folder / name, 2) for name in JOBS]
    sharded = [job(name, folder / f"{name} sharded", 2, sharded=True) for name in SHARDED]
    run_ranks(2, ddp_worker.work, [*jobs, *sharded], cwd=folder)
    return folder


def numbers(result: dict[str, Any]) -> list[dict[str, float]]:
    """Return the log of every step and the held-out loss with its metrics, without speed and memory."""
    records = [*(record for record in result["logs"] if "loss" in record), result["eval"]]
    return [{k: v for k, v in r.items() if not k.startswith(("tokens_per", "memory"))} for r in records]


@pytest.mark.parametrize("name", [*JOBS, *(f"{name} sharded" for name in SHARDED)])
def test_two_processes_do_what_one_does(two: Path, tmp_path: Path, name: str) -> None:
    one = ddp_worker.train(job(name.removesuffix(" sharded"), tmp_path, 1))
    found = torch.load(two / name / "found.pt", weights_only=True)
    rows = [row for row in chain(*zip_longest(*found["answers"])) if row is not None]
    assert rows == one["answers"][0]
    assert len({tuple(answer) for row in rows for answer in row}) > 3
    assert numbers(found) == [pytest.approx(record, rel=1e-5, abs=1e-6) for record in numbers(one)]
    assert len(numbers(one)) == TRAIN["max_steps"] + 1
    assert float((found["weights"] - one["weights"]).norm() / one["weights"].norm()) < 1e-6
