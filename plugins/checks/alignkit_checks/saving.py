"""Saving the model is tried before training, and the space on the disk is checked."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.contract import LoadedModel
from alignkit.errors import ConfigError, ModelError
from alignkit.system.files import os_fault, staged_directory
from alignkit.system.sharded import is_sharded, plain_state, saving_what_is_given

if TYPE_CHECKING:
    from torch.nn import Parameter
    from transformers import GenerationConfig, TrainingArguments

TRIED = 2**31
"""Bytes of weights up to which saving is tried with them; of larger models, everything but the weights is saved."""


def check_saving(loaded: LoadedModel, arguments: TrainingArguments, steps_per_epoch: int, directory: Path) -> list[str]:
    """Refuse a run whose checkpoints do not fit on the disk or whose model cannot be saved; return notes for the console."""
    require_space(loaded, arguments, steps_per_epoch, directory)
    return try_saving(loaded, directory)


def try_saving(loaded: LoadedModel, directory: Path) -> list[str]:
    """Save model and tokenizer to a directory that is removed again; return what was changed in the model for it.

    transformers loads a generation configuration with keys that have no effect, and refuses to save it after training:
    such keys are unset. Raises :class:`ModelError` for whatever else cannot be saved.
    """
    notes: list[str] = []
    generation = getattr(loaded.model, "generation_config", None)
    try:
        if generation is not None:
            notes = _unset_without_effect(generation, loaded.path)
            generation._original_object_hash = None  # as strict as after training, which sets its special tokens
        with staged_directory(directory / ".trial") as staged, loaded.as_saved(), saving_what_is_given(loaded.model):
            sharded, adapter = is_sharded(loaded.model), loaded.is_adapter
            some = plain_state(loaded.model) if adapter else {}
            whole = not sharded and (adapter or _weights(loaded) <= TRIED)
            loaded.model.save_pretrained(staged, **{} if whole else {"state_dict": some})
            loaded.tokenizer.save_pretrained(staged)
        shutil.rmtree(directory / ".trial")
    except Exception as error:
        cause = (isinstance(error, OSError) and os_fault(error)) or " ".join(str(error).split())[:300]
        raise ModelError(f"{loaded.path} could not be saved after training: {cause}") from error
    return notes


def _unset_without_effect(generation: GenerationConfig, path: str) -> list[str]:
    try:
        generation.validate(strict=True)
    except ValueError as error:
        keys = re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)
        for key in keys:
            setattr(generation, key, None)
        if keys:
            return [f"generation_config.json of {path}: {', '.join(keys)} without effect, left out of the saved model"]
    return []


def require_space(loaded: LoadedModel, arguments: TrainingArguments, steps_per_epoch: int, directory: Path) -> None:
    """Raise :class:`ConfigError` if the checkpoints that are kept and the model surely do not fit on the disk.

    A checkpoint holds the weights and, of AdamW, two numbers for each that is trained. While one is written, those it will
    replace are still there.
    """
    model = _weights(loaded)
    trained = sum(_bytes(p) for p in loaded.model.parameters() if p.requires_grad)
    adam = re.fullmatch(r"adamw_torch(_fused)?", str(getattr(arguments.optim, "value", arguments.optim)))
    checkpoint = model + (2 * trained if adam and not arguments.save_only_model else 0)
    strategy = str(getattr(arguments.save_strategy, "value", arguments.save_strategy))
    steps = arguments.max_steps if arguments.max_steps > 0 else int(arguments.num_train_epochs * steps_per_epoch)
    every = {"no": 0, "steps": arguments.save_steps}.get(strategy, max(steps_per_epoch, 1))
    saves = max(int(steps // every), 1) if every >= 1 else int(strategy != "no")
    kept = min(saves, arguments.save_total_limit or saves)
    needed = max(min(saves, kept + 1) * checkpoint, kept * checkpoint + model)
    old = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    free = shutil.disk_usage(directory).free + old
    if needed > free:
        sizes = [f"{size / 2**20:,.0f} MiB" for size in (checkpoint, model, needed, free)]
        raise ConfigError(
            f"{kept} checkpoint{'s' * (kept != 1)} of {sizes[0]} and the model of {sizes[1]} need {sizes[2]} while they are "
            f"written, and {sizes[3]} are free on the disk of {directory.parent}: free some, set run.output to another disk, "
            "or lower train.save_total_limit"
        )


def _weights(loaded: LoadedModel) -> int:
    """Return the bytes of the weights that are saved."""
    saved = (p for p in loaded.model.parameters() if p.requires_grad or not loaded.is_adapter)
    return sum(map(_bytes, saved))


def _bytes(parameter: Parameter) -> int:
    """Return the size of a parameter, of the whole one where ZeRO-3 shares it out."""
    return int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()
