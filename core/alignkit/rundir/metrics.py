"""metrics.jsonl: one JSON object a logging step, appended while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import CheckpointError
from alignkit.system.files import json_line, write_jsonl


class MetricsLog:
    """The log of one run's metrics. Each record carries the ``step`` it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record, handed to the operating system at once; a value that is not finite becomes null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(record))

    def read(self) -> list[dict[str, Any]]:
        """Return the complete records.

        A last line without a line feed was being written when the run stopped; it is left out.

        Raises:
            CheckpointError: a complete line is no JSON object.
        """
        if not self.path.exists():
            return []
        *lines, _half_written = self.path.read_bytes().split(b"\n")
        return [self._parse(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

    def cut_back(self, step: int) -> None:
        """Drop the records after ``step`` and a half-written last line, so that a resumed run continues from there."""
        write_jsonl(self.path, (record for record in self.read() if record.get("step", 0) <= step))

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{self.path}:{number}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{self.path}:{number}: expected a JSON object")
        return record
