"""MLflow, at MLFLOW_TRACKING_URI or in MLflow's own local store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from alignkit.settings.layers import dotted

from alignkit_trackers.tracker import Rows, Tracked, Tracker

LARGEST_BATCH = 100
"""Parameters that MLflow takes at a time."""

LONGEST_PARAMETER = 6000
"""Characters of a parameter's value that MLflow takes; the whole configuration is in config.json."""

_NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")

STATUS = {"finished": "FINISHED", "paused": "SCHEDULED", "interrupted": "KILLED"}


class MLflow(Tracker):
    """A run of MLflow: metrics by optimizer step, parameters by dotted key, tables, plots and documents as artifacts."""

    name = "mlflow"
    packages = {"mlflow": "mlflow"}
    project_variable = "MLFLOW_EXPERIMENT_NAME"

    def start(self, run: Tracked) -> str:
        """Create the run in the experiment named by the project, or open the one of ``run.id`` again."""
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient()
        self.continued, self.last = run.id is not None, dict[str, int]()
        self.tables: dict[str, Any] = {}
        if run.id is not None:
            self.client.update_run(run.id, status="RUNNING")
            self.id = run.id
            return self.id
        found = self.client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self._new_experiment(run.project)
        tags = {"group": run.group} if run.group else {}
        self.id = str(self.client.create_run(experiment, run_name=run.name, tags=tags).info.run_id)
        return self.id

    def _new_experiment(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.create_experiment(name)
        except MlflowException:  # another run has just made it
            if (found := self.client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id

    def config(self, values: Mapping[str, Any]) -> None:
        """Record the configuration as parameters, which MLflow keeps as they first were, and whole in config.json."""
        from mlflow.entities import Param

        there = self.client.get_run(self.id).data.params
        texts = {_name(name): _text(value)[:LONGEST_PARAMETER] for name, value in dotted(values).items()}
        for some in _in_batches(
            (Param(name, text) for name, text in texts.items() if name not in there), LARGEST_BATCH
        ):
            self.client.log_batch(self.id, params=some)
        for name, text in texts.items():
            if there.get(name, text) != text:
                self.client.set_tag(self.id, f"changed.{name}", text)
        self.client.log_dict(self.id, dict(values), "config.json")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers; those that a resumed run has recorded before are left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {_name(name): float(value) for name, value in values.items()}
        metrics = [Metric(name, value, now, step) for name, value in named.items() if step > self._recorded(name)]
        for some in _in_batches(metrics, LARGEST_BATCH):
            self.client.log_batch(self.id, metrics=some)
        self.last |= {metric.key: step for metric in metrics}

    def _recorded(self, name: str) -> int:
        """Return the last step with a value of a metric, of before the run was resumed too; -1 where there is none."""
        if name not in self.last:
            history = self.client.get_metric_history(self.id, name) if self.continued else ()
            self.last[name] = max((metric.step for metric in history), default=-1)
        return self.last[name]

    def table(self, name: str, rows: Rows) -> None:
        """Record a table in the format of ``mlflow.log_table``, which would round its numbers to ten digits."""
        self.client.log_dict(
            self.id, {"columns": list(rows[0]), "data": [[*row.values()] for row in rows]}, f"{name}.json"
        )
        self.tables[name] = {"path": f"{name}.json", "type": "table"}
        self.client.set_tag(self.id, "mlflow.loggedArtifacts", json.dumps([*self.tables.values()]))

    def plot(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path), "plots")

    def document(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def model(self, directory: Path) -> None:
        self.client.log_artifacts(self.id, str(directory), "model")

    def finish(self, status: str) -> None:
        self.client.set_terminated(self.id, STATUS.get(status, "FAILED"))


def _name(name: str) -> str:
    """Return a name with the characters that MLflow refuses replaced by ``_``."""
    return _NOT_IN_NAMES.sub("_", name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _in_batches(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(values)
    while some := list(islice(remaining, size)):
        yield some
