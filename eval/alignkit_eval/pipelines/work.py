"""A stage's work: checked, carried out whole or not at all, and its results."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit import Stage
from alignkit.contract import registry
from alignkit.contract.guard import named, running
from alignkit.errors import AlignError, RunFailedError
from alignkit.system.files import replace_directory

from alignkit_eval.pipelines.stages import ListedStage


def check_stage(listed: ListedStage, stage: Stage[Any]) -> None:
    """Raise :class:`AlignError`, with the stage and the line, for whatever of it can be known to fail."""
    try:
        with running(f"{_entry(listed)} failed"):
            stage.check()
    except AlignError as error:
        error.add_note(f"in stage {listed.name}, {listed.place}; nothing was trained")
        raise


def carry_out_stage(listed: ListedStage, stage: Stage[Any], directory: Path) -> None:
    """Run a stage; its results appear at ``directory`` once they are complete, with every output that it declares.

    Raises ``RunFailedError`` where one is missing.
    """
    partly = directory if stage.leftovers == "own" else _partial(directory)
    if stage.leftovers == "removed":
        forget(directory)
    if stage.leftovers != "own":
        partly.mkdir(parents=True, exist_ok=True)
    with named(f"{_entry(listed)} failed"):
        stage.run(partly)
    if missing := [name for name in stage.outputs if not (partly / name).exists()]:
        raise RunFailedError(f"{_entry(listed)} ended without its output {', '.join(missing)}")
    if stage.leftovers != "own":
        replace_directory(partly, directory)


def results_of(listed: ListedStage, stage: Stage[Any], say: Callable[[str], None]) -> Any:
    """Return what the pipeline's report shows of a finished stage."""
    with running(f"{_entry(listed)} failed"):
        return stage.finished(say)


def forget(directory: Path) -> None:
    """Remove what an interrupted attempt of a stage left."""
    shutil.rmtree(_partial(directory), ignore_errors=True)


def _partial(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.partial")


def _entry(listed: ListedStage) -> registry.PluginEntry:
    return registry.find("align.stages", listed.kind)
