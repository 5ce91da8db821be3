"""metrics.jsonl: one JSON object per logging step, appended during training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import CheckpointError
from alignkit.system.files import json_line, jsonl_rows, write_jsonl
from alignkit.system.manifest import SEAL, sealed, unsealed, warn_changed


class MetricsLog:
    """Metrics log of a run. Each record has the ``step`` it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record with its checksum and flush it; non-finite values become null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(sealed(record)))

    def read(self) -> list[dict[str, Any]]:
        """Return the complete records; an incomplete last line, left by a killed run, is ignored.

        A line that was changed is logged. Raises :class:`CheckpointError` if a complete line is not a JSON object, or its
        step or epoch is not a number.
        """
        records = []
        lines = list(jsonl_rows(self.path, half_written=True, error=CheckpointError)) if self.path.exists() else []
        older = not any(SEAL in record for _, record in lines)  # of a version without checksums
        for place, record in lines:
            if SEAL not in record and not older:
                warn_changed(Path(place))
            for key in record.keys() & {"step", "epoch"}:
                if not isinstance(record[key], int | float):
                    raise CheckpointError(f"{place}: {key} must be a number: the log was damaged or edited")
            records.append(unsealed(record, Path(place)))
        return records

    def cut_back(self, step: int) -> None:
        """Drop the records after ``step`` and an incomplete last line, so that a resumed run continues from there."""
        write_jsonl(self.path, (sealed(record) for record in self.read() if record.get("step", 0) <= step))
