"""Commands in forks of a process that has imported everything (:mod:`tests.helpers.forks`), with the environment and the import path of the test."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from shutil import rmtree
from typing import Any

from tests.helpers.forks import Process

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
ROOT = Path(__file__).parents[2]
WARMED = [
    "transformers.conversion_mapping:get_checkpoint_conversion_mapping:llama",
    *(f"alignkit.system.code:code_of:alignkit_{name}" for name in "eval checks formats sft dpo orpo".split()),
    "alignkit_eval.schemas.files:run_schema:dpo",
]
"""Calls whose results a process keeps: a thousand regular expressions for the first model, digests of code, models of settings."""
PRELOADED = """
torch transformers peft datasets pyarrow.parquet accelerate pandas scipy.stats jinja2 safetensors.torch torch.optim.adamw
transformers.models.llama.modeling_llama transformers.models.qwen3.modeling_qwen3 matplotlib.figure
matplotlib.backends.backend_agg hypothesis requests rich.live rich.progress rich.table sacrebleu lm_eval.evaluator
lm_eval.models.huggingface
""".split()


def own_modules() -> list[str]:
    """Return the modules of alignkit and its plugins, but not of engines and servers outside torch, which a fork may not survive."""
    packages = [*ROOT.glob("core/alignkit"), *ROOT.glob("eval/alignkit_*"), *ROOT.glob("plugins/*/alignkit_*")]
    files = [file.relative_to(package.parent) for package in packages for file in package.rglob("*.py")]
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    outside = ("__main__", "alignkit.testing", "alignkit_mlx", "alignkit_vllm")
    return sorted(name for name in names if not any(part in name for part in outside))


ADDRESS = "ALIGN_TESTS_FORKS"
"""Variable with the address of the server that all processes of a test session share."""


def start_server(interpreter: Path, modules: Sequence[str], variables: Mapping[str, str]) -> str:
    """Return the address of a server, which imports the modules when it is first needed and ends with this process.

    ``MODULE:FUNCTION:ARGUMENT`` calls the function as well.

    Beside it is a program ``python``, whose processes are forks of it.
    """
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address := str(folder / "server"))
    listener.listen(64)
    program = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport forks\n"
    (folder / "python").write_text(f"#!{interpreter} -IS\n{program}forks.stand_in({address!r}, {str(interpreter)!r})\n")
    (folder / "python").chmod(0o755)
    command = [interpreter, "-P", Path(__file__).with_name("forks.py"), str(listener.fileno()), *modules]

    def begin() -> None:
        wait([listener])
        with listener:
            _servers.append(
                subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
            )

    threading.Thread(target=begin, daemon=True).start()
    return address


_servers: list[subprocess.Popen[bytes]] = []
"""The servers, whose stdin ends with this process."""


@cache
def address() -> str:
    """Return the address of the server of the session, with the environment that the command sets before it imports anything."""
    from alignkit.system.quiet import set_environment

    if ADDRESS not in os.environ:
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        set_environment(variables)
        os.environ[ADDRESS] = start_server(Path(sys.executable), [*PRELOADED, *own_modules(), *WARMED], variables)
    return os.environ[ADDRESS]


def python() -> str:
    """Return a program that does what ``python`` does, in a fork of the server."""
    return str(Path(address()).with_name("python"))


def fork(
    function: Callable[..., object],
    *given: object,
    files: Sequence[str | Path],
    cwd: Path,
    variables: Mapping[str, str],
    path: Sequence[str | Path] = (),
) -> Process:
    """Call a function in a process with these files as stdin, stdout and stderr; what it returns is the exit code."""
    about = {"call": pickle.dumps((function, given)), "numbers": [0, 1, 2], "cwd": str(cwd)}
    about |= {"environment": dict(variables), "path": [str(folder) for folder in path]}
    descriptors = [os.open(file, os.O_RDWR | os.O_CREAT) for file in files]
    try:
        return Process(address(), about, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


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
        path = [*filter(None, added.get("PYTHONPATH", "").split(os.pathsep))]
        process = fork(_work, words, str(files[3]), at, files=files[:3], cwd=cwd, variables=found, path=path)
        if late := process.wait(timeout) is None:
            process.kill()
            process.wait()
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
            processes.append(fork(function, *given, files=files, cwd=cwd, variables=variables, path=path))
        left = [*processes]
        while left:
            for process in [process for process in wait(left) if isinstance(process, Process)]:
                left.remove(process)
                if process.wait():
                    for other in left:  # they wait for it
                        other.kill()
        read = lambda name: Path(folder, name).read_text(encoding="utf-8", errors="replace")
        said = [(read(f"out.{rank}"), read(f"err.{rank}")) for rank in range(count)]
    assert not any(process.wait() for process in processes), [err[-4000:] for _, err in said]
    return said


def _work(words: list[str], operations: str, at: At | None) -> int:
    """Carry out a command as the installed one would."""
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

    return main()


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
