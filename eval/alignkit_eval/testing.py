"""Conformance tests of stages, which run in a pipeline.

from alignkit_eval.testing import StageConformance

class TestIndex(StageConformance):
name = "index"
settings = {"documents": "docs.jsonl"}
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from alignkit.errors import AlignError, ConfigError
from alignkit.system.manifest import manifest
from alignkit.testing.installed import InstalledPlugin, check_schema

from alignkit_eval.pipelines.pipeline import run_pipeline
from alignkit_eval.pipelines.stages import read_pipeline


class StageConformance(InstalledPlugin):
    """Tests of one installed stage; set ``name``, and ``settings`` and ``before`` if needed."""

    group = "align.stages"
    before: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Stages before it in the pipeline, as in its file."""
    shared: ClassVar[Mapping[str, Any]] = {
        "train": {"max_steps": 1, "use_cpu": True},
        "data": {"limit": 40, "eval_limit": 8},
        "eval": {"samples": 0, "suites": []},
        "run": {"plots": False},
    }
    """Sections of all stages."""
    prepare: ClassVar[Callable[[Path], Mapping[str, Any]] | None] = None
    """Writes files that the stage reads into a directory, and returns the settings that name them."""

    def test_settings_are_complete(self) -> None:
        """Every setting is described, and unknown keys are rejected."""
        check_schema(self._load().settings_type)

    def test_it_runs_once_in_a_pipeline(self, tmp_path: Path) -> None:
        """It writes what it declares, leaves nothing else beside it, and is not run again for the same settings."""
        file = self._file(tmp_path)
        run_pipeline(file, output=str(tmp_path / "runs"))
        directory = tmp_path / "runs" / "p" / "own"
        for name in self._load().outputs:
            assert (directory / name).exists(), f"the stage did not write {name}, one of its outputs"
        assert not list(directory.parent.glob(".own*")), "the stage wrote beside its directory"
        before = manifest(directory)
        messages: list[str] = []
        run_pipeline(file, output=str(tmp_path / "runs"), say=messages.append)
        assert any(line.endswith("own: already finished") for line in messages), (
            "the stage is not recognised as finished: identity() must return the same for the same settings and inputs"
        )
        assert manifest(directory) == before, "a finished stage was changed"

    def test_another_process_can_run_it(self, tmp_path: Path) -> None:
        """It can be pickled, as a scheduler does."""
        stage = read_pipeline(self._file(tmp_path)).open(tmp_path)["own"]
        assert pickle.loads(pickle.dumps(stage)).context.name == "own"

    def test_an_unknown_setting_is_found_before_anything_starts(self, tmp_path: Path) -> None:
        """A misspelt key is an error of the file."""
        with pytest.raises(AlignError) as caught:
            run_pipeline(self._file(tmp_path, no_such_key=1), output=str(tmp_path / "runs"))
        assert isinstance(caught.value, ConfigError)
        assert not (tmp_path / "runs").exists()

    def _file(self, directory: Path, **more: Any) -> Path:
        prepare = type(self).prepare
        written = {} if prepare is None else prepare(directory)
        stage = {"name": "own", "stage": self.name, **self.settings, **written, **more}
        file = directory / "p.yaml"
        file.write_text(yaml.safe_dump({**self.shared, "stages": [*map(dict, self.before), stage]}), encoding="utf-8")
        return file
