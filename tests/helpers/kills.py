"""Commands killed at a chosen file operation, each in a fork of a server that has imported everything once.

``python -m tests.helpers.kills`` is the server; :class:`Align` starts it and sends it commands. A file operation is an
audit event of Python that changes something below the working directory: a file opened for writing, a directory made, a
rename, a removal. A process that is killed at operation N is sent SIGKILL just before it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
IMPORTED = "alignkit.runs.api alignkit.runs.execute alignkit.training.trainer alignkit_eval.cli alignkit_eval.export"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code; -9 if it was killed."""
    out: str
    err: str
    operations: tuple[str, ...]
    """Its file operations, e.g. ``open runs/a/run.yaml``."""

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Align:
    """Runs ``align`` commands, and kills them; a context manager."""

    def __enter__(self) -> Align:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tests.helpers.kills"]
        root = Path(__file__).parents[2]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.communicate(timeout=60)

    def __call__(self, *arguments: str | Path, cwd: Path, kill_at: int | str = 0, **environment: str) -> Ended:
        """Run ``align ARGUMENTS`` in ``cwd``; kill it at the first operation that starts with ``kill_at``.

        A number counts operations from 1; 0: it is not killed.
        """
        order = {"arguments": [str(a) for a in arguments], "cwd": str(cwd), "at": kill_at, "environment": environment}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        done = json.loads(self._server.stdout.readline())
        return Ended(done["code"], done["out"], done["err"], tuple(done["operations"]))


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


def _child(order: dict[str, Any], files: Sequence[str]) -> int:
    from alignkit.__main__ import main

    os.chdir(order["cwd"])
    os.environ.update(order["environment"])
    sys.path[:0] = order["environment"].get("PYTHONPATH", "").split(os.pathsep)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(files[2], flags)
    for number, descriptor in enumerate((nothing, os.open(files[0], flags), os.open(files[1], flags))):
        os.dup2(descriptor, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  the server's own holds the next orders
    seen, parent = 0, os.getpid()

    def act(operation: str) -> None:
        nonlocal seen
        if os.getpid() != parent:
            return
        seen += 1
        if seen == order["at"] or (isinstance(order["at"], str) and operation.startswith(order["at"])):
            os.kill(parent, signal.SIGKILL)
        os.write(log, f"{operation}\n".encode())

    watch(str(Path.cwd()), act)
    return main(order["arguments"])


def _serve() -> int:
    """Read orders from stdin, carry out each in a fork, and answer on stdout; in a fork, return the exit code."""
    import importlib
    import tempfile

    from alignkit.__main__ import set_environment

    set_environment()
    for module in IMPORTED.split():
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as scratch:
        files = [f"{scratch}/{name}" for name in ("out", "err", "operations")]
        for line in iter(sys.stdin.readline, ""):
            child = os.fork()
            if not child:
                code = 1
                try:  # whatever is raised must not reach the server's own code, which removes the files
                    code = _child(json.loads(line), files)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out, err, operations = (Path(file).read_text(errors="replace") for file in files)
            answer = {"code": code, "out": out, "err": err, "operations": operations.splitlines()}
            print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_serve())
