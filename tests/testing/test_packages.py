"""Third-party packages, installed with the built wheel (not the source tree) in a separate environment."""

from __future__ import annotations

import json
import os
import site as site_module
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ("simpo", "kto", "tracker")
KINDS = ("method", "loss", "suite", "reward", "service", "rule", "command", "scheduler")


class Environment:
    """A virtual environment with the built wheel; dependencies come from the environment that runs the tests."""

    def __init__(self, path: Path) -> None:
        venv.create(path, with_pip=False)
        self.path = path
        self.python = path / "bin" / "python"
        self.packages = next((path / "lib").glob("python*/site-packages"))
        # A path in a .pth file adds packages but not their .pth files, so the editable alignkit is not visible.
        (self.packages / "dependencies.pth").write_text(site_module.getsitepackages()[0] + "\n")

    def install(self, *packages: Path) -> None:
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
        self._run([*pip, "--no-build-isolation", "--disable-pip-version-check", *map(str, packages)], self.path)

    def run(self, *command: str | Path, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        program = self.path / "bin" / command[0] if command[0] in ("align", "python") else command[0]
        return self._run([str(program), *map(str, command[1:])], cwd, ok)

    def _run(self, command: list[str], cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0 or not ok, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "-w", str(folder), str(ROOT)], check=True, cwd=folder)
    made = Environment(tmp_path_factory.mktemp("outside") / "venv")
    (wheel,) = folder.glob("alignkit-*.whl")
    made.install(wheel, *(ROOT / "examples" / f"alignkit-{name}" for name in EXAMPLES))
    return made


@pytest.mark.slow
def test_the_wheel_is_what_runs(environment: Environment, tmp_path: Path) -> None:
    where = environment.run("python", "-c", "import alignkit, alignkit_eval; print(alignkit.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(environment.path)
    found = json.loads(environment.run("align", "plugins", "--json", cwd=tmp_path).stdout)
    states = {(plugin["kind"], plugin["name"]): plugin for plugin in found}
    assert [p for p in found if p["state"] != "ok"] == []
    assert states["method", "simpo"]["distribution"] == "alignkit-simpo"
    assert states["method", "kto"]["hooks"] == ["align_compute_loss", "align_prepare_batch"]
    assert {("service", "tracker"), ("service", "sqlite"), ("method", "ppo"), ("reward", "model")} <= states.keys()


@pytest.mark.slow
def test_examples_pass_the_kit(environment: Environment, tmp_path: Path) -> None:
    import shutil

    tests = []
    for name in EXAMPLES:  # copied, so that the sources next to them are not imported
        shutil.copy(ROOT / "examples" / f"alignkit-{name}" / "tests" / f"test_{name}.py", tmp_path)
        tests.append(tmp_path / f"test_{name}.py")
    kit = ["-p", "alignkit.testing", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    environment.run("python", "-m", "pytest", "-q", *kit, *tests, cwd=tmp_path)


@pytest.mark.slow
def test_outside_methods_are_run_evaluated_and_compared(environment: Environment, tmp_path: Path) -> None:
    short = "--set train.max_steps=4 --set data.eval_limit=30 --set eval.samples=0 --set eval.suites=prefs --set run.plots=false".split()
    over = ["--over", "method=simpo,kto", "--set", "run.services=tracker", "--name", "outside"]
    environment.run("align", "sweep", *over, *short, cwd=tmp_path)
    stored = json.loads((tmp_path / "runs" / "outside" / "sweep.json").read_text())
    assert [cell["status"] for cell in stored["cells"]] == ["finished", "finished"]
    assert {arm["name"] for arm in stored["comparison"]["arms"]} == {"simpo", "kto"}
    for cell in stored["cells"]:
        assert any((tmp_path / "runs" / "outside" / cell["name"] / "tracker").iterdir())


@pytest.mark.slow
def test_a_new_plugin_of_every_kind_passes_at_once(environment: Environment, tmp_path: Path) -> None:
    packages = []
    for kind in KINDS:
        environment.run("align", "new-plugin", f"my-{kind}", "--kind", kind, cwd=tmp_path)
        packages.append(tmp_path / f"alignkit-my-{kind}")
        assert (packages[-1] / ".github" / "workflows" / "test.yml").is_file()
    environment.install(*packages)
    tests = [package / "tests" / f"test_my_{kind}.py" for package, kind in zip(packages, KINDS, strict=True)]
    kit = ["-p", "alignkit.testing", "-p", "no:cacheprovider", "--import-mode=importlib", "--doctest-modules"]
    doctests = [packages[0] / "alignkit_my_method", packages[1] / "alignkit_my_loss"]
    environment.run("python", "-m", "pytest", "-q", "--rootdir", tmp_path, *kit, *tests, *doctests, cwd=tmp_path)
    again = environment.run("align", "new-plugin", "my-method", cwd=tmp_path, ok=False)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    wrong = environment.run("align", "new-plugin", "My_Loss", cwd=tmp_path, ok=False)
    assert "is not a plugin name" in wrong.stderr
    checked = environment.run("align", "plugins", "check", "my-reward", cwd=tmp_path)
    assert "the quick conformance tests pass" in checked.stderr
    unknown = environment.run("align", "plugins", "check", "my-rewarc", cwd=tmp_path, ok=False)
    assert unknown.returncode == 2
    assert 'did you mean "my-reward"' in unknown.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_small(name: str) -> None:
    code = ROOT / "examples" / f"alignkit-{name}" / f"alignkit_{name}" / "__init__.py"
    assert len(code.read_text().splitlines()) < 150
