"""The information needed to repeat a run: configuration, versions, hashes, revision, hardware."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.rundir.directory import RunDir
from alignkit.rundir.record import ProcessesRecord

from alignkit_eval.report.parts import Fact, Facts, fact_text


def reproduction(runs: Sequence[tuple[str, Path]], shared: Mapping[str, Any] | None = None) -> Iterator[Facts]:
    """Yield the facts needed to repeat each run (name, directory), and the configuration shared by all, by dotted key."""
    facts = [fact for name, path in runs for fact in _run(name, path)]
    common = sorted((key, fact_text(value)) for key, value in (shared or {}).items() if value is not None)
    if common:
        facts.append(Fact("Configuration shared by all arms", common))
    if facts:
        yield Facts("Reproduction", facts)


def _run(name: str, path: Path) -> Iterator[Fact]:
    run = RunDir(path)
    record = run.read_record()
    if not record:  # a model that was only evaluated
        return
    model, about = record.get("model", {}), record.get("environment", {})
    values = [
        ("start model", f"{fact_text(model.get('name'))}, sha256 {fact_text(model.get('hash'))}"),
        ("data", f"sha256 {fact_text(record.get('data', {}).get('hash'))}"),
        ("seed", fact_text(record.get("seed"))),
        ("loss conventions", _pairs(record.get("conventions", {}))),
        ("started", _when(record.get("started"))),
        ("versions", _pairs(about.get("versions", {}))),
        ("git", "no repository" if about.get("git") is None else _pairs(about["git"])),
        ("hardware", _pairs(about.get("hardware", {}))),
        ("processes", _processes(record)),
        ("platform", fact_text(about.get("platform"))),
    ]
    text = run.config.read_text(encoding="utf-8") if run.config.is_file() else ""
    yield Fact(f"{name}: align run {shlex.quote(str(run.config))}", values, text)


def _processes(record: Mapping[str, Any]) -> str:
    """Return the processes that trained, their speed, and the peak memory of each rank."""
    found, train = ProcessesRecord.model_validate(record.get("processes", {})), record.get("train", {})
    speeds = [
        (train.get(f"tokens_per_second{key}"), words) for key, words in (("", ""), ("_per_device", " per device"))
    ]
    words = [f"{speed:,.0f} tokens/s{which}" for speed, which in speeds if speed]
    peaks = ", ".join(f"{peak:.2f}" for peak in found.peak_memory_gb)
    return ", ".join([str(found), *words, *([f"peak memory by rank {peaks} GiB"] if peaks else [])])


def subtitle(record: Mapping[str, Any]) -> str:
    """Return a one-line summary of a run, from run.json."""
    model, train = record.get("model", {}), record.get("train", {})
    tokens = f", {train['tokens']:,} tokens" if train.get("tokens") else ""
    method, name, steps = map(fact_text, (record.get("method"), model.get("name"), record.get("steps")))
    processes = ProcessesRecord.model_validate(record.get("processes", {}))
    several = f", {processes.world_size} processes" if processes.world_size > 1 else ""
    return f"{method} on {name}, {steps} steps{tokens}{several}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()) or "-"


def _when(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")
