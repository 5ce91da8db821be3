"""trackio, on this machine or in a Space (TRACKIO_SPACE_ID)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog

from alignkit_trackers.content import before_values
from alignkit_trackers.tracker import Rows, Tracked, Tracker, numbers_of


class Trackio(Tracker):
    """A run of trackio: metrics by optimizer step, tables, images, the model card, the model as an artifact."""

    name = "trackio"
    packages = {"trackio": "trackio"}
    project_variable = "TRACKIO_PROJECT"

    def start(self, run: Tracked) -> str:
        """Keep what the run is called: trackio takes the configuration with the start, see :meth:`config`."""
        self.tracked, self.step = run, max(run.step, 0)
        return run.id or run.name

    def config(self, values: Mapping[str, Any]) -> None:
        """Begin the run, or continue the last one of its name, and leave out what that has recorded."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        run = self.tracked
        self.run: Any = trackio.init(
            project=run.project,
            name=run.id or run.name,
            group=run.group,
            config=dict(values),
            resume="allow" if run.id else "never",
        )
        last = SQLiteStorage.get_max_step_for_run(run.project, self.run.name, run_id=self.run.id) if run.id else None
        self.recorded = -1 if last is None else last
        if run.id:
            # trackio writes twice a second: what a killed process had not written yet is recorded again.
            self.scalars(before_values(RunDir(run.directory).read_record()), 0)
            for line in MetricsLog(run.directory / "metrics.jsonl").read():
                self.scalars(numbers_of(line), line["step"])
            self.step = max(run.step, 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.step = step
        if values and step >= self.recorded:
            self.run.log(dict(values), step=step)

    def table(self, name: str, rows: Rows) -> None:
        import pandas
        import trackio

        self.run.log({name: trackio.Table(dataframe=pandas.DataFrame(list(rows), dtype=object))}, step=self.step)

    def plot(self, name: str, path: Path) -> None:
        import trackio

        if path.suffix == ".png":
            self.run.log({f"plots/{name}": trackio.Image(str(path))}, step=self.step)

    def document(self, name: str, path: Path) -> None:
        import trackio

        if path.suffix == ".md":
            self.run.log({name: trackio.Markdown(path.read_text(encoding="utf-8"))}, step=self.step)

    def model(self, directory: Path) -> None:
        import trackio

        artifact = trackio.Artifact(re.sub(r"[^\w.-]", "-", f"model-{self.run.name}"), type="model")
        artifact.add_dir(str(directory))
        self.run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        self.run.finish()
