"""Evaluation of models: every suite on every target, each model loaded once, each result stored with its provenance."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from alignkit import SuiteResult
from alignkit.contract.registry import provided
from alignkit.errors import ConfigError, NoRowsError, first_line
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.runs.evaluation import Subject, open_suites, run_suites
from alignkit.system.distributed import rank, world_size
from alignkit.system.files import require_writable
from alignkit.system.quiet import quieted
from alignkit.system.sharded import sharded_loading
from alignkit.system.together import first_does, together

from alignkit_eval.evaluation.places import claim, names_of, release
from alignkit_eval.evaluation.targets import TargetSpec, find_target, join, open_target


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Results of the suites on one target, stored as ``eval/SUITE.json`` in ``directory``."""

    target: str
    directory: Path
    results: Mapping[str, SuiteResult]
    skipped: tuple[str, ...] = ()
    """Messages about suites that were skipped because the data has no rows for them."""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} on {result.n:,} items" for name, result in self.results.items())
        return f"Evaluation of {self.target}: {sizes or 'no results'}"

    def _repr_html_(self) -> str | None:
        show = provided("align.reports", "notebook")
        return show(self) if show else None

    def to_pandas(self) -> Any:
        """Return the metrics as a ``pandas.DataFrame``: suite, metric, value, low, high, n."""
        import pandas

        rows = [
            {"suite": suite, "metric": metric, **estimate._asdict(), "n": result.n}
            for suite, result in self.results.items()
            for metric, estimate in result.metrics.items()
        ]
        return pandas.DataFrame(rows, columns=["suite", "metric", "value", "low", "high", "n"])

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON types, metrics as ``{name: {value, low, high}}``."""
        suites = {
            name: {
                "n": result.n,
                "clusters": result.clusters,
                "metrics": {metric: estimate._asdict() for metric, estimate in result.metrics.items()},
                "cached": result.provenance.get("cached", False),
                "scored_by": result.provenance.get("scored_by"),
                "left_out": [omission._asdict() for omission in result.left_out],
                "notes": list(result.notes),
            }
            for name, result in self.results.items()
        }
        where = {"target": self.target, "directory": str(self.directory)}
        return where | {"suites": suites, "skipped": list(self.skipped)}

    def lines(self) -> list[str]:
        """Return a line for each suite: the number of items, what was left out or cut, and notes."""
        return [
            f"{name}: " + "; ".join([f"n {result.n:,}", *_products(result), *map(str, result.left_out), *result.notes])
            for name, result in self.results.items()
        ]


def _products(result: SuiteResult) -> list[str]:
    """Return the type of the matrix products that a result was made with, where it is known."""
    words = str(result.provenance.get("scored_by") or "").strip().split(" ", 3)
    return [f"products {words[3]}"] if len(words) > 3 else []


def default_target(runs: Path | str = "runs") -> str:
    """Return the run under ``runs`` that finished last, or ``demo`` where there is none."""
    records = [path for path in Path(runs).glob("*/run.json") if RunDir(path.parent).status == "finished"]
    return str(max(records, key=lambda path: path.stat().st_mtime).parent) if records else "demo"


@quieted()
def evaluate(
    targets: Sequence[str | Path],
    suites: Sequence[str] = ("prefs", "perplexity"),
    *,
    data: str | None = None,
    sets: Sequence[str] = (),
    output: Path | str = "evaluations",
    strategy: str = "auto",
    say: Callable[[str], None] = lambda message: None,
) -> list[Evaluation]:
    """Evaluate every target with every suite; several processes (torchrun) share the work, and the first one writes.

    Results of a run on its own held-out rows are stored in its ``eval/`` and run.json, all others in
    ``OUTPUT/NAME/eval/``, where no two targets have the same NAME. Results are cached by content (weights, rows, settings), not by name.

    Args:
        targets: run directories, model or adapter directories, hub ids, or ``demo``.
        suites: names of installed suites.
        data: rows to evaluate on, in place of each target's own data.
        sets: ``key=value`` texts as for ``--set``: ``data.*``, ``model.*``, ``eval.settings.SUITE.KEY``.
        output: directory for results that are not stored in a run.
        strategy: ``fsdp``: several processes share the weights of each model; ``ddp``: each holds them all; ``auto``: as the run.
        say: called with a message for each suite that is skipped, and the columns that are not used.

    Raises:
        ConfigError: a name or setting is invalid, or no suite has rows to evaluate.
        ModelError, DataError: a model or source cannot be loaded.
        RunFailedError: a score is not finite.
    """
    if strategy == "fsdp" and world_size() == 1:
        raise ConfigError("strategy fsdp needs several processes: add --processes N, or leave it out")
    join()
    return together("the evaluation", partial(_evaluate_all, targets, suites, data, sets, Path(output), strategy, say))


def _evaluate_all(
    targets: Sequence[str | Path],
    suites: Sequence[str],
    data: str | None,
    sets: Sequence[str],
    output: Path,
    strategy: str,
    say: Callable[[str], None],
) -> list[Evaluation]:
    _refuse_unread(sets)
    names = list(dict.fromkeys(suites))
    overrides = [*sets, f"eval.suites={','.join(names)}", "eval.during={}"]
    sources = [find_target(str(target), data=data, sets=overrides) for target in targets]
    for source in sources:
        open_suites(source.config.eval)  # reports a wrong name or setting before any model is loaded
        if (look := provided("align.checks", "columns")) and (problem := look(source.config.data)):
            say(f"{source.name}: {problem}")
    placed = first_does("the places of results", lambda: _placed(sources, output))
    try:
        done = [_evaluate(source, directory, strategy, say) for source, directory in placed]
    finally:
        for _, directory in placed if rank() == 0 else ():
            release(directory)
    if not any(evaluation.results for evaluation in done):
        raise NoRowsError("nothing could be evaluated: " + "; ".join(dict.fromkeys(done[0].skipped)))
    return done


_ORDER = "exhausted interleave shuffle curriculum phases group_by steps_per_group check".split()
"""Keys of ``data`` that are about training alone."""


def _refuse_unread(sets: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a key that no evaluation reads."""
    for key in (text.partition("=")[0].strip() for text in sets):
        read = key == "run.engine" or key.startswith(("model.", "data.", "eval.settings."))
        if not read or key.split(".")[1] in _ORDER:
            raise ConfigError(
                f"--set {key} has no effect on an evaluation: it reads run.engine, keys of model, keys of data that decide rows and tokens, "
                "and eval.settings.SUITE.KEY (suites are named with --suite)"
            )


