"""What trackers have kept, read back from their local stores: event files, .wandb, MLflow's database, trackio's, aim's."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit import RunConfig
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.runs.api import Run
from alignkit.settings.layers import dotted
from alignkit_eval.report.changes import change_rows
from alignkit_trackers import Tracker

Scalars = dict[str, dict[int, float]]

SECTIONS = ("method", "model", "data", "train", "eval", "compare", "run", "tracker", "conventions", "sweep")
"""Sections of a configuration that a tracker keeps."""


@dataclass
class Kept:
    """One tracked run."""

    name: str | None = None
    project: str | None = None
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    scalars: Scalars = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    plots: set[str] = field(default_factory=set)
    card: str | None = None
    model: set[str] = field(default_factory=set)
    status: str | None = None


def expected(run: Path) -> Kept:
    """Return what must be kept of a finished run, from run.json, metrics.jsonl and the other files of its directory."""
    record, directory = Run(run).record, RunDir(run)
    scalars: Scalars = {}
    for line in MetricsLog(directory.metrics).read():
        for name, value in line.items():
            if name != "step" and type(value) in (int, float):
                scalars.setdefault(name, {})[line["step"]] = value
    for when, step in (("before", 0), ("after", record["steps"])):
        for suite, metrics in record["evaluation"][when].items():
            for metric, ends in metrics.items():
                named = {"": ends["value"], "/low": ends["low"], "/high": ends["high"]}
                for end, value in named.items():
                    if value is not None:
                        scalars[f"{when}/{suite}/{metric}{end}"] = {step: value}
    samples = [json.loads(line) for line in directory.samples.read_text().splitlines()]
    return Kept(
        name=record["config"]["run"]["name"],
        project=record["config"]["run"]["project"] or "alignkit",
        config={**record["config"], "conventions": record["conventions"]},
        scalars=scalars,
        tables={name: rows for name, rows in (("evaluation", change_rows(run)), ("samples", samples)) if rows},
        plots={path.stem for path in directory.plots.glob("*.png")},
        card=(directory.model / "README.md").read_text(),
        model={path.name for path in directory.model.iterdir()},
        status=record["status"],
    )


def assert_same(kept: Kept, wanted: Kept) -> None:
    """Assert that a tracker kept what the run's files hold."""
    assert kept.config == wanted.config
    assert kept.scalars.keys() == wanted.scalars.keys()
    for name, values in wanted.scalars.items():
        assert kept.scalars[name].keys() == values.keys(), name
        for step, value in values.items():
            close = math.isclose(kept.scalars[name][step], value, rel_tol=1e-12)
            assert close or (math.isnan(value) and math.isnan(kept.scalars[name][step])), (name, step)
    for name, rows in wanted.tables.items():
        assert [_plain(row) for row in kept.tables[name]] == [_plain(row) for row in rows], name
    assert kept.plots == wanted.plots
    assert (kept.card or "").strip() == (wanted.card or "").strip()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with nothing in place of NaN, and texts without spaces around them."""
    found = {key: value.strip() if isinstance(value, str) else value for key, value in row.items()}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def replayed(finished: Path, tmp_path: Path, tracker: type[Tracker], cut: int) -> Path:
    """Record a finished run again in a copy: interrupted at its last step, and resumed from the checkpoint of step ``cut``."""
    run = shutil.copytree(
        finished, tmp_path / "copied", ignore=shutil.ignore_patterns("trackers.json", "tensorboard", "wandb")
    )
    record, log = json.loads((run / "run.json").read_text()), MetricsLog(run / "metrics.jsonl")
    config, lines, whole = RunConfig.model_validate(record["config"]), log.read(), log.path.read_bytes()
    config.tracker.model = True
    for first in (-1, cut):
        if first >= 0:
            log.cut_back(first)
        else:
            log.path.unlink()
        part = tracker()
        part.align_run_started(config, run)
        for line in lines:
            if line["step"] > first:
                part.align_log(line)
        log.path.write_bytes(whole)
        part.align_run_finished({"status": "interrupted"} if first < 0 else record, run)
    return run


def read_tensorboard(folder: Path) -> Kept:
    """Read event files with TensorBoard's own accumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}, purge_orphaned_data=True
    )
    found.Reload()
    tags = found.Tags()
    scalars: Scalars = {}
    texts = {}
    for tag in tags["tensors"]:
        for event in found.Tensors(tag):
            if event.tensor_proto.string_val:
                texts[tag.removesuffix("/text_summary")] = event.tensor_proto.string_val[0].decode()
            else:
                values = event.tensor_proto.double_val or event.tensor_proto.float_val
                scalars.setdefault(tag, {})[event.step] = values[0]
    config = json.loads(texts["config"].removeprefix("```json\n").removesuffix("\n```"))
    return Kept(
        config=config,
        scalars=scalars,
        tables={name: markdown_rows(text) for name, text in texts.items() if text.startswith("| ")},
        plots={tag.removeprefix("plots/") for tag in tags["images"]},
        card=texts.get("model_card"),
        status=texts.get("status"),
    )


