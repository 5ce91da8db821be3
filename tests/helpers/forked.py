"""Commands in forks of a process that has imported everything: a start costs a tenth of a second of CPU, not eight.

The process is that of ``multiprocessing``'s fork server; a fork has the environment and the import path of the test.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
PRELOADED = """
torch transformers peft datasets pyarrow.parquet accelerate pandas scipy.stats jinja2 safetensors.torch torch.optim.adamw
transformers.models.llama.modeling_llama transformers.models.qwen3.modeling_qwen3 matplotlib.figure
matplotlib.backends.backend_agg
alignkit.runs.api alignkit.runs.execute alignkit.training.trainer alignkit_checks.check alignkit_checks.rules
alignkit_eval.cli alignkit_eval.cli.evaluate alignkit_eval.export alignkit_eval.sweeps.sweep
alignkit_eval.pipelines.pipeline alignkit_eval.comparison.compare alignkit_eval.report alignkit_eval.suites.prefs
alignkit_eval.suites.perplexity alignkit_commands alignkit_dpo alignkit_orpo alignkit_sft
""".split()


@cache
def server() -> ForkServerContext:
    """Start the server, with the environment that the installed command sets before it imports anything."""
    from alignkit.system.quiet import set_environment

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with environment({**os.environ, "OMP_NUM_THREADS": "1"}):
        set_environment()
        ensure_running()
    return context


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have exactly these environment variables for a while."""
    before = dict(os.environ)
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


@dataclass(frozen=True)
class At:
    """A moment in the life of a command: just before a file operation, when it is sent a signal.

    A file operation is an audit event of Python that changes something below the working directory: a file opened for
    writing, a directory made, a rename, a removal.
    """

    operation: str = ""
    """How the operation starts, e.g. ``open runs/a/metrics.jsonl``; empty: any."""
    number: int = 1
    """The how manieth of these."""
    signal: signal.Signals = signal.SIGKILL


class Ended(subprocess.CompletedProcess[str]):
    """How a command ended; the return code is minus the signal's number after a signal."""

    operations: tuple[str, ...]
    """Its file operations."""

    @property
    def killed(self) -> bool:
        return self.returncode == -signal.SIGKILL


def run_forked(
    arguments: Sequence[str | Path],
    cwd: Path,
    *,
    input: str | None = None,
    variables: Mapping[str, str] | None = None,
    at: At | None = None,
    timeout: float = 250,
) -> Ended:
    """Run ``align ARGUMENTS`` in ``cwd``; ``variables`` are added to the environment."""
    words, added = ["align", *map(str, arguments)], dict(variables or {})
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err", "operations")]
        for file, text in zip(files, (input or "", "", "", ""), strict=True):
            file.write_text(text, encoding="utf-8")
        found = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **added}
        path = [str(folder) for folder in filter(None, added.get("PYTHONPATH", "").split(os.pathsep))]
        process = server().Process(target=_work, args=(words, str(cwd), list(map(str, files)), found, path, at))
        process.start()
        process.join(timeout)
        if late := process.exitcode is None:
            process.kill()
            process.join()
        out, err, operations = (file.read_text(encoding="utf-8", errors="replace") for file in files[1:])
    assert not late, f"{words} took more than {timeout} s: {err[-3000:]}"
    assert process.exitcode is not None
    ended = Ended(words, process.exitcode, out, err)
    ended.operations = tuple(operations.splitlines())
    return ended


def _work(
    words: list[str], cwd: str, files: list[str], variables: Mapping[str, str], path: list[str], at: At | None
) -> None:
    """Carry out a command as the installed one would, and end this process."""
    gc.freeze()  # a collection would copy every page of the server's
    for number, file in enumerate(files[:3]):
        os.dup2(os.open(file, os.O_RDWR), number)
    log = os.open(files[3], os.O_WRONLY)
    code = 70
    try:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  multiprocessing has closed it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup or in the background of a shell,
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which is respected
        os.chdir(cwd)
        _set_environment(variables)
        sys.path[:0] = path
        sys.argv = words
        left = at.number if at else 0
        own = os.getpid()

        def act(operation: str) -> None:
            nonlocal left
            if os.getpid() != own:
                return
            if at and operation.startswith(at.operation):
                left -= 1
                if not left:
                    os.kill(own, at.signal)
            os.write(log, f"{operation}\n".encode())

        watch(str(Path.cwd()), act)
        from alignkit.__main__ import main

        code = main()
    except BaseException:  # whatever is raised must not reach the server's own code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(below: str, act: Callable[[str], None]) -> None:
    """Call ``act`` with every file operation below a directory, before it happens."""

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            name, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else set(str(mode)) & set("wax+")
            if not writes:
                return
        elif event in CHANGES:
            name = arguments[0]
        else:
            return
        if isinstance(name, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(name))  # noqa: PTH100  links are not followed
            if path.startswith(below + os.sep):
                act(f"{event} {path[len(below) + 1 :]}")

    sys.addaudithook(hook)
