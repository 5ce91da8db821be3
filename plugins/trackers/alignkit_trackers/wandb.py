"""Weights & Biases, online or offline (WANDB_MODE=offline)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit_trackers.tracker import Rows, Tracked, Tracker

OFFLINE = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE that need no account."""


class WandB(Tracker):
    """A run of W&B: history by optimizer step, tables, images, files, the model as an artifact."""

    name = "wandb"
    packages = {"wandb": "wandb"}
    project_variable = "WANDB_PROJECT"

    def unavailable(self) -> str | None:
        """Return what to do where nobody is logged in: wandb would ask on the terminal, or fail after the model is loaded."""
        import wandb

        if os.environ.get("WANDB_MODE") in OFFLINE or wandb.api.api_key:
            return None
        return "nobody is logged in: run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to keep runs on disk"

    def start(self, run: Tracked) -> str:
        """Begin or continue the W&B run; steps that a resumed run records again are dropped by W&B, they are the same."""
        import wandb

        self.run: Any = wandb.init(
            project=run.project,
            name=run.name,
            group=run.group or os.environ.get("WANDB_RUN_GROUP"),
            id=run.id,
            resume="allow" if run.id else None,
            dir=os.environ.get("WANDB_DIR") or str(run.directory),
            settings=wandb.Settings(console="off", silent=os.environ.get("WANDB_MODE") in OFFLINE),
        )
        self.step = max(run.step, 0)
        return str(self.run.id)

    def config(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.step = step
        self.run.log(dict(values), step=step)

    def table(self, name: str, rows: Rows) -> None:
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True)
        self.run.log({name: table}, step=self.step)

    def plot(self, name: str, path: Path) -> None:
        import wandb

        picture = wandb.Html(str(path)) if path.suffix == ".svg" else wandb.Image(str(path))
        self.run.log({f"plots/{name}": picture}, step=self.step)

    def document(self, name: str, path: Path) -> None:
        copied = shutil.copyfile(path, Path(self.run.dir) / path.name)
        self.run.save(str(copied), base_path=self.run.dir, policy="now")

    def model(self, directory: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self.run.id}", type="model")
        for path in directory.rglob("*"):
            if path.is_file():
                artifact.add_file(str(path), name=path.relative_to(directory).as_posix())
        self.run.log_artifact(artifact, aliases=["latest", self.run.name])

    def finish(self, status: str) -> None:
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status in ("finished", "paused") else 1)
