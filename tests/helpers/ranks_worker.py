"""One of the processes that evaluate and train together; each writes what it found to a file of its own."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from alignkit.errors import AlignError
from alignkit.system.distributed import leave, rank
from alignkit_eval import evaluate
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.helpers.runs import saved_weights, short_run

FORWARDS: Counter[str] = Counter()
"""Forwards of whole models in this process, by the class of the model."""


def count(module: torch.nn.Module, _inputs: Any) -> None:
    if hasattr(module, "lm_head"):
        FORWARDS[type(module).__name__] += 1


def work(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Evaluate (``suites``, ``sets``, ``strategy``), or train (``run``: method and sections of the configuration)."""
    if "run" in job:
        done = short_run(folder / "runs", job["name"], **job["run"])
        return {"evaluation": done.evaluation, "metrics": done.metrics, "weights": saved_weights(done.directory).hex()}
    strategy = job.get("strategy", "auto")
    os.environ["ALIGN_CACHE"] = str(folder / f"cache-{strategy}")
    (found,) = evaluate(["demo"], job["suites"], sets=job["sets"], output=folder / job["name"], strategy=strategy)
    return {
        suite: {"metrics": result.metrics, "items": list(result.items), "settings": dict(result.settings)}
        for suite, result in found.results.items()
    }


def main(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Do the jobs; ``NAME.RANK.json`` holds a job's results or error, the forwards, and the next random numbers."""
    torch.set_num_threads(1)
    register_module_forward_pre_hook(count)
    for job in jobs:
        FORWARDS.clear()
        torch.manual_seed(rank())
        random.seed(rank())
        found: dict[str, Any] = {}
        try:
            found["results"] = work(job, folder)
        except AlignError as error:
            found |= {"error": str(error), "origin": getattr(error, "origin", None)}
        found |= {"forwards": dict(FORWARDS), "draws": [torch.rand(()).item(), random.random()]}
        (folder / f"{job['name']}.{rank()}.json").write_text(json.dumps(found))
    leave()
