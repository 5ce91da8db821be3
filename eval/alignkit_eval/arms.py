"""Reading runs into arms: their results, what tells them apart, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit import SuiteResult
from alignkit.errors import ConfigError
from alignkit.rundir import RunDir, read_evaluation

from alignkit_eval.comparison import Cost

START = "start"
"""Names the start model that runs share."""

_WATCHING = {
    *("train.logging_steps", "train.logging_strategy", "train.logging_first_step", "train.report_to"),
    *("train.save_steps", "train.save_strategy", "train.save_total_limit", "train.disable_tqdm"),
    *("train.eval_strategy", "train.eval_steps", "data.cache", "method.name"),
}
"""Keys that change nothing about what is trained (``method.name`` is told apart by itself)."""


@dataclass(frozen=True)
class RunResult:
    """One run, or a model evaluated on its own: its results by suite, and what it is."""

    path: Path
    seed: int
    method: str | None
    settings: Mapping[str, Any]
    """Configuration by dotted key, without what only watches the run."""
    results: Mapping[str, SuiteResult]
    conventions: Mapping[str, Any] = field(default_factory=dict)
    start: tuple[str | None, Path] | None = None
    """Hash of the start model, and the directory of its results."""
    cost: Cost = field(default_factory=Cost)


def read_run(path: Path | str) -> RunResult:
    """Read a finished run, or a directory that ``align eval --output`` made; raises ``ConfigError`` where it is neither."""
    path = Path(path)
    results = _results(path / "eval")
    if not (path / "run.json").is_file():
        if not results:
            raise ConfigError(f"{path} is neither a run nor the result of an evaluation: it holds no eval/SUITE.json")
        return RunResult(path, 0, None, {}, results)
    record = RunDir.open(path).read_record()
    if record.get("status") != "finished":
        raise ConfigError(f"{path} is not a finished run (its status is {record.get('status')})")
    if not results:
        raise ConfigError(f"{path} holds no evaluation: run align eval {path} first")
    config = _flat(record.get("config", {}))
    settings = {key: value for key, value in config.items() if key not in _WATCHING and _trains(key)}
    return RunResult(
        path,
        int(record.get("seed", 0)),
        str(record["method"]),
        settings,
        results,
        record.get("conventions", {}),
        (record.get("model", {}).get("hash"), path / "eval" / "before"),
        cost_of(record),
    )


def start_of(runs: Sequence[RunResult]) -> RunResult:
    """Return the start model all runs share; raises ``ConfigError`` where they do not share one."""
    found = {run.start[0]: run.start[1] for run in reversed(runs) if run.start is not None}
    if len(found) != 1 or any(run.start is None for run in runs):
        raise ConfigError("the runs do not share one start model, so it cannot be the baseline")
    directory = next(iter(found.values()))
    results = _results(directory)
    if not results:
        raise ConfigError(f"{directory} holds no evaluation of the start model (eval.before was off)")
    return RunResult(directory, 0, None, {}, results)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, under the name of what tells them from the others."""

    name: str
    settings: Mapping[str, Any]
    runs: tuple[RunResult, ...]


def group(runs: Sequence[RunResult]) -> list[Group]:
    """Put runs that differ in their seed alone into one group, in the order they were given."""
    together: dict[str, list[RunResult]] = {}
    for run in runs:
        identity = repr(run.path) if run.method is None else repr((run.method, sorted(run.settings.items(), key=str)))
        together.setdefault(identity, []).append(run)
    for members in together.values():
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            twice = next(run for run in members if seeds.count(run.seed) > 1)
            raise ConfigError(
                f"{twice.path} and another run have one configuration and one seed: leave one of them out"
            )
    groups = [tuple(sorted(members, key=lambda run: run.seed)) for members in together.values()]
    told = [_told_apart(members[0], [other[0] for other in groups]) for members in groups]
    names = [_name(members[0], settings) for members, settings in zip(groups, told, strict=True)]
    names = [_unlike(name, i, names, groups) for i, name in enumerate(names)]
    return [
        Group(name, ({"method": members[0].method} if members[0].method else {}) | settings, members)
        for name, settings, members in zip(names, told, groups, strict=True)
    ]


def cost_of(record: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> Cost:
    """Return what a run cost to train, with the runs its start model came from; None for what a record does not say."""
    train = record.get("train", {})
    own = Cost(
        _sum(train.get("tokens"), train.get("reference_tokens", 0)),
        train.get("flops"),
        _sum(train.get("seconds"), record.get("timings", {}).get("reference", {}).get("seconds", 0)),
        train.get("memory_gb"),
    )
    path = str(record.get("model", {}).get("path", ""))
    earlier = Path(path).parent if path.endswith("/model") else None
    if earlier is None or not (earlier / "run.json").is_file() or path in seen:
        return own
    before = cost_of(RunDir.open(earlier).read_record(), seen | {path})
    memory = None if own.memory_gb is None or before.memory_gb is None else max(own.memory_gb, before.memory_gb)
    return Cost(
        _sum(own.tokens, before.tokens), _sum(own.flops, before.flops), _sum(own.seconds, before.seconds), memory
    )


def mean_cost(runs: Sequence[RunResult]) -> Cost:
    """Return the mean cost over seeds, None for what one of them does not say."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    return Cost(*(mean([getattr(run.cost, name) for run in runs]) for name in Cost.__dataclass_fields__))


def _results(directory: Path) -> dict[str, SuiteResult]:
    names = sorted(path.stem for path in directory.glob("*.json"))
    return {name: read_evaluation(directory, name) for name in names}


def _trains(key: str) -> bool:
    return not key.startswith(("run.", "eval."))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _told_apart(run: RunResult, others: Sequence[RunResult]) -> dict[str, Any]:
    """Return the settings in which a run differs from another: the method's own from runs of its method alone."""

    def differs(key: str) -> bool:
        rivals = [o for o in others if o.method == run.method or (o.method and not key.startswith("method."))]
        return any(other.settings.get(key) != run.settings[key] for other in rivals)

    return {key.removeprefix("method."): value for key, value in run.settings.items() if differs(key)}


def _name(run: RunResult, settings: Mapping[str, Any]) -> str:
    if run.method is None:
        return START if run.path.name == "before" else run.path.name
    return " ".join([run.method, *(f"{key}={value}" for key, value in settings.items())])


def _unlike(name: str, position: int, names: Sequence[str], groups: Sequence[tuple[RunResult, ...]]) -> str:
    """Return a name no other arm has: where settings do not tell two apart, their directories do."""
    return name if names.count(name) == 1 else str(groups[position][0].path)


def _sum(*values: float | None) -> float | None:
    return None if any(value is None for value in values) else sum(value for value in values if value is not None)
