"""Messages, tables and progress bars on stderr, copied to train.log."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from alignkit.system.terminal import printable, rich_console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

_LOG_LINES = 20
"""Progress lines a run writes to its log."""


class Console:
    """Console of a run.

    Args:
        log: file every line is appended to, with the time; :meth:`log_to` sets it later.
        stream: stream to write to (default: stderr).
        quiet: write to the log only.
    """

    def __init__(self, log: Path | None = None, stream: IO[str] | None = None, *, quiet: bool = False) -> None:
        self._rich = rich_console(stream, quiet=quiet)
        self._log = log

    def log_to(self, path: Path | None) -> None:
        """Append every further line to the file ``path`` as well (None: to no file)."""
        self._log = path

    def info(self, message: str) -> None:
        with suppress(OSError):  # the terminal may be gone
            self._rich.print(message, markup=False)
        self._write_log("INFO", message)

    def warn(self, message: str) -> None:
        with suppress(OSError):
            self._rich.print(f"warning: {message}", markup=False, style="yellow")
        self._write_log("WARNING", message)

    def table(self, table: RenderableType) -> None:
        self._rich.print(table, soft_wrap=False)
        self._write_log("INFO", _as_text(table))

    @contextmanager
    def progress(self, total: int, start: int = 0, description: str = "training") -> Iterator[StepProgress]:
        """Show a progress bar over the optimizer steps ``start`` to ``total`` while the block runs.

        The bar is shown on a terminal or in a notebook only; the log gets about twenty lines in any case.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        about, details = TextColumn("{task.description}"), TextColumn("{task.fields[details]}")
        columns = (about, BarColumn(), MofNCompleteColumn(), details, TimeRemainingColumn())
        shown = not self._rich.quiet and (self._rich.file.isatty() or self._rich.is_jupyter)
        with Progress(*columns, console=self._rich, disable=not shown) as bars:
            task = bars.add_task(description, total=total, completed=start, details="")
            yield StepProgress(self, bars, task, total, start)

    def _write_log(self, level: str, message: str) -> None:
        if self._log is None:
            return
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        with suppress(OSError), self._log.open("a", encoding="utf-8") as file:  # what must be on disk is in other files
            file.writelines(f"{now} {level:<7} {line}\n" for line in printable(message).splitlines() or [""])


class StepProgress:
    """Progress over the optimizer steps of a run, made by :meth:`Console.progress`."""

    def __init__(self, console: Console, bars: Progress, task: TaskID, total: int, start: int) -> None:
        self._console, self._bars, self._task = console, bars, task
        self._total = total
        self._lines_due = _LOG_LINES * start // max(total, 1)
        self._details = ""
        self._started = time.monotonic()

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        """Show that ``step`` is complete, with the metrics of this logging step (if none are given, the previous ones).

        The log gets one line of metrics per twentieth of the run.
        """
        metrics = ("loss", loss, ".4f"), ("accuracy", accuracy, ".3f"), ("tokens/s", tokens_per_second, ",.0f")
        details = [f"{name} {value:{form}}" for name, value, form in metrics if value is not None]
        self._details = "  ".join(details) or self._details
        self._bars.update(self._task, completed=step, details=self._details)
        lines_due = _LOG_LINES * step // max(self._total, 1)
        if details and lines_due > self._lines_due:
            self._lines_due = lines_due
            seconds = time.monotonic() - self._started
            self._console._write_log("INFO", f"step {step}/{self._total}  {self._details}  {seconds:.1f} s")


def _as_text(renderable: RenderableType) -> str:
    text = io.StringIO()
    console = rich_console(text)
    console.width = 120
    console.print(renderable, soft_wrap=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
