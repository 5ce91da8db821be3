"""Saving the trained model, and releasing what only training needed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.contract import LoadedModel
from alignkit.system.files import replace_directory
from alignkit.system.together import first_does

if TYPE_CHECKING:
    from transformers import Trainer


def save_model(trainer: Trainer, loaded: LoadedModel, directory: Path) -> None:
    """Write weights and tokenizer to ``directory``, which appears whole or not at all; every process must call it."""
    staged = directory.with_name(f".{directory.name}.partial")
    first_does("the directory of the model", partial(shutil.rmtree, staged, ignore_errors=True))
    with loaded.as_saved():
        trainer.save_model(str(staged))

    def complete() -> None:
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.yaml holds the same
        loaded.tokenizer.save_pretrained(staged)
        replace_directory(staged, directory)

    first_does("saving the model", complete)


def release(trainer: Trainer) -> None:
    """Drop a trainer's optimizer and data-parallel wrapper once training is over."""
    trainer.model_wrapped = trainer.model
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    trainer.accelerator.free_memory()
