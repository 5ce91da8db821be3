"""TensorBoard: event files in ``tensorboard/`` of the run directory, or below $TENSORBOARD_LOGGING_DIR."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.settings.layers import dotted

from alignkit_trackers.content import markdown
from alignkit_trackers.tracker import Rows, Tracked, Tracker


class TensorBoard(Tracker):
    """Event files: scalars, texts (configuration, tables, model card), images, hyper-parameters."""

    name = "tensorboard"
    packages = {"tensorboard": "tensorboard"}
    keeps_models = False

    def start(self, run: Tracked) -> str:
        """Open a new event file; a resumed run takes back what was written after its checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        above = os.environ.get("TENSORBOARD_LOGGING_DIR")
        where = Path(run.id or (Path(above, run.project, run.group or "", run.name) if above else "tensorboard"))
        folder = run.directory / where
        if run.id is None:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier run in this directory
        self.writer: Any = SummaryWriter(str(folder), purge_step=None if run.id is None else run.step + 1)
        self.step = max(run.step, 0)
        return str(where)

    def config(self, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.writer.add_text("config", f"```json\n{json.dumps(values, indent=2)}\n```", self.step)
        plain = {name: value for name, value in dotted(values).items() if isinstance(value, bool | int | float | str)}
        for summary in hparams(plain, {"loss": 0}):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(summary)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, new_style=True, double_precision=True)
        self.writer.flush()  # kept if the process is killed

    def table(self, name: str, rows: Rows) -> None:
        self.writer.add_text(name, markdown(rows), self.step)

    def plot(self, name: str, path: Path) -> None:
        from matplotlib.image import imread

        if path.suffix == ".png":
            self.writer.add_image(f"plots/{name}", imread(path), self.step, dataformats="HWC")

    def document(self, name: str, path: Path) -> None:
        if path.suffix == ".md":
            self.writer.add_text(name, path.read_text(encoding="utf-8"), self.step)

    def model(self, directory: Path) -> None:
        """Do nothing: event files hold no models, see :attr:`keeps_models`."""

    def finish(self, status: str) -> None:
        self.writer.add_text("status", status, self.step)
        self.writer.close()
