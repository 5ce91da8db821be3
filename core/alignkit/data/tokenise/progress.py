"""Progress of tokenisation, shown on a terminal if it takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

PATIENCE = 1.0
"""Seconds before progress is shown."""


def with_progress(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, and show the number of rows on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("tokenising: {task.completed:,.0f} rows"), TimeElapsedColumn())
    started = time.monotonic()
    rows = 0
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("tokenising", total=None, visible=False)
        for batch in batches:
            rows += batch.num_rows
            progress.update(task, completed=rows, visible=time.monotonic() - started > PATIENCE)
            yield batch
