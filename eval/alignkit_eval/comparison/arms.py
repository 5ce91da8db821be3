"""Runs and the arms they form: results, distinguishing settings, and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import SuiteResult
from alignkit.contract import registry
from alignkit.errors import ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation
from alignkit.settings.layers import dotted
from alignkit.system.files import digest, to_json

from alignkit_eval.comparison.naming import START as START
from alignkit_eval.comparison.naming import distinguishing, names_of
from alignkit_eval.comparison.result import Cost, total
from alignkit_eval.elsewhere import read_elsewhere
from alignkit_eval.records import read_value

_NOT_TRAINING = {
    *("train.logging_steps", "train.logging_strategy", "train.logging_first_step", "train.report_to"),
    *("train.save_steps", "train.save_strategy", "train.save_total_limit", "train.disable_tqdm"),
    *("train.eval_strategy", "train.eval_steps", "data.cache", "method.name"),
}
"""Keys that do not affect training, and ``method.name``, which is part of every arm's name anyway."""

_NOT_OF_MODELS = ("run.", "eval.", "compare.", "tracker.")
"""Sections that do not affect training, but for ``run.engine``."""


@dataclass(frozen=True)
class RunResult:
    """A run, or a model evaluated on its own, with its results by suite."""

    path: Path
    seed: int
    method: str | None
    settings: Mapping[str, Any]
    """Configuration by dotted key, without logging, saving and evaluation."""
    results: Mapping[str, SuiteResult]
    conventions: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    """Hash of the start model."""
    data: str | None = None
    """Hash of the training and held-out rows."""
    stages: tuple[str, ...] = ()
    """Methods of the runs that produced its start model, in their order."""
    cost: Cost = field(default_factory=Cost)
    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration of a run, empty for a model evaluated on its own."""
    folds: tuple[Path, ...] = ()
    """Directories of the runs of all folds, for a cross-validated run; ``path`` is the first of them."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The run's directory, or those of its folds."""
        return self.folds or (self.path,)

    @property
    def label(self) -> str | None:
        """The methods it was trained with, as ``sft+dpo``; None for a model evaluated on its own."""
        return None if self.method is None else "+".join([*self.stages, self.method])


def runs_of(path: Path) -> list[Path]:
    """Return the directories of a sweep's runs in their order; of anything else the path itself.

    Raises:
        ConfigError: the record of a sweep cannot be read.
    """
    cells = read_value(path / "sweep.json", "cells", list[dict[str, Any]])
    return [path] if cells is None else [path / str(cell["name"]) for cell in cells]


def read_run(path: Path | str) -> RunResult:
    """Read a finished run, a directory written by ``align eval --output``, or another tool's results.

    Raises:
        ConfigError: ``path`` is neither, or the run has not finished or has no evaluation.
    """
    path = Path(path)
    results = results_in(path / "eval")
    if not (path / "run.json").is_file():
        if not (results := results or read_elsewhere(path)):
            below = sorted(child.parent for child in path.glob("*/eval") if any(child.glob("*.json")))
            hint = f" (did you mean {below[0]}?)" if below else ""
            raise ConfigError(
                f"{path} is neither a run nor the result of an evaluation: it has no eval/SUITE.json and no results of "
                f"{' or '.join(sorted(registry.usable('align.results')))}{hint}"
            )
        return RunResult(path, 0, None, {}, results)
    record = RunDir.open(path).read_record()
    if record.get("status") != "finished":
        raise ConfigError(f"{path} is not a finished run (its status is {record.get('status')})")
    if not results:
        raise ConfigError(f"{path} has no evaluation: run align eval {path} first")
    stages = lineage(record)
    methods = tuple(str(stage.record.get("method")) for stage in stages)
    return RunResult(
        path=path,
        seed=int(record.get("seed", 0)),
        method=methods[-1],
        settings=_settings(stages),
        results=results,
        conventions=record.get("conventions", {}),
        start=record.get("model", {}).get("hash"),
        data=record.get("data", {}).get("hash"),
        stages=methods[:-1],
        cost=cost_of(stages),
        config=record.get("config", {}),
    )


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, named by the settings that distinguish them from other groups."""

    name: str
    settings: Mapping[str, Any]
    runs: tuple[RunResult, ...]


def group(runs: Sequence[RunResult]) -> list[Group]:
    """Group runs that differ only in their seed. Groups are in the order in which the runs were given."""
    groups = [tuple(sorted(members, key=lambda run: run.seed)) for members in _same_except_seed(runs)]
    first = [members[0] for members in groups]
    names = names_of(first)
    return [
        Group(
            name if names.count(name) == 1 else f"{name} ({run.path})",
            ({"method": run.method} if run.method else {})
            | {k.removeprefix("method."): v for k, v in distinguishing(run, first).items()},
            members,
        )
        for name, run, members in zip(names, first, groups, strict=True)
    ]


def _same_except_seed(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    """Group runs by their settings; where a group has a seed twice, by their start models as well."""
    found = []
    for members in grouped(runs, lambda run: run.path if run.method is None else (run.label, run.settings)):
        parts = [members] if _duplicate_seed(members) is None else grouped(members, lambda run: run.start)
        for part in parts:
            if twice := _duplicate_seed(part):
                raise ConfigError(
                    f"{twice.path} and another run have the same configuration and seed: leave one of them out"
                )
        found += parts
    return found


def grouped(runs: Sequence[RunResult], identity: Callable[[RunResult], Any]) -> list[list[RunResult]]:
    """Group runs that have the same identity, in the order of the runs."""
    together: dict[str, list[RunResult]] = {}
    for run in runs:
        together.setdefault(digest(to_json(identity(run))), []).append(run)
    return list(together.values())


def _duplicate_seed(runs: Sequence[RunResult]) -> RunResult | None:
    seeds = [run.seed for run in runs]
    return next((run for run in runs if seeds.count(run.seed) > 1), None)


class PastRun(NamedTuple):
    """One run in the chain of runs that produced a model."""

    record: Mapping[str, Any]
    """The run's run.json."""
    start: Path | None
    """Path of its start model inside the previous run: ``model``, or ``checkpoints/checkpoint-20``."""


