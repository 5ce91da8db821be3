"""Progress bars of a run, and the lines of progress in its log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from alignkit.display.console import Console
from alignkit.system.terminal import rich_console
from transformers import TrainerCallback

from alignkit_commands.unmoved import SayUnmoved

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE = 1.0
"""Seconds of tokenisation after which its rows are counted on the terminal."""

_LOG_LINES = 20
"""Progress lines a run writes to its log."""


@contextmanager
def progress(console: Console, total: int, start: int = 0, description: str = "training") -> Iterator[StepProgress]:
    """Show a progress bar over the optimizer steps ``start`` to ``total`` while the block runs.

    The bar is shown on a terminal or in a notebook only; the log gets about twenty lines in any case.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from alignkit_commands.time_left import TimeLeft

    about, details = TextColumn("{task.description}"), TextColumn("{task.fields[details]}")
    columns = (about, BarColumn(), MofNCompleteColumn(), details, TimeLeft())
    shown = not console.rich.quiet and (console.rich.file.isatty() or console.rich.is_jupyter)
    with Progress(*columns, console=console.rich, disable=not shown) as bars:
        task = bars.add_task(description, total=total, completed=start, details="")
        yield StepProgress(console, bars, task, total, start)


@contextmanager
def work_bar(description: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar over ``total`` units of work (tokens, rows) on a terminal; yields what is told of the units just done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from alignkit_commands.time_left import TimeLeft

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft())
    shown = shown and sys.stderr.isatty()
    with Progress(*columns, console=rich_console(), transient=True, disable=not shown) as bars:
        task = bars.add_task(description, total=total)
        yield lambda units: bars.advance(task, units)


class StepProgress:
    """Progress over the optimizer steps of a run, made by :func:`progress`."""

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
            self._console.write_log("INFO", f"step {step}/{self._total}  {self._details}  {seconds:.1f} s")


class ShowProgress(TrainerCallback):
    """Advance the console's progress bar, with the numbers of the last logging step."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stack = ExitStack()
        self.bar: StepProgress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = self.stack.enter_context(progress(self.console, state.max_steps, state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is not None and "loss" in logs:
            self.bar.update(
                state.global_step,
                loss=logs["loss"],
                accuracy=logs.get("rewards/accuracies"),
                tokens_per_second=logs.get("tokens_per_second"),
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stack.close()


def callbacks(console: Console) -> list[TrainerCallback]:
    """Return the callbacks that show the progress of training, and say where there is none."""
    return [ShowProgress(console), SayUnmoved(console.warn)]


def tokenising(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the Arrow batches of tokenised rows, and show the number of rows on a terminal."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("tokenising: {task.completed:,.0f} rows"), TimeElapsedColumn())
    started = time.monotonic()
    rows = 0
    with Progress(*columns, console=rich_console(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("tokenising", total=None, visible=False)
        for batch in batches:
            rows += batch.num_rows
            bar.update(task, completed=rows, visible=time.monotonic() - started > _PATIENCE)
            yield batch
