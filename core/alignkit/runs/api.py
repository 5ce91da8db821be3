"""The entrance from Python and from the command line: train, resume, and hold the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import settings
from alignkit.config import ModelConfig, RunConfig
from alignkit.contract import registry
from alignkit.display.console import Console
from alignkit.errors import CheckpointError, ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.settings.strategies import processes_of
from alignkit.system.distributed import rank, world_size
from alignkit.system.quiet import quieted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, and what is in it."""

    directory: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json: status, versions, hashes, conventions, evaluation."""
        return RunDir.open(self.directory).read_record()

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl, one record a logging step."""
        return MetricsLog(self.directory / "metrics.jsonl").read()

    @property
    def evaluation(self) -> dict[str, Any]:
        """``{"before": {suite: metrics}, "after": {suite: metrics}}``."""
        return dict(self.record.get("evaluation", {}))

    def _repr_html_(self) -> str | None:
        show = registry.provided("align.reports", "notebook")
        return show(self) if show else None

    def to_pandas(self) -> Any:
        """Return metrics.jsonl as a ``pandas.DataFrame``, one row a record."""
        return import_module("pandas").DataFrame(self.metrics)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the trained model (with its adapter, if it is one) and its tokenizer."""
        from alignkit.models.load import build_model

        loaded = build_model(ModelConfig(name=str(self.directory), dtype="float32"))
        return loaded.model.eval(), loaded.tokenizer


@quieted()
def run(
    config: RunConfig, *, resume: bool = False, change: bool = False, dry_run: bool = False, quiet: bool = False
) -> Run | None:
    """Train as ``config`` says.

    Args:
        config: the configuration; see ``align schema METHOD`` for every key.
        resume: resume the run named ``config.run.name`` if it was interrupted.
        change: let ``config`` differ from what the resumed run began with, and record the changes.
        dry_run: only print what the run would do.
        quiet: print nothing; messages are in the run's train.log.

    Returns:
        The finished run; None for a dry run.

    Raises:
        AlignError: one clear sentence about what is wrong.
    """
    from alignkit.runs import execute

    config = settings.check_config(config)
    if change and not resume:
        raise ConfigError("--change applies to a run that is resumed: add --resume")
    if dry_run:
        describe = registry.provided("align.reports", "dry-run")
        if describe is None:
            raise ConfigError("--dry-run: no installed package describes a run (entry-point group align.reports)")
        describe(config)
        return None
    if resume:
        if config.run.name is None:
            raise CheckpointError("--resume needs the run's name: --name NAME, or align resume DIRECTORY")
        return _resume(config, RunDir.open(Path(config.run.output) / config.run.name), change, quiet)
    _require_processes(config)
    return Run(execute.start(config, quiet=quiet))


def plan(config: RunConfig) -> None:
    """Check everything that a configuration names (plugins, functions, settings), without loading model or data."""
    from alignkit.runs.prepare import plan_run

    plan_run(settings.check_config(config))


@quieted()
def resume(path: Path, *, sets: Iterable[str] = (), change: bool = False, quiet: bool = False) -> Run:
    """Resume an interrupted or failed run from its last whole checkpoint, to the weights it would have had.

    ``sets`` are ``key=value`` texts over its run.yaml. What differs from the run's record is refused, or with ``change``
    recorded; a finished run without changes is returned as it is. Raises :class:`~alignkit.errors.CheckpointError` if it
    cannot be resumed.
    """
    directory = RunDir.open(path)
    if not directory.config.is_file():
        raise CheckpointError(f"{path} has no run.yaml, so the run cannot be resumed")
    return _resume(settings.resolve(directory.config, sets=sets, resume=True).config, directory, change, quiet)


def _resume(config: RunConfig, directory: RunDir, change: bool, quiet: bool) -> Run:
    from alignkit.runs import execute

    if directory.status == "finished" and not execute.accepted_changes(directory, config, accept=change):
        Console(quiet=quiet or rank() > 0).info(f"{directory.path} is already finished")
        return Run(directory.path)
    _require_processes(config)
    return Run(execute.resume(config, directory, change=change, quiet=quiet))


def _require_processes(config: RunConfig) -> None:
    """Refuse to train in one process what was asked for in several: a step would have fewer rows."""
    if (processes := processes_of(config)) > 1 == world_size():
        raise ConfigError(
            f"run.processes and run.nodes ask for {processes} processes, but this is one: start them with align run, or "
            f"start this program with torchrun --nproc-per-node {processes}"
        )
