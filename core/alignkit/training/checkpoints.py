"""Checkpoints that appear whole or not at all.

``Trainer`` writes a checkpoint file by file and takes the highest number it finds on resume: after a kill inside a save it
crashes, or resumes silently without optimizer or random state. Here a checkpoint is staged in ``.partial/``, given a
manifest of its files with their sizes and SHA-256 digests, flushed to disk and renamed once. Resume takes the newest one
whose manifest holds.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import rotate_checkpoints

from alignkit.errors import CheckpointError
from alignkit.scoring.critic import critic_of, is_critics, load_critic, save_critic
from alignkit.system.distributed import world_size
from alignkit.system.files import replace_directory
from alignkit.system.manifest import MANIFEST as MANIFEST
from alignkit.system.manifest import manifest, problems
from alignkit.system.together import gathered

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object  # a mixin: Trainer comes after it in the class that uses it

logger = logging.getLogger(__name__)

ENGINE = "engine_{rank}.pt"
STAGE = ".partial"


def step_of(path: Path) -> int:
    """Return the step a checkpoint directory is named after, -1 for anything else."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else -1


def fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint directory, or None if every file is as it was written."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        return next((f"{name} {problem}" for name, problem in problems(path, files)), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"it has no readable {MANIFEST}"


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole checkpoint, None where none was ever completed; damaged ones are logged and skipped.

    Raises :class:`CheckpointError` if there are checkpoints and every one is damaged.
    """
    faults: list[str] = []
    for path in sorted((p for p in directory.glob("checkpoint-*") if step_of(p) >= 0), key=step_of, reverse=True):
        problem = fault(path)
        if problem is None:
            for skipped in faults:
                logger.warning("skipping a damaged checkpoint: %s", skipped)
            return path
        faults.append(f"{path.name}: {problem}")
    if faults:
        raise CheckpointError(
            f"no checkpoint in {directory} can be resumed ({'; '.join(faults)}): remove it to train from the start"
        )
    return None


def write_manifest(directory: Path) -> None:
    """Write the size and digest of every file of a checkpoint into its manifest."""
    (directory / MANIFEST).write_text(json.dumps({"files": manifest(directory)}, indent=1), encoding="utf-8")


def read_engine_state(checkpoint: Path, rank: int) -> dict[str, Any]:
    """Return what a rank's engine kept; raises :class:`CheckpointError` unless as many processes saved the checkpoint."""
    file = checkpoint / ENGINE.format(rank=rank)
    saved = len(list(checkpoint.glob(ENGINE.format(rank="*"))))
    if saved != world_size() or not file.is_file():
        raise CheckpointError(
            f"{checkpoint} was saved by {saved} process{'es' * (saved != 1)}: a run resumes with as many, not {world_size()}"
        )
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch would advise to execute it
        raise CheckpointError(
            f"{file} holds Python objects other than tensors and numbers; it is not loaded"
        ) from error
    return state


class CriticApart(Base):
    """Mixin for ``transformers.Trainer``: a critic's weights are saved beside the model, which stays a stock one."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if state_dict is None and critic_of(self.model) is not None:
            state_dict = {name: value for name, value in self.model.state_dict().items() if not is_critics(name)}
        super()._save(output_dir, state_dict)
        save_critic(self.model, Path(output_dir or self.args.output_dir), write=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_critic(model or self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_critic(self.model, Path(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [name for name in load_result.missing_keys if not is_critics(name)]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))


class WholeCheckpoints(Base):
    """Mixin for ``transformers.Trainer``: staged saving, rotation and best-model paths that know of the staging."""

    _stage: Path | None = None
    _changed: Collection[str] = ()
    """Keys of the configuration that a resumed run changes."""

    def engine_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this rank besides Trainer's own state; empty: nothing."""
        return {}

    def load_engine_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`engine_state` returned."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, changed: Collection[str] = (), **kwargs: Any
    ) -> Any:
        """Train from the start or a checkpoint (True: the newest whole one); raises :class:`CheckpointError` if it lacks state.

        ``changed``: keys of the configuration that hold from here on, whatever the checkpoint has.
        """
        self._changed = changed
        if resume_from_checkpoint is True:
            newest = last_checkpoint(Path(self.args.output_dir))
            resume_from_checkpoint = None if newest is None else str(newest)
        if resume_from_checkpoint and self.engine_state():
            self.load_engine_state(read_engine_state(Path(resume_from_checkpoint), self.args.process_index))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Read a checkpoint's state, except for what the arguments say and for the place of a run that may have been moved."""
        found = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        if best := self.state.best_global_step:
            path = Path(self.args.output_dir) / f"checkpoint-{best}"
            self.state.best_model_checkpoint = str(path) if path.is_dir() else None
        if {"train.stop_on", "train.metric_for_best_model", "train.greater_is_better"} & set(self._changed):
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        return found

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both. With changed settings, learning rate, its schedule and the optimizer's numbers are the new ones."""
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        new = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        rates = list(scheduler.base_lrs) if hasattr(scheduler, "lr_lambdas") else []
        super()._load_optimizer_and_scheduler(checkpoint)
        if not self._changed or checkpoint is None:
            return
        for group, values in zip(optimizer.param_groups, new, strict=True):
            loaded = {} if rates or "train.learning_rate" in self._changed else {"lr": group["lr"]}
            group.update(values | loaded)
        if rates:  # a schedule that is a function of the step
            last = [rate * f(scheduler.last_epoch) for rate, f in zip(rates, scheduler.lr_lambdas, strict=True)]
            scheduler.load_state_dict(scheduler.state_dict() | {"base_lrs": rates, "_last_lr": last})
            for group, rate in zip(optimizer.param_groups, last, strict=True):
                group["lr"] = rate

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing where nothing is left to train: Trainer would look only after another step."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._stage) if self._stage else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory = Path(super()._get_output_dir(trial))
        stage, name = directory / STAGE, f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(stage, ignore_errors=True)
        gathered("the directory of the checkpoint", None)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # rotation would look into the stage
        self._stage = stage
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._stage, self.args.save_total_limit = None, limit
        if state := self.engine_state():
            torch.save(state, stage / name / ENGINE.format(rank=self.args.process_index))
        best = self.state.best_global_step
        if best:  # Trainer looks for it in the stage and does not find it
            self.state.best_model_checkpoint = str(directory / f"checkpoint-{best}")
        gathered("states", None)  # the other ranks' random and engine states are in the stage as well
        if self.args.should_save:
            self.state.save_to_json(str(stage / name / "trainer_state.json"))
            write_manifest(stage / name)
            replace_directory(stage / name, directory / name)
            shutil.rmtree(stage, ignore_errors=True)
            rotate_checkpoints(str(directory), limit, self.state.best_model_checkpoint)
        gathered("the checkpoint", None)
