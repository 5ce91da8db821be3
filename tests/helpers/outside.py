"""A virtual environment with the built wheel, and its commands in forks of a process that has imported everything."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from contextlib import chdir
from functools import cached_property
from pathlib import Path

from alignkit.system.quiet import set_environment

from tests.helpers.forked import start_server

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
        command = [str(self.path / "bin/align")] if words[0] == "align" else ["-m", str(words[0])]
        done = self._done(self._python, *command, *words[1:], cwd=cwd)
        assert done.returncode == 0 or not ok, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done

    def process(self, *command: str | Path, cwd: Path) -> str:
        """Run a program of the environment in a process of its own, and return what it prints."""
        done = self._done(str(self.path / "bin" / command[0]), *command[1:], cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _done(self, program: str, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [program, *map(str, words)]
        return subprocess.run(command, cwd=cwd, env=_variables(), capture_output=True, text=True, check=False)

    @cached_property
    def _python(self) -> str:
        return str(Path(start_server(self.python, PRELOADED, _variables())).with_name("python"))


def _variables() -> dict[str, str]:
    """Return the environment of its programs, which have no import path of the source tree."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    set_environment(found)
    return found


def build(package: Path, folder: Path) -> Path:
    """Build a package's wheel as pip does, in this process, and return its path."""
    from hatchling.build import build_wheel

    with chdir(package):
        return folder / build_wheel(str(folder))
