"""One process of a data-parallel training run; started by torchrun in the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from alignkit.checkpoints import last_checkpoint

from tests.engine_helpers import StopAt, build_trainer, configuration, random_pairs, weights


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    output = Path(job["output"])
    config = configuration(job["method"], **job["train"])
    stop = [StopAt(job["stop"])] if job.get("stop") else []
    trainer, seen = build_trainer(
        config, output / "checkpoints", random_pairs(20), held_out=random_pairs(5, seed=1), callbacks=stop
    )
    resume = str(last_checkpoint(output / "checkpoints")) if job.get("resume") else None
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    if trainer.args.process_index == 0:
        torch.save(
            {
                "gradients": seen.gradients,
                "losses": seen.losses(),
                "weights": weights(trainer.model),
                "eval": metrics,
                "accuracies": [r["rewards/accuracies"] for r in seen.logs if "loss" in r],
                "wrapper": type(trainer.model_wrapped).__name__,
            },
            output / job["result"],
        )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
