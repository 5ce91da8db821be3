"""Conformance tests of services."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignkit import settings
from alignkit.config import RunConfig
from alignkit.runs.api import run
from alignkit.testing.installed import InstalledPlugin
from alignkit.training.session import Session


class ServiceConformance(InstalledPlugin):
    """Tests of one installed service (a logger, a data source); set ``name``."""

    group = "align.services"
    source: ClassVar[Callable[[Path], str] | None] = None
    """For a data source: writes preference rows into a directory and returns the value of ``--data`` that loads them."""

    def test_a_run_finishes_with_it(self, tmp_path: Path) -> None:
        """Its hooks are valid, replace none of the method's, and a short run on the demo finishes."""
        self._finishes(self._config(tmp_path))

    def test_other_sources_are_left_alone(self) -> None:
        """``align_load_data`` returns None for sources of others."""
        config = self._config(Path("unused"))
        assert Session.open(config).load_data("another-source.jsonl", None) is None, (
            "align_load_data returned rows for a source of another kind: return None"
        )

    def test_its_rows_train(self, tmp_path: Path) -> None:
        """Rows of its own source load, have distinct places for error messages, and can be trained on."""
        if type(self).source is None:
            pytest.skip("not a data source")
        source = type(self).source(tmp_path)  # type: ignore[misc]
        config = self._config(tmp_path, model="demo", data={"source": source, "eval_split": 0.3})
        rows = Session.open(config).load_data(source, None)
        assert rows is not None, f"align_load_data returned None for its own source {source}"
        assert len(rows.rows) >= 10, "source() must write at least ten rows"
        assert rows.where(0) != rows.where(1), (
            "where(position) returns the same place for two rows: error messages need file and line"
        )
        assert rows.source, "RawRows.source is empty: it must name the source"
        self._finishes(config)

    def _config(self, output: Path, **changes: Any) -> RunConfig:
        self._entry()  # fails with advice if the service is not installed
        values = {
            "method": "orpo",
            "train": {"max_steps": 2, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "use_cpu": True},
            "data": {"eval_limit": 10},
            "eval": {"samples": 0, "suites": []},
            "run": {"output": str(output), "name": "run", "services": [self.name], "plots": False},
        }
        return settings.check_config(RunConfig.model_validate(values | changes))

    def _finishes(self, config: RunConfig) -> None:
        finished = run(config, quiet=True)
        assert finished is not None
        assert finished.record["status"] == "finished"
