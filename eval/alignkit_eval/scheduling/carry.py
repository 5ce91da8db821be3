"""Tasks carried out by a scheduler, with progress, and an outcome for each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from alignkit import Outcome, Scheduler, Task
from alignkit.contract import registry
from alignkit.contract.guard import named
from alignkit.system.signals import terminable

from alignkit_eval.scheduling.progress import Progress


def carry_out_all(
    scheduler: Scheduler[Any],
    tasks: Sequence[Task],
    *,
    started: Callable[[str], None],
    say: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Yield the outcome of each task and lost attempt when it ends; SIGTERM stops them as Ctrl-C does.

    Raises:
        KeyboardInterrupt: after the outcomes of the tasks that an interrupt stopped.
        RunFailedError: an error of the scheduler itself.
    """
    directories = {task.name: task.directory for task in tasks}
    interrupted = False
    with terminable(), Progress(say) as progress:

        def begin(name: str) -> None:
            progress.started(name, directories[name])
            started(name)

        outcomes = scheduler.run(tasks, begin, say)
        try:
            while True:
                with named(f"{registry.find('align.schedulers', scheduler.name)} failed"):
                    outcome = next(outcomes, None)
                if outcome is None:
                    break
                progress.ended(outcome.name)
                if outcome.status != "waiting":
                    del directories[outcome.name]
                interrupted |= outcome.status == "interrupted"
                yield outcome
        finally:
            if isinstance(outcomes, Generator):
                outcomes.close()  # no process is left if the caller fails
    for name in () if interrupted else directories:
        yield Outcome(name, "failed", error=f"scheduler {scheduler.name} gave no outcome for it", exit_code=1)
