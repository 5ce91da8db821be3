"""Two services: metrics to TensorBoard (or a CSV file), and rows from ``sqlite://FILE?table=NAME``."""

from __future__ import annotations

import csv
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from alignkit import RawRows, RunConfig, hookimpl
from alignkit.errors import DataError


class Tracker:
    """Writes the records of metrics.jsonl to ``RUN/tracker/`` as TensorBoard events, or to tracker.csv without TensorBoard."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.writer: Any = None

    @hookimpl
    def align_run_started(self, config: RunConfig, directory: Path) -> None:
        """Open the log in the run directory."""
        self.directory = directory / "tracker"
        self.directory.mkdir(exist_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.directory))
        except ImportError:
            self.writer = None

    @hookimpl
    def align_log(self, record: dict[str, Any]) -> None:
        """Write the numbers of one record."""
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
        if self.writer is not None:
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, record["step"])
        elif self.directory is not None:
            with (self.directory / "tracker.csv").open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows((record["step"], name, value) for name, value in numbers.items())

    @hookimpl
    def align_run_finished(self, summary: dict[str, Any], directory: Path) -> None:
        """Close the log."""
        if self.writer is not None:
            self.writer.close()


class SQLite:
    """Loads rows from ``sqlite://FILE?table=NAME`` (default table: rows); the place of a row is ``FILE:TABLE:ROWID``."""

    @hookimpl
    def align_load_data(self, source: str, split: str | None) -> RawRows | None:
        """Return the rows of the table; None for any other source."""
        if not source.startswith("sqlite://"):
            return None
        address = urlsplit(source)
        file, table = Path(address.netloc + address.path), parse_qs(address.query).get("table", ["rows"])[0]
        if not file.is_file():
            raise DataError(f"{source}: there is no file {file}")
        if not table.isidentifier():
            raise DataError(f"{source}: {table!r} is not a valid table name")
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            found = connection.execute(f"SELECT rowid AS _row, * FROM {table} ORDER BY rowid").fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{source}: {error}") from error
        finally:
            connection.close()
        places = [row["_row"] for row in found]
        rows = [{name: row[name] for name in row.keys() if name != "_row"} for row in found]  # noqa: SIM118
        return RawRows(rows, lambda position: f"{file}:{table}:{places[position]}", source)
