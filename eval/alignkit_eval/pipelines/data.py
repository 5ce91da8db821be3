"""The stage that reads, checks and splits data once, for the stages after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from alignkit import RunConfig, Stage, StageContext, build_model
from alignkit.contract import Row
from alignkit.contract.registry import provided
from alignkit.data.load import Data, load_data
from alignkit.runs.data import loader
from alignkit.system.files import write_json
from pydantic import BaseModel, ConfigDict, Field

from alignkit_eval.pipelines.inputs import inputs_digest


class DataSettings(BaseModel):
    """The data, and what kind of rows it becomes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    rows: Literal["preference", "completion", "prompt"] = Field("preference", description="kind of the rows")
    data: Any = Field(None, description="section data, over the one that all stages share")


class DataStage(Stage[DataSettings]):
    """Usable rows as ``train.jsonl`` and ``eval.jsonl``, and what the check of the data found as ``report.json``."""

    name = "data"
    settings_type = DataSettings
    outputs = ("train.jsonl", "eval.jsonl", "report.json")

    def __init__(self, settings: DataSettings, context: StageContext) -> None:
        super().__init__(settings, context)
        given = {} if settings.data is None else {"data": settings.data}
        self._config: RunConfig = context.configure({"method": "sft", **given})

    def check(self) -> None:
        """Read the data as the stage will; the rows are cached."""
        self._load()

    def identity(self) -> Any:
        """Return the settings, and the content of the data."""
        config, root = self._config, self.context.directory.parent
        section = config.data.model_dump(mode="json")
        return [self.settings.rows, json.dumps(section).replace(str(root), "."), inputs_digest(config, root)]

    def run(self, directory: Path) -> None:
        """Write the rows."""
        data = self._load()
        held_out = data.held_out.rows(self.settings.rows)
        _write(directory / "train.jsonl", data.train_rows)
        _write(directory / "eval.jsonl", held_out)
        check = provided("align.checks", "data")
        findings = check(data, self._config.data.check) if check else []
        report = {
            "train": len(data.train_rows),
            "eval": len(held_out),
            "read": data.report.lines(),
            "findings": findings,
        }
        write_json(directory / "report.json", report)

    def finished(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Return the numbers of rows."""
        found = json.loads((self.context.directory / "report.json").read_text(encoding="utf-8"))
        return {"training rows": found["train"], "held-out rows": found["eval"]}

    def _load(self) -> Data:
        config = self._config
        tokenizer = build_model(config.model, meta=True).tokenizer
        return load_data(config, self.settings.rows, tokenizer, loader(config))


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(_as_json(row), ensure_ascii=False, default=str) + "\n" for row in rows)


def _as_json(row: Row) -> dict[str, Any]:
    names = {0: (), 1: ("completion",), 2: ("chosen", "rejected")}[len(row.answers)]
    texts = {"prompt": row.prompt, **dict(zip(names, row.answers, strict=True))}
    tools = {} if row.tools is None else {"tools": row.tools}
    about = {"id": row.id, "cluster": row.cluster, **({"category": row.category} if row.category else {})}
    return {**row.fields, **about, **texts, **tools}
