"""Conformance tests of services."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignkit import settings
from alignkit.config import RunConfig
from alignkit.contract import registry
from alignkit.errors import AlignError
from alignkit.testing.installed import check_listing


class ServiceConformance:
    """Tests of one installed service (a logger, a data source); set ``name``."""

    name: ClassVar[str]
    source: ClassVar[Callable[[Path], str] | None] = None
    """For a data source: writes preference rows into a directory and returns the value of ``--data`` that loads them."""

    def test_listing_does_not_import_it(self) -> None:
        """``align services`` lists the service without importing it."""
        check_listing("align.services", self.name)

    def test_a_run_finishes_with_it(self, tmp_path: Path) -> None:
        """Its hooks are valid, replace none of the method's, and a short run on the demo finishes."""
        from alignkit.runs.api import run

        values = _short(tmp_path, self.name)
        finished = run(settings.check_config(RunConfig.model_validate(values)), quiet=True)
        assert finished is not None
        assert finished.record["status"] == "finished"

    def test_other_sources_are_left_alone(self) -> None:
        """``align_load_data`` returns None for sources of others."""
        from alignkit.training.session import Session

        config = settings.check_config(RunConfig.model_validate(_short(Path("unused"), self.name)))
        assert Session.open(config).load_data("another-source.jsonl", None) is None, (
            "align_load_data returned rows for a source of another kind: return None"
        )

    def test_its_rows_train(self, tmp_path: Path) -> None:
        """Rows of its own source load, have distinct places for error messages, and can be trained on."""
        from alignkit.runs.api import run
        from alignkit.training.session import Session

        if type(self).source is None:
            pytest.skip("not a data source")
        source = type(self).source(tmp_path)  # type: ignore[misc]
        values = _short(tmp_path, self.name)
        values["data"] = {"source": source, "eval_split": 0.3}
        values["model"] = "demo"
        config = settings.check_config(RunConfig.model_validate(values))
        rows = Session.open(config).load_data(source, None)
        assert rows is not None, f"align_load_data returned None for its own source {source}"
        assert len(rows.rows) >= 10, "source() must write at least ten rows"
        assert rows.where(0) != rows.where(1), (
            "where(position) returns the same place for two rows: error messages need file and line"
        )
        assert rows.source, "RawRows.source is empty: it must name the source"
        finished = run(config, quiet=True)
        assert finished is not None
        assert finished.record["status"] == "finished"


def _short(output: Path, service: str) -> dict[str, Any]:
    try:
        registry.find("align.services", service)
    except AlignError as error:
        pytest.fail(f"{error}: is the package installed, and its entry point under align.services?")
    return {
        "method": "orpo",
        "train": {"max_steps": 2, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "use_cpu": True},
        "data": {"eval_limit": 10},
        "eval": {"samples": 0, "suites": []},
        "run": {"output": str(output), "name": "run", "services": [service], "plots": False},
    }
