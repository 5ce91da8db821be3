"""Evaluation of models: every suite on every target, each model loaded once, each result stored with its provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit import SuiteResult
from alignkit.errors import ConfigError, NoRowsError
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import write_evaluation
from alignkit.runs.evaluation import open_suites, run_suites

from alignkit_eval.evaluation.targets import TargetSpec, find_target, open_target


@dataclass(frozen=True)
class Evaluation:
    """Results of the suites on one target, stored as ``eval/SUITE.json`` in ``directory``."""

    target: str
    directory: Path
    results: Mapping[str, SuiteResult]
    skipped: tuple[str, ...] = ()
    """Messages about suites that were skipped because the data has no rows for them."""

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON types, metrics as ``{name: {value, low, high}}``."""
        suites = {
            name: {
                "n": result.n,
                "clusters": result.clusters,
                "metrics": {metric: estimate._asdict() for metric, estimate in result.metrics.items()},
                "cached": result.provenance.get("cached", False),
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
            f"{name}: " + "; ".join([f"n {result.n:,}", *map(str, result.left_out), *result.notes])
            for name, result in self.results.items()
        ]


def default_target(runs: Path | str = "runs") -> str:
    """Return the newest finished run under ``runs``, or ``demo`` where there is none."""
    newest = RunDir.newest_finished(runs) if Path(runs).is_dir() else None
    return "demo" if newest is None else str(newest.path)


def evaluate(
    targets: Sequence[str | Path],
    suites: Sequence[str] = ("prefs", "perplexity"),
    *,
    data: str | None = None,
    sets: Sequence[str] = (),
    output: Path | str = "evaluations",
    say: Callable[[str], None] = lambda message: None,
) -> list[Evaluation]:
    """Evaluate every target with every suite.

    Results of a run on its own held-out rows are stored in its ``eval/`` and run.json, all others in
    ``OUTPUT/NAME/eval/``. Results are cached by content (weights, rows, settings), not by name.

    Args:
        targets: run directories, model or adapter directories, hub ids, or ``demo``.
        suites: names of installed suites.
        data: rows to evaluate on, in place of each target's own data.
        sets: ``key=value`` texts as for ``--set``: ``data.*``, ``model.*``, ``eval.settings.SUITE.KEY``.
        output: directory for results that are not stored in a run.
        say: called with a message for each suite that is skipped.

    Raises:
        ConfigError: a name or setting is invalid, or no suite has rows to evaluate.
        ModelError, DataError: a model or source cannot be loaded.
        RunFailedError: a score is not finite.
    """
    names = list(dict.fromkeys(suites))
    overrides = [*sets, f"eval.suites={','.join(names)}", "eval.during={}"]
    sources = [find_target(str(target), data=data, sets=overrides) for target in targets]
    directories = _directories(sources, Path(output))
    for source in sources:
        open_suites(source.config.eval)  # reports a wrong name or setting before any model is loaded
    done = [_evaluate(source, directory, say) for source, directory in zip(sources, directories, strict=True)]
    if not any(evaluation.results for evaluation in done):
        raise NoRowsError("nothing could be evaluated: " + "; ".join(dict.fromkeys(done[0].skipped)))
    return done


def _evaluate(source: TargetSpec, directory: Path, say: Callable[[str], None]) -> Evaluation:
    suites = open_suites(source.config.eval)
    subject, start_subject = open_target(source)
    against = {name: suite for name, suite in suites.items() if suite.uses_start}
    # Suites that are skipped for the start model are skipped, and reported, for the target as well.
    start = run_suites(against, start_subject) if start_subject else {}
    skipped: list[str] = []
    results = run_suites(suites, subject, start=start, skipped=skipped.append)
    for reason in skipped:
        say(f"{source.name}: {reason}")
    for result in results.values():
        write_evaluation(directory / "eval", result, target=source.name)
    if source.run is not None and directory == source.run.path:
        evaluation = source.run.read_record().get("evaluation", {})
        after = evaluation.get("after", {}) | {name: dict(result.metrics) for name, result in results.items()}
        source.run.update_record(evaluation=evaluation | {"after": after})
    return Evaluation(source.name, directory, results, tuple(skipped))


def _directories(sources: Sequence[TargetSpec], output: Path) -> list[Path]:
    """Return the directory for each target's results: the run's own, or a child of ``output`` with the target's name."""
    paths = [s.run.path if s.run is not None and s.own_data else output / s.name.replace("/", "--") for s in sources]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise ConfigError(
            f"two targets would write to {min(twice)}: evaluate them one at a time, with another --output"
        )
    return paths
