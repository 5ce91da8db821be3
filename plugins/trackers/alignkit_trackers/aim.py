"""aim, in ``.aim`` of the working directory or the repository AIM_REPO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignkit_trackers.content import markdown
from alignkit_trackers.tracker import Rows, Tracked, Tracker


class Aim(Tracker):
    """A run of aim: metrics by optimizer step, texts (tables, model card), images."""

    name = "aim"
    packages = {"aim": "aim"}
    keeps_models = False

    def start(self, run: Tracked) -> str:
        """Begin a run in the experiment named by the project, or continue the one of ``run.id``."""
        import aim

        self.repo = os.environ.get("AIM_REPO", ".")
        if "://" not in self.repo and not (Path(self.repo) / ".aim").is_dir():
            aim.Repo.from_path(self.repo, init=True)
        if run.id is not None:
            self._index(run.id)  # of a killed process
        self.run: Any = aim.Run(
            run_hash=run.id,
            repo=self.repo,
            experiment=run.project,
            system_tracking_interval=None,
            log_system_params=False,
            capture_terminal_logs=False,
        )
        self.run.name, self.step = run.name, max(run.step, 0)
        self.continued, self.last = run.id is not None, dict[str, int]()
        if run.group:
            self.run["group"] = run.group
        return str(self.run.hash)

    def config(self, values: Mapping[str, Any]) -> None:
        for section, content in values.items():
            self.run[section] = content

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers; those that a resumed run has recorded before are left out."""
        self.step = step
        for name, value in values.items():
            if step > self._recorded(name):
                self.run.track(value, name=name, step=step)
                self.last[name] = step

    def _recorded(self, name: str) -> int:
        """Return the last step with a value of a metric, of before the run was resumed too; -1 where there is none."""
        if name not in self.last:
            metric = next((m for m in self.run.metrics() if m.name == name), None) if self.continued else None
            self.last[name] = -1 if metric is None else max(metric.data.indices_list(), default=-1)
        return self.last[name]

    def table(self, name: str, rows: Rows) -> None:
        self._text(name, markdown(rows))

    def plot(self, name: str, path: Path) -> None:
        import aim

        if path.suffix == ".png":
            self.run.track(aim.Image(str(path)), name=f"plots/{name}", step=self.step)

    def document(self, name: str, path: Path) -> None:
        if path.suffix == ".md":
            self._text(name, path.read_text(encoding="utf-8"))

    def model(self, directory: Path) -> None:
        """Do nothing: aim keeps no files of its own, see :attr:`keeps_models`."""

    def finish(self, status: str) -> None:
        self.run["status"] = status
        identity = str(self.run.hash)
        self.run.close()
        self._index(identity)

    def _index(self, identity: str) -> None:
        """Let what was recorded be read: since version 3.20 aim does so itself only while its UI runs."""
        import aim

        if "://" not in self.repo:
            with suppress(ImportError):
                from aim.sdk.index_manager import RepoIndexManager

                RepoIndexManager.get_index_manager(aim.Repo.from_path(self.repo)).index(identity)

    def _text(self, name: str, text: str) -> None:
        import aim

        self.run.track(aim.Text(text), name=name, step=self.step)
