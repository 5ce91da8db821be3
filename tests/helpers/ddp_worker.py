"""One process of data-parallel training jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from alignkit.models.sharding import sharding
from alignkit.runs.saving import release
from alignkit.system.distributed import leave, rank, world_size
from alignkit.system.sharded import local
from alignkit.system.together import gathered
from alignkit.training.checkpoints import last_checkpoint
from alignkit.training.held_out import held_out_loss
from alignkit.training.trainer import AlignTrainer
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from tests.helpers.engine import (
    StopAt,
    build_trainer,
    configuration,
    random_answers,
    random_pairs,
    random_prompts,
    random_rankings,
    tiny_llama,
    weights,
)
from tests.helpers.onpolicy import lora

ROWS = {"kto": random_answers, "listwise-dpo": random_rankings}
"""Rows of methods that do not train on pairs."""


def sharded_llama(output: Path) -> Any:
    """Return the tiny model sharded over the processes as it is loaded."""
    if rank() == 0:
        tiny_llama().save_pretrained(output / "start")
    _ = TrainingArguments(output_dir=str(output), use_cpu=True).device  # makes the process group
    gathered("the start model", None)
    config = AutoConfig.from_pretrained(output / "start")
    plan = sharding(AutoModelForCausalLM, config, world_size(), trusted=False)
    return AutoModelForCausalLM.from_pretrained(output / "start", distributed_config=plan)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Run a training job with the keys method, train (settings), output, result (file name), stop (step), resume.

    ``prompts`` trains on prompts, held-out ones too (``held_out``: how many); ``sharded`` and ``lora`` are about the model, ``at_once`` is the number of
    tokens that a rollout scores at once, and ``save`` keeps the model.
    """
    output = Path(job["output"])
    output.mkdir(parents=True, exist_ok=True)
    config = configuration(job["method"], **job["train"])
    stop = [StopAt(job["stop"])] if job.get("stop") else []
    rows = random_prompts if job.get("prompts") else ROWS.get(str(job["method"]), random_pairs)
    model = sharded_llama(output) if job.get("sharded") else lora(tiny_llama()) if job.get("lora") else None
    trainer, seen = build_trainer(
        config,
        output / "checkpoints",
        rows(20),
        model=model,
        held_out=rows(job.get("held_out", 5), seed=1),
        callbacks=stop,
    )
    if job.get("at_once"):
        trainer.parts.rollouts.max_tokens = job["at_once"]
    resume = str(last_checkpoint(output / "checkpoints")) if job.get("resume") else None
    trainer.train(resume_from_checkpoint=resume)
    result = {
        "eval": trainer.evaluate(),
        "gradients": seen.gradients,
        "losses": seen.losses(),
        "weights": weights(trainer.model),
        "sharded": sum(local(p).numel() for p in trainer.model.parameters()),
        "accuracies": [record.get("rewards/accuracies") for record in seen.logs if "loss" in record],
        "lengths": [record.get("length") for record in seen.logs if "loss" in record],
        "logs": seen.logs,
        "answers": gathered("answers", answers(trainer)),
        "wrapper": type(trainer.model_wrapped).__name__,
    }
    if job["method"] in ("orpo", "kto"):  # one held-out row: the second process has none
        given = trainer.model, rows(1, seed=1), 0.0, trainer.compute_loss_context_manager
        result["losses_of_one_row"] = gathered("the loss", held_out_loss(trainer.steps, *given)["loss"])
    if job.get("save"):
        trainer.save_model(str(output / "model"))
    if trainer.args.process_index == 0:
        torch.save(result, output / job["result"])
    release(trainer)
    return result


def answers(trainer: AlignTrainer) -> list[list[list[int]]]:
    """Return the answers to each row of the last rollout, if a rollout is kept."""
    buffer = trainer.steps.buffer
    return [] if buffer is None else [[[*ids] for ids in example.completions] for example in buffer.examples]


def work(jobs: list[dict[str, Any]]) -> None:
    """Run jobs one after the other."""
    torch.set_num_threads(1)
    for job in jobs:
        train(job)
    leave()
