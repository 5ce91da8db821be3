"""The work of a cell: train a configuration, or resume what an earlier attempt of it left."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from alignkit import RunConfig, settings
from alignkit.errors import ConfigError, InterruptedRun, RunFailedError
from alignkit.rundir.directory import RunDir
from alignkit.runs.api import resume, run
from alignkit.settings.strategies import processes_of
from alignkit.system.distributed import accelerators
from alignkit.system.signals import terminable


def train_cell(config: RunConfig, directory: Path, until: float = 1.0) -> None:
    """Train a cell of a sweep in ``directory``, or resume it, up to a share of its steps at which it pauses.

    Raises ``RunFailedError`` where it pauses at the same step again.
    """
    before = -1.0
    while before < (share := progress(directory)) < until:
        before = share
        train(config, directory if (directory / "run.json").is_file() else None, quiet=True)
    if share < until:
        raise RunFailedError(f"{directory} does not train beyond {share:.0%} of its steps")


def progress(directory: Path) -> float:
    """Return the share of its steps at which a run has paused: 1 for a finished one, 0 for one that was never paused."""
    record = RunDir(directory).read_record()
    if record.get("status") == "finished":
        return 1.0
    paused = record.get("paused")
    return paused["step"] / paused["steps"] if paused else 0.0


def train(config: RunConfig, begun: Path | None, *, quiet: bool) -> None:
    """Train in this process, or in one for each accelerator if it has several; ``begun``: the run directory to resume."""
    if processes_of(config) == 1 and accelerators(use_cpu=bool(config.train.arguments.get("use_cpu"))) > 1:
        config = config.model_copy(deep=True)
        config.run.processes = "auto"
    if processes_of(config) > 1:
        _launch(config, begun)
    elif begun is not None and quiet:
        resume(begun, quiet=True)
    else:
        run(config, resume=begun is not None, quiet=quiet)


def _launch(config: RunConfig, begun: Path | None) -> None:
    """Run ``align run``, or ``align resume`` in a directory, which starts the processes; raises the error that it ends with.

    The command has a session of its own, so that a signal of the terminal, which is passed on, does not reach it twice.
    """
    with tempfile.TemporaryDirectory(prefix="align-cell-") as folder:
        file = Path(folder) / "cell.yaml"
        file.write_text(settings.dump(config), encoding="utf-8")
        words = ["run", str(file)] if begun is None else ["resume", str(begun)]
        command = [sys.executable, "-m", "alignkit", *words, "--trust"]  # the sweep was asked for consent
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        with terminable():
            try:
                _, output = process.communicate()
            except KeyboardInterrupt as error:
                process.send_signal(getattr(error, "number", signal.SIGINT))
                _, output = process.communicate()
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines() or [f"it ended with {process.returncode}"]
        message = lines[-1].removeprefix("Error: ").removeprefix("Interrupted: ")
        if process.returncode > 128:
            raise InterruptedRun(message, process.returncode - 128)
        raise ConfigError(message) if process.returncode == ConfigError.exit_code else RunFailedError(message)


def _end_with_parent() -> None:
    """Let this process receive SIGTERM when its parent ends (PR_SET_PDEATHSIG, on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
