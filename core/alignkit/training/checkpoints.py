"""Checkpoints that appear whole or not at all.

``Trainer`` writes a checkpoint file by file and takes the highest number it finds on resume: after a kill inside a save it
crashes, or resumes silently without optimizer or random state. Here a checkpoint is staged in ``.partial/``, flushed to
disk, given a manifest of its files and their sizes, and renamed once. Resume takes the newest one whose manifest holds.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import CheckpointError
from alignkit.system.files import sync

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object  # a mixin: Trainer comes after it in the class that uses it

MANIFEST = "manifest.json"
STAGE = ".partial"


def step_of(path: Path) -> int:
    """Return the step a checkpoint directory is named after, -1 for anything else."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else -1


def fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint directory, or None if it is whole."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"it has no readable {MANIFEST}"
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes where {size} were written"
    return None


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole checkpoint, None where none was ever completed.

    Raises :class:`CheckpointError` if there are checkpoints and every one is broken.
    """
    found = sorted((p for p in directory.glob("checkpoint-*") if step_of(p) >= 0), key=step_of, reverse=True)
    faults = []
    for path in found:
        wrong = fault(path)
        if wrong is None:
            return path
        faults.append(f"{path.name}: {wrong}")
    if faults:
        raise CheckpointError(
            f"no checkpoint in {directory} can be resumed ({'; '.join(faults)}): remove it to train from the start"
        )
    return None


def publish(staged: Path, final: Path) -> None:
    """Flush every file of ``staged``, write its manifest, and rename it to ``final`` (replacing an older one)."""
    files = {str(f.relative_to(staged)): f.stat().st_size for f in sorted(staged.rglob("*")) if f.is_file()}
    (staged / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for path in [*staged.rglob("*"), staged]:
        sync(path)
    if final.exists():
        old = staged.with_name("old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    staged.rename(final)
    sync(final.parent)


class CriticApart(Base):
    """Mixin for ``transformers.Trainer``: a critic's weights are saved beside the model, which stays a stock one."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from alignkit.scoring.critic import critic_of, is_critics, save_critic

        if state_dict is None and critic_of(self.model) is not None:
            state_dict = {name: value for name, value in self.model.state_dict().items() if not is_critics(name)}
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # one process writes, as the model's own saving does
            save_critic(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from alignkit.scoring.critic import load_critic

        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_critic(model or self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        from alignkit.scoring.critic import load_critic

        super()._load_best_model()
        load_critic(self.model, Path(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        from alignkit.scoring.critic import is_critics

        missing = [name for name in load_result.missing_keys if not is_critics(name)]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))


class WholeCheckpoints(Base):
    """Mixin for ``transformers.Trainer``: staged saving, our own rotation, best-model paths that survive the staging."""

    _stage: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._stage) if self._stage else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory = Path(super()._get_output_dir(trial))
        stage, name = directory / STAGE, f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(stage, ignore_errors=True)
        self._barrier()
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # rotation would look into the stage
        self._stage = stage
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._stage, self.args.save_total_limit = None, limit
        best = self.state.best_global_step
        if best:  # Trainer looks for it in the stage and does not find it
            self.state.best_model_checkpoint = str(directory / f"checkpoint-{best}")
        self._barrier()  # the other ranks' random states are in the stage as well
        if self.args.should_save:
            self.state.save_to_json(str(stage / name / "trainer_state.json"))
            publish(stage / name, directory / name)
            shutil.rmtree(stage, ignore_errors=True)
            self._rotate(directory, limit)
        self._barrier()

    def _rotate(self, directory: Path, limit: int | None) -> None:
        from transformers.trainer_utils import rotate_checkpoints

        rotate_checkpoints(
            output_dir=str(directory),
            save_total_limit=limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            import torch.distributed as dist

            dist.barrier()
