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
from multiprocessing.connection import wait
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
    timeout: float = 900,
) -> Ended:
    """Run ``align ARGUMENTS`` in ``cwd``; ``variables`` are added to the environment."""
    words, added = ["align", *map(str, arguments)], dict(variables or {})
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err", "operations")]
        for file, text in zip(files, (input or "", "", "", ""), strict=True):
            file.write_text(text, encoding="utf-8")
        found = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **added}
        path = [str(folder) for folder in filter(None, added.get("PYTHONPATH", "").split(os.pathsep))]
        place = ([str(file) for file in files[:3]], str(cwd), found, path)
        process = server().Process(target=_work, args=(words, place, str(files[3]), at))
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


def run_ranks(
    count: int,
    function: Callable[..., object],
    *given: object,
    cwd: Path,
    path: Sequence[str | Path] = (),
    **added: str,
) -> list[tuple[str, str]]:
    """Call a function in processes that find each other as those of torchrun do, and return what each wrote to stdout and stderr.

    All must return. ``path`` is added to the import path, ``added`` to the environment.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a port is free once it is listened on
    found = {**os.environ, "OMP_NUM_THREADS": "1", **added}
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    launched |= {"TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(count):
            files = [f"{folder}/{name}" for name in ("in", f"out.{rank}", f"err.{rank}")]
            variables = found | ({**launched, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
            place = (files, str(cwd), variables, [str(entry) for entry in path])
            processes.append(server().Process(target=_rank, args=(place, function, given)))
            processes[-1].start()
        left = {process.sentinel: process for process in processes}
        while left:
            for sentinel in wait(list(left)):
                if left.pop(sentinel).exitcode:  # type: ignore[call-overload]
                    for process in left.values():  # they wait for it
                        process.kill()
        read = lambda name: Path(folder, name).read_text(encoding="utf-8", errors="replace")
        said = [(read(f"out.{rank}"), read(f"err.{rank}")) for rank in range(count)]
    assert not any(process.exitcode for process in processes), [err[-4000:] for _, err in said]
    return said


Place = tuple[list[str], str, Mapping[str, str], list[str]]
"""Files for stdin, stdout and stderr; working directory; environment; folders before the others of the import path."""


def _enter(place: Place) -> None:
    """Make of this process one that was started in a place."""
    files, cwd, variables, path = place
    gc.freeze()  # a collection would copy every page of the server's
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  multiprocessing has closed it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup or in the background of a shell,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is respected
    os.chdir(cwd)
    _set_environment(variables)
    sys.path[:0] = path


def _leave(code: int) -> None:
    """End this process at once: what it has of the server's is not to be cleaned up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _rank(place: Place, function: Callable[..., int | None], given: tuple[object, ...]) -> None:
    code = 1
    try:
        _enter(place)
        code = int(function(*given) or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)


def _work(words: list[str], place: Place, operations: str, at: At | None) -> None:
    """Carry out a command as the installed one would."""
    code = 70
    try:
        _enter(place)
        sys.argv = words
        log, own, left = os.open(operations, os.O_WRONLY), os.getpid(), at.number if at else 0

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
        _leave(code)


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