def lineage(record: Mapping[str, Any]) -> list[PastRun]:
    """Return the runs that produced a model, from the first one to the one with this record."""
    found: list[PastRun] = []
    seen = set[Path]()
    while True:
        path = _start_path(record)
        # RUN/model or RUN/checkpoints/checkpoint-N; a hub id is not an absolute path.
        above = [parent for parent in path.parents[:2] if (parent / "run.json").is_file()] if path.is_absolute() else []
        if not above or above[0] in seen:
            return [PastRun(record, None), *reversed(found)]
        seen.add(above[0])
        found.append(PastRun(record, path.relative_to(above[0])))
        record = RunDir.open(above[0]).read_record()


def cost_of(stages: Sequence[PastRun]) -> Cost:
    """Return the cost of training a model: all its stages and its reward models. Values missing in a record are None."""
    if _started_from_lost_run(stages[0].record):
        return Cost()
    rewards = [path for stage in stages for path in _reward_models(stage.record)]
    runs = [*stages, *(past for path in rewards for past in lineage(RunDir.open(path).read_record()))]
    records = {_identity(past.record): past.record for past in runs}
    tokens, flops, seconds, memory = zip(*map(_own_cost, records.values()), strict=True)
    return Cost(total(tokens), total(flops), total(seconds), None if None in memory else max(memory))


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that identifies a run, so that a stage shared by two models is counted once."""
    return record.get("started"), record.get("method"), record.get("model", {}).get("hash")


def _reward_models(record: Mapping[str, Any]) -> list[Path]:
    """Return the directories of the runs that trained the reward models of a run."""
    rewards = record.get("config", {}).get("method", {}).get("reward")
    if not isinstance(rewards, list):
        return []
    named = [Path(str(r.get("path", r.get("name")))).expanduser() for r in rewards if isinstance(r, Mapping)]
    return [path for path in named if (path / "run.json").is_file()]


def _own_cost(record: Mapping[str, Any]) -> tuple[float | None, float | None, float | None, float | None]:
    """Return tokens, FLOPs, seconds and memory of one run, including its reference passes."""
    train = record.get("train", {})
    tokens = total((train.get("tokens"), train.get("reference_tokens", 0), train.get("rollout_tokens", 0)))
    seconds = total((train.get("seconds"), record.get("timings", {}).get("reference", {}).get("seconds", 0)))
    return tokens, train.get("flops"), seconds, train.get("memory_gb")


def _started_from_lost_run(record: Mapping[str, Any]) -> bool:
    """Whether a run started from a run that no longer exists, so that the cost of that one is unknown."""
    path, name = _start_path(record), str(record.get("model", {}).get("name", ""))
    return path.is_absolute() and path.name == "model" and path.parent.name == Path(name).name


def _start_path(record: Mapping[str, Any]) -> Path:
    return Path(str(record.get("model", {}).get("path", "")))


def mean_cost(runs: Sequence[RunResult]) -> Cost:
    """Return the mean cost over seeds; a value that is unknown for one of them is None."""
    totals = (total(values) for values in zip(*(astuple(run.cost) for run in runs), strict=True))
    return Cost(*(None if total is None else total / len(runs) for total in totals))


def results_in(directory: Path) -> dict[str, SuiteResult]:
    """Return the results stored in a directory, by suite."""
    return {path.stem: read_evaluation(directory, path.stem) for path in sorted(directory.glob("*.json"))}


def _settings(stages: Sequence[PastRun]) -> dict[str, Any]:
    """Return the settings of the last stage by dotted key, without those of :data:`_NOT_TRAINING`.

    A start model that was trained by a run is described by that run's settings under ``start.``, not by its path, so
    that pipelines that differ only in their seeds are one arm.
    """
    settings: dict[str, Any] = {}
    for stage in stages:
        before = {f"start.{key}": value for key, value in settings.items()}
        flat = dotted(stage.record.get("config", {}))
        settings = {k: v for k, v in flat.items() if k not in _NOT_TRAINING and not k.startswith(_NOT_OF_MODELS)}
        settings["run.engine"] = flat.get("run.engine", "torch")
        if changes := stage.record.get("changes"):
            settings["changes"] = "; ".join("{key}: {from} to {to} after step {step}".format_map(c) for c in changes)
        if stage.start is not None:
            del settings["model.name"]
            settings |= before | {"start.directory": str(stage.start)}
    return settings
