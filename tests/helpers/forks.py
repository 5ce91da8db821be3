"""A process that has imported everything and forks for each job: a start costs a tenth of a second of CPU, not five.

It imports the standard library alone, because interpreters of other environments run it: as the server, and as a program that
takes the place of ``python``, so that processes which a command starts are forks of the server as well.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import marshal
import os
import pickle
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FLAGS = {"-P", "-B", "-u"}
"""Flags of the interpreter that a fork understands; with others, the interpreter itself is started."""
WORKER = "import sys;exec(eval(sys.stdin.readline()))"
"""Code with which pytest-xdist starts the processes that run tests: forks as well, but their ``sys.executable`` is the interpreter."""


class Process:
    """A fork of the server: its process id, and its end."""

    def __init__(self, address: str, job: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Start it with descriptors in the place of those that ``job["numbers"]`` names."""
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        data = marshal.dumps(dict(job))
        socket.send_fds(self._connection, [struct.pack("!I", len(data))], descriptors)
        self._connection.sendall(data)
        self.pid = self._number()
        self.exitcode: int | None = None
        """Minus the signal's number after a signal; None: it runs."""

    def fileno(self) -> int:
        """Return what becomes readable when it ends."""
        return self._connection.fileno()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, and return its exit code, or None after ``timeout`` seconds."""
        if self.exitcode is None:
            self._connection.settimeout(timeout)
            with suppress(TimeoutError, BlockingIOError):
                self.exitcode = self._number()
                self._connection.close()
        return self.exitcode

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self.wait(0)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        number: int = struct.unpack("!i", self._connection.recv(4, socket.MSG_WAITALL))[0]
        return number


# ------------------------------------------------------------------------------------------------- the server


class Server:
    """Forks for each connection to a listening socket, until its stdin ends."""

    def __init__(self, listener: socket.socket) -> None:
        self.address = listener.getsockname()
        self._listener = listener
        self._running: dict[int, socket.socket] = {}
        self._woken, self._wakes = os.pipe()
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Carry out jobs; a process whose client ends is killed."""
        os.set_blocking(self._wakes, False)
        signal.set_wakeup_fd(self._wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for file in (0, self._woken, self._listener):
            self._selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    return self._end()
                if key.fileobj == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._running:
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        size, descriptors, _, _ = socket.recv_fds(connection, 4, 250)
        try:
            job = marshal.loads(connection.recv(struct.unpack("!I", size)[0], socket.MSG_WAITALL))
        except (struct.error, EOFError, ValueError):
            connection.close()  # the client has ended
            return
        if (child := os.fork()) == 0:
            own = [self._listener.fileno(), connection.fileno(), self._selector.fileno(), self._woken, self._wakes]
            _fork(self.address, job, descriptors, [*own, *(other.fileno() for other in self._running.values())])
        for descriptor in descriptors:
            os.close(descriptor)
        self._running[child] = connection
        with suppress(BrokenPipeError):
            connection.sendall(struct.pack("!i", child))
        self._selector.register(connection, selectors.EVENT_READ, child)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._running.pop(found[0])
                with suppress(KeyError):  # of a client that has ended
                    self._selector.unregister(connection)
                with suppress(BrokenPipeError):
                    connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(found[1])))
                connection.close()

    def _end(self) -> None:
        for process in self._running:
            os.kill(process, signal.SIGKILL)
        folder = os.path.dirname(self.address)  # noqa: PTH120
        for name in ("server", "python"):  # the process that made them may have ended without its exit functions
            with suppress(OSError):
                os.unlink(f"{folder}/{name}")  # noqa: PTH108
        with suppress(OSError):
            os.rmdir(folder)  # noqa: PTH106


def _fork(address: str, job: Mapping[str, Any], descriptors: Sequence[int], own: Sequence[int]) -> NoReturn:
    """Make of this process one that was started as the job says, carry it out and end."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 256) for descriptor in descriptors]
        for descriptor in (*descriptors, *own):
            os.close(descriptor)
        for descriptor, number in zip(high, job["numbers"], strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        for number in (signal.SIGCHLD, signal.SIGHUP):  # tests may run under nohup or in the background of a shell,
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which is respected
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.path[:0] = [folder for folder in job["path"] if folder not in sys.path]
        importlib.invalidate_caches()  # packages may have been installed
        program = f"{os.path.dirname(address)}/python"  # noqa: PTH120  pathlib is not needed here
        sys.executable = sys.executable if WORKER in job.get("words", ()) else program
        atexit._clear()
        with suppress(ImportError):
            importlib.import_module("multiprocessing.spawn").set_executable(program)
        code = _carry_out(job)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # whatever is raised must not reach the server's own code
        traceback.print_exc()
        code = 1
    finally:
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 255)  # what this process has of the server's is not to be cleaned up


def _carry_out(job: Mapping[str, Any]) -> int:
    """Call a function, or do what the interpreter does with these words."""
    if "call" in job:
        function, given = pickle.loads(job["call"])
        return int(function(*given) or 0)
    words = list(job["words"])
    flags = set()
    while words[0] in FLAGS:
        flags.add(words.pop(0))
    if "-u" in flags:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    kind = words[0] if words[0] in ("-c", "-m") else ""
    sys.argv = ["-c" if kind == "-c" else words[bool(kind)], *words[1 + bool(kind) :]]
    if "-P" not in flags:
        sys.path.insert(0, "" if kind else os.path.dirname(os.path.abspath(words[0])))  # noqa: PTH100, PTH120
    if kind == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        main = sys.modules["__main__"] = ModuleType("__main__")
        main.__file__ = words[0]
        with open(words[0], "rb") as file:
            exec(compile(file.read(), words[0], "exec"), main.__dict__)
    return 0


# ------------------------------------------------------------------------------------------------- in the place of python


def stand_in(address: str, interpreter: str) -> NoReturn:
    """Have a fork of the server do what the interpreter would do with this process's arguments; pass on signals to it."""
    words = sys.argv[1:]
    first = next((word for word in words if word not in FLAGS), "-")
    # Code after -c often looks at what a fresh interpreter has imported, but not that of multiprocessing.
    known = first == "-m" or words[-1:] == [WORKER] or "--multiprocessing-fork" in words or not first.startswith("-")
    numbers = [number for number in map(int, os.listdir("/proc/self/fd")) if _inherited(number)]  # noqa: PTH208
    path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    cwd = os.getcwd()  # noqa: PTH109
    about = {"words": words, "numbers": numbers, "cwd": cwd, "environment": dict(os.environ), "path": path}
    received: list[int] = []
    started: list[Process] = []

    def forward(number: int, _: object = None) -> None:
        if not started:
            received.append(number)
            return
        with suppress(ProcessLookupError):
            os.kill(started[0].pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    try:
        if not known:
            raise ConnectionError
        process = Process(address, about, numbers)
    except OSError:
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        os.execv(interpreter, [interpreter, *words])
    started.append(process)
    for number in received:
        forward(number)
    code = process.wait()
    assert code is not None
    if code < 0:
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _inherited(number: int) -> bool:
    with suppress(OSError):
        return os.get_inheritable(number)
    return False


if __name__ == "__main__":
    sys.modules["forks"] = sys.modules["__main__"]
    for name in sys.argv[2:]:
        module, _, call = name.partition(":")
        imported = importlib.import_module(module)
        if call:
            getattr(imported, call.partition(":")[0])(call.partition(":")[2])
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    Server(socket.socket(fileno=int(sys.argv[1]))).serve()
