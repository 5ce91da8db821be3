"""Saving the trained model, and releasing what only training needed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.contract import LoadedModel
from alignkit.system.distributed import rank
from alignkit.system.files import replace_directory
from alignkit.system.together import gathered

if TYPE_CHECKING:
    from transformers import Trainer


def save_model(trainer: Trainer, loaded: LoadedModel, directory: Path) -> None:
    """Write weights and tokenizer to ``directory``, which appears whole or not at all; every process must call it."""
    staged = directory.with_name(f".{directory.name}.partial")
    if rank() == 0:
        shutil.rmtree(staged, ignore_errors=True)
    gathered("the directory of the model", None)
    with loaded.as_saved():
        trainer.save_model(str(staged))
    if rank() == 0:
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.yaml holds the same
        loaded.tokenizer.save_pretrained(staged)
        replace_directory(staged, directory)
    gathered("the saved model", None)


def release(trainer: Trainer) -> None:
    """Drop a trainer's optimizer and data-parallel wrapper once training is over."""
    trainer.model_wrapped = trainer.model
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    trainer.accelerator.free_memory()
