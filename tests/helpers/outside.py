"""A virtual environment with the built wheel, and its commands in forks of a process that has imported everything.

This file is also the program of that process, which imports nothing of the source tree: with the names of modules to import,
it reads jobs from stdin, a line each, and answers with their exit codes.
"""

from __future__ import annotations

import importlib
import json
import os
import site
import subprocess
import sys
import traceback
import venv
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

PRELOADED = "torch transformers peft datasets accelerate scipy.stats jinja2 pytest alignkit.runs.api alignkit.runs.execute".split()
PRELOADED += "alignkit.training.trainer alignkit_eval.sweeps.sweep alignkit_eval.comparison.compare alignkit_eval.suites.prefs".split()


class Environment:
    """A virtual environment; dependencies come from the environment that runs the tests."""

    def __init__(self, path: Path) -> None:
        venv.create(path, with_pip=False)
        self.path = path
        self.python = path / "bin" / "python"
        packages = next((path / "lib").glob("python*/site-packages"))
        # A path in a .pth file adds packages but not their .pth files, so the editable alignkit is not visible.
        (packages / "dependencies.pth").write_text(site.getsitepackages()[0] + "\n")
        self._server: subprocess.Popen[str] | None = None

    def install(self, *wheels: Path) -> None:
        """Install wheels with pip, without their dependencies."""
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
        ]
        subprocess.run([*pip, "--disable-pip-version-check", *map(str, wheels)], cwd=self.path, check=True)

    def run(self, *words: str | Path, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``align ...`` or ``pytest ...``; with ``ok`` it must succeed."""
        server = self._server = self._server or self._started()
        output = [self.path / name for name in ("stdout", "stderr")]
        job = {"words": [*map(str, words)], "cwd": str(cwd), "output": [*map(str, output)]}
        assert server.stdin
        assert server.stdout
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        done = subprocess.CompletedProcess([*map(str, words)], code, *(file.read_text() for file in output))
        assert done.returncode == 0 or not ok, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done

    def process(self, *command: str | Path, cwd: Path) -> str:
        """Run a program of the environment in a process of its own, and return what it prints."""
        words = [str(self.path / "bin" / command[0]), *map(str, command[1:])]
        done = subprocess.run(words, cwd=cwd, env=_variables(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """End the process that is forked."""
        if self._server is not None:
            self._server.communicate()

    def _started(self) -> subprocess.Popen[str]:
        command = [self.python, "-P", __file__, *PRELOADED]
        return subprocess.Popen(command, env=_variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _variables() -> dict[str, str]:
    """Return the environment of its programs, which have no import path of the source tree."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**found, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def build(package: Path, folder: Path) -> Path:
    """Build a package's wheel as pip does, in this process, and return its path."""
    from hatchling.build import build_wheel

    with chdir(package):
        return folder / build_wheel(str(folder))


def serve(modules: Sequence[str]) -> None:
    """Import modules, then carry out the jobs, each in a fork."""
    from alignkit.system.quiet import set_environment

    set_environment()
    for name in modules:
        importlib.import_module(name)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            _work(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _work(job: Mapping[str, Any]) -> None:
    """Carry out a job as a process of its own would, and end this one."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(job["output"], start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(job["cwd"])
        importlib.invalidate_caches()  # packages may have been installed
        sys.argv = job["words"]
        if sys.argv[0] == "pytest":
            import pytest

            sys.path.insert(0, job["cwd"])
            code = int(pytest.main(sys.argv[1:]))
        else:
            from alignkit.__main__ import main

            code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1:])
