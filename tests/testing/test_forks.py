"""The program that takes the place of python in tests: a process of it reads, writes, ends and hears signals as python's do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.forked import python

PROGRAM = """
import os, signal, sys, time
print(sys.argv[1:], os.getcwd(), os.environ["HERE"], sys.stdin.read(), sys.executable, "torch" in sys.modules)
if sys.argv[1] == "exit":
    sys.exit(7)
if sys.argv[1] == "raise":
    raise ValueError("no")
if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("word", "code"), [("exit", 7), ("raise", 1), ("die", -signal.SIGKILL)])
def test_a_process_ends_as_it_would(tmp_path: Path, word: str, code: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [python(), "program.py", word],
        cwd=tmp_path,
        env={**os.environ, "HERE": "there"},
        input="text",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    if word != "die":  # which flushes nothing
        assert done.stdout == f"['{word}'] {tmp_path} there text {python()} True\n"
    assert done.stderr.endswith("ValueError: no\n") == (word == "raise")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 5), (signal.SIGKILL, -signal.SIGKILL)])
def test_signals_reach_the_fork(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [python(), "program.py", "wait"],
        cwd=tmp_path,
        env={**os.environ, "HERE": "there"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.readline()
    fork = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait() == code
    assert process.stdout.read() == ""  # ends with the fork
    assert fork != process.pid


def test_code_after_c_is_the_interpreters_own() -> None:
    code = "import sys; print('torch' in sys.modules, sys.executable)"
    done = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", sys.executable]


def test_the_processes_of_xdist_are_forks_of_the_interpreter() -> None:
    import execnet

    group = execnet.Group(execmodel="main_thread_only")
    try:
        worker = group.makegateway(f"popen//python={python()}")
        channel = worker.remote_exec("import sys; channel.send(('torch' in sys.modules, sys.executable))")
        assert channel.receive() == (True, sys.executable)
    finally:
        group.terminate(timeout=10)