def markdown_rows(text: str) -> list[dict[str, Any]]:
    """Read a table in Markdown back."""
    lines = [[_cell(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    return [dict(zip(map(str, lines[0]), line, strict=True)) for line in lines[2:]]


def _cell(text: str) -> Any:
    text = text.strip().replace("<br>", "\n").replace("\\|", "|").replace("\\\\", "\\")
    try:
        return json.loads(text)
    except ValueError:
        return text or None


def read_wandb(file: Path) -> Kept:
    """Read the records of a .wandb file: protobuf messages in the log format of LevelDB."""
    internal = importlib.import_module("wandb.proto.wandb_internal_pb2")
    kept = Kept()
    media: dict[str, Any] = {}
    for data in _leveldb_records(file.read_bytes()[7:], 7):
        record = internal.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            kept.name, kept.project, kept.group = (
                record.run.display_name,
                record.run.project,
                record.run.run_group or None,
            )
            updates = record.run.config.update
        else:
            updates = record.config.update if kind == "config" else ()
        for item in updates:
            if item.key and item.key != "_wandb":
                kept.config[item.key] = json.loads(item.value_json)
        if kind == "history":
            step = record.history.step.num
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if inner:  # a part of a picture or table
                    media.setdefault(name, {})[inner[0]] = value
                elif isinstance(value, dict):
                    media[name] = value
                elif not name.startswith("_"):
                    kept.scalars.setdefault(name, {})[step] = float(value)
        if kind == "summary":
            for item in record.summary.update:
                if item.key == "status" or list(item.nested_key) == ["status"]:
                    kept.status = json.loads(item.value_json)
        if kind == "artifact" and record.artifact.type == "model":
            kept.model = {entry.path for entry in record.artifact.manifest.contents}
    files = file.parent / "files"
    for name, value in media.items():
        if value.get("_type") == "table-file":
            table = json.loads((files / value["path"]).read_text())
            kept.tables[name] = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        elif name.startswith("plots/"):
            assert (files / value["path"]).is_file()
            kept.plots.add(name.removeprefix("plots/"))
    card = files / "README.md"
    kept.card = card.read_text() if card.is_file() else None
    return kept


def read_wandb_parts(run: Path) -> Kept:
    """Read all parts of a W&B run that was resumed offline: one file each, with one id."""
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.stem for file in files}) == 1, files
    *parts, last = map(read_wandb, files)
    for part in reversed(parts):
        for name, values in part.scalars.items():
            last.scalars[name] = values | last.scalars.get(name, {})
    return last


def _leveldb_records(content: bytes, offset: int) -> Iterator[bytes]:
    """Yield the records of a LevelDB log of blocks of 32 KiB; ``offset``: bytes of the first block before ``content``."""
    position, parts = 0, b""
    while position + 7 <= len(content):
        if 32768 - (position + offset) % 32768 < 7:
            position += 32768 - (position + offset) % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read_mlflow(uri: str, project: str, run_name: str | None = None) -> Kept:
    """Read the only run of an experiment (of this name) with MLflow's client."""
    client = importlib.import_module("mlflow").MlflowClient(uri)
    experiment = client.get_experiment_by_name(project)
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run_name in (None, run.info.run_name)]
    name = run.info.run_id
    scalars: Scalars = {}
    for metric in run.data.metrics:
        history = client.get_metric_history(name, metric)
        assert len({point.step for point in history}) == len(history), (
            metric,
            [p.step for p in history],
        )  # nothing twice
        scalars[metric] = {point.step: point.value for point in history}
    folder = Path(client.download_artifacts(name, ""))
    config = json.loads((folder / "config.json").read_text())
    params = {key: value if isinstance(value, str) else json.dumps(value) for key, value in dotted(config).items()}
    assert run.data.params == {re.sub(r"[^\w\-. /:]", "_", key): value for key, value in params.items()}
    stored = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    tables = {
        name: [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        for name, table in stored.items()
        if table.keys() == {"columns", "data"}
    }
    card = folder / "README.md"
    return Kept(
        name=run.info.run_name,
        project=project,
        group=run.data.tags.get("group"),
        config=config,
        scalars=scalars,
        tables=tables,
        plots={path.stem for path in (folder / "plots").glob("*.png")},
        card=card.read_text() if card.is_file() else None,
        model={path.name for path in (folder / "model").glob("*")},
        status=run.info.status,
    )


def read_trackio(project: str, name: str) -> Kept:
    """Read the last run of a name from trackio's database, in TRACKIO_DIR."""
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    record = storage.get_latest_run_record_by_name(project, name)
    kept = Kept(name=record["name"], project=project)
    config = storage.get_run_config(project, name, run_id=record["id"]) or {}
    kept.group = config.get("_Group")
    kept.config = {key: value for key, value in config.items() if not key.startswith("_")}
    for line in storage.get_logs(project, name, run_id=record["id"]):
        for name, value in line.items():
            kind = value.get("_type", "") if isinstance(value, dict) else ""
            if kind.startswith("trackio.table"):
                kept.tables[name] = value["_value"]
            elif kind.startswith("trackio.image"):
                kept.plots.add(name.removeprefix("plots/"))
            elif kind.startswith("trackio.markdown"):
                kept.card = value["_value"]
            elif name not in ("step", "timestamp"):
                kept.scalars.setdefault(name, {})[line["step"]] = value
    return kept


def read_aim(repository: Path, run_name: str | None = None) -> Kept:
    """Read the only run of an aim repository (of this name)."""
    aim = importlib.import_module("aim")
    hashes = aim.Repo(str(repository)).list_all_runs()
    runs = [aim.Run(one, repo=str(repository), read_only=True) for one in hashes]
    (run,) = [run for run in runs if run_name in (None, run.name)]
    values = {key: value for key in SECTIONS if (value := run.get(key)) is not None}
    kept = Kept(name=run.name, project=run.experiment, group=run.get("group"), config=values, status=run["status"])
    for metric in run.metrics():
        steps, columns = metric.data.items_list()
        kept.scalars[metric.name] = dict(zip(steps, map(float, columns[0]), strict=True))
    texts = {}
    context = importlib.import_module("aim.storage.context").Context({})
    there = run.collect_sequence_info(("texts", "images"))
    for found in there["texts"]:
        texts[found["name"]] = run.get_text_sequence(found["name"], context).data.items_list()[1][0][-1].data
    kept.tables = {name: markdown_rows(text) for name, text in texts.items() if text.startswith("| ")}
    kept.card = texts.get("model_card")
    kept.plots = {found["name"].removeprefix("plots/") for found in there["images"]}
    return kept
