"""The comparison of a sweep or pipeline, recorded as one more run in the group of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit import RunConfig
from alignkit.config import split_words
from alignkit.contract import registry
from alignkit.errors import described
from alignkit.rundir.directory import RunDir
from alignkit.system.files import digest, write_json

from alignkit_trackers.content import group_of, read_json
from alignkit_trackers.tracker import Rows, Tracked, Tracker


def record_group(
    directory: Path, runs: Sequence[Path], values: Mapping[str, Any], tables: Mapping[str, Rows]
) -> list[str]:
    """Record tables, plots and the report of ``directory`` in the trackers of the runs; return what failed.

    What was recorded before is not recorded again. ``values`` are the configuration: those of the sweep.
    """
    group = directory.name if (directory / "sweep.yaml").is_file() else group_of(directory) or directory.name
    name = f"{group}-{'comparison' if group == directory.name else directory.name}"
    content, failed = digest([dict(values), {name: [*rows] for name, rows in tables.items()}]), []
    for tracker, config in _trackers(runs).items():
        stored = read_json(directory / "trackers.json")
        known = stored.get(tracker, {})
        if known.get("content") == content:
            continue
        try:
            service: Any = registry.load(registry.find("align.services", tracker))()
            times = known.get("times", -1)
            tracked = Tracked(
                name, service.project_of(config), group, directory.absolute(), known.get("id"), step=times
            )
            identity = service.record_group(tracked, values, tables)
        except Exception as error:
            failed.append(f"train.report_to: {tracker} did not record the comparison: {described(error)}")
            continue
        recorded = {"id": identity, "times": max(times, 0) + 1, "content": content}
        write_json(directory / "trackers.json", stored | {tracker: recorded})
    return failed


def _trackers(runs: Sequence[Path]) -> dict[str, RunConfig]:
    """Return the trackers that the runs name, each with the configuration of the first that does."""
    services, found = registry.usable("align.services"), dict[str, RunConfig]()
    for run in runs:
        config = RunConfig.model_validate(RunDir(run).read_record().get("config", {"method": "none"}))
        for name in split_words(config.train.arguments.get("report_to") or []):
            service = registry.load(services[name]) if name in services and name not in found else None
            if isinstance(service, type) and issubclass(service, Tracker):
                found[name] = config
    return found