def _evaluate(source: TargetSpec, directory: Path, strategy: str, say: Callable[[str], None]) -> Evaluation:
    suites = open_suites(source.config.eval)
    skipped: list[str] = []
    shared = (source.config.run.strategy if strategy == "auto" else strategy) in ("fsdp", "zero3")
    with sharded_loading(world_size() if shared else 1):
        subject, start_subject = open_target(source)
        against = {name: suite for name, suite in suites.items() if suite.uses_start}
        # Suites that are skipped for the start model are skipped, and reported, for the target as well.
        start = run_suites(against, start_subject) if start_subject else {}
        results = run_suites(suites, subject, start=start, skipped=skipped.append)
    if moved := _changed_rows(source, subject):
        results = {name: replace(result, notes=[*result.notes, moved]) for name, result in results.items()}
    for reason in [*skipped, *subject.held_out.unread()]:
        say(f"{source.name}: {reason}")
    first_does("writing the results", lambda: _write(source, directory, results, say))
    return Evaluation(source.name, directory, results, tuple(skipped))


def _changed_rows(source: TargetSpec, subject: Subject) -> str:
    """Return a note if the held-out rows of a run are no longer those that it recorded; else nothing."""
    if source.run is None or not source.as_trained:
        return ""
    data = source.run.read_record().get("data", {})
    began, kinds = data.get("eval", {}).get("fingerprint"), [report["kind"] for report in data.get("sources", [])]
    with suppress(NoRowsError):
        if began and kinds and subject.held_out.unused().examples(kinds[0]).fingerprint != began:
            return "the held-out rows are not those of the training: the run's data has changed since"
    return ""


def _write(source: TargetSpec, directory: Path, results: Mapping[str, SuiteResult], say: Callable[[str], None]) -> None:
    try:
        for result in results.values():
            if _replaced(directory / "eval", result):
                say(f"{source.name}: {result.suite} replaces an earlier result on other rows or with other settings")
            write_evaluation(directory / "eval", result, target=source.name)
        _record(source, directory, results)
    except OSError as error:
        raise ConfigError(f"cannot write results to {error.filename or directory}: {first_line(error)}") from error


def _record(source: TargetSpec, directory: Path, results: Mapping[str, SuiteResult]) -> None:
    """Add the metrics of a run on its own rows to its run.json."""
    if source.run is not None and directory == source.run.path:
        evaluation = source.run.read_record().get("evaluation", {})
        after = evaluation.get("after", {}) | {name: dict(result.metrics) for name, result in results.items()}
        source.run.update_record(evaluation=evaluation | {"after": after})


def _replaced(directory: Path, result: SuiteResult) -> bool:
    """Whether a directory holds a suite's result on other rows or with other settings."""
    if not (directory / f"{result.suite}.json").is_file():
        return False
    try:
        before = read_evaluation(directory, result.suite)
    except ConfigError:
        return False  # damaged
    same = all(before.provenance.get(key) == result.provenance.get(key) for key in ("content", "rules"))
    return not same or before.settings != result.settings


def _placed(sources: Sequence[TargetSpec], output: Path) -> list[tuple[TargetSpec, Path]]:
    """Return the targets under names of their own, with the directories of their results: the run's own, or one in ``output``.

    All of them are tried before anything is computed.
    """
    placed = []
    for source, name in zip(sources, names_of([source.origin for source in sources]), strict=True):
        if source.run is not None and source.own_data:
            if not os.access(source.run.path, os.W_OK):
                raise ConfigError(
                    f"cannot write results to the run {source.run.path}: permission denied; copy it, or evaluate its model: "
                    f"align eval {source.run.path / 'model'} --data D --output DIR"
                )
            placed.append((replace(source, name=name), source.run.path))
        else:
            name, directory = claim(output, source.origin, name)
            placed.append((replace(source, name=name), directory))
    try:
        for _, directory in placed:
            require_writable(directory / "eval", directory=True)
    except BaseException:
        for _, directory in placed:
            release(directory)
        raise
    return placed
