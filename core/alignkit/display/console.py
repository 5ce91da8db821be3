"""Messages and tables on stderr, copied to train.log."""

from __future__ import annotations

import io
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from alignkit.system.terminal import from_here, printable, rich_console

if TYPE_CHECKING:
    from rich.console import RenderableType


class Console:
    """Console of a run.

    Args:
        log: file every line is appended to, with the time; :meth:`log_to` sets it later.
        stream: stream to write to (default: stderr).
        quiet: write to the log only.
    """

    def __init__(self, log: Path | None = None, stream: IO[str] | None = None, *, quiet: bool = False) -> None:
        self.rich = rich_console(stream, quiet=quiet)
        self._log = log

    def log_to(self, path: Path | None) -> None:
        """Append every further line to the file ``path`` as well (None: to no file)."""
        self._log = path

    def info(self, message: str) -> None:
        with suppress(OSError):  # the terminal may be gone
            self.rich.print(from_here(message), markup=False)
        self.write_log("INFO", message)

    def warn(self, message: str) -> None:
        with suppress(OSError):
            self.rich.print(from_here(f"warning: {message}"), markup=False, style="yellow")
        self.write_log("WARNING", message)

    def table(self, table: RenderableType) -> None:
        for column in getattr(table, "columns", ()):
            column.overflow = "fold"  # a narrow terminal cuts no number off
        self.rich.print(table, soft_wrap=False)
        self.write_log("INFO", _as_text(table))

    def write_log(self, level: str, message: str) -> None:
        """Append a message to the log alone."""
        if self._log is None:
            return
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        with suppress(OSError), self._log.open("a", encoding="utf-8") as file:  # what must be on disk is in other files
            file.writelines(f"{now} {level:<7} {line}\n" for line in printable(message).splitlines() or [""])


def _as_text(renderable: RenderableType) -> str:
    text = io.StringIO()
    console = rich_console(text)
    console.width = 120
    console.print(renderable, soft_wrap=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
