"""Third-party packages, installed with the built wheel (not the source tree) in a separate environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.outside import Environment, build

ROOT = Path(__file__).parents[2]
EXAMPLES = ("simpo", "kto", "tracker")
KINDS = ("method", "loss", "suite", "reward", "service", "rule", "command", "scheduler", "stage")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "-w", str(folder), str(ROOT)], check=True, cwd=folder)
    made = Environment(tmp_path_factory.mktemp("outside") / "venv")
    (wheel,) = folder.glob("alignkit-*.whl")
    made.install(wheel, *(build(ROOT / "examples" / f"alignkit-{name}", folder) for name in EXAMPLES))
    return made


@pytest.mark.slow
def test_the_wheel_is_what_runs(environment: Environment, tmp_path: Path) -> None:
    where = environment.process(
        "python", "-c", "import alignkit, alignkit_eval; print(alignkit.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(environment.path)
    found = json.loads(environment.run("align", "plugins", "--json", cwd=tmp_path).stdout)
    states = {(plugin["kind"], plugin["name"]): plugin for plugin in found}
    outside = {
        plugin["name"]: plugin for plugin in found if plugin["distribution"] in ("alignkit-simpo", "alignkit-kto")
    }
    assert [p for p in found if p["state"] != "ok"] == []
    assert outside.keys() == {"simpo", "kto"}
    assert outside["kto"]["hooks"] == ["align_compute_loss", "align_prepare_batch"]
    assert {("service", "tracker"), ("service", "sqlite"), ("method", "ppo"), ("reward", "model")} <= states.keys()


@pytest.mark.slow
def test_examples_pass_the_kit(environment: Environment, tmp_path: Path) -> None:
    import shutil

    tests = []
    for name in EXAMPLES:  # copied, so that the sources next to them are not imported
        shutil.copy(ROOT / "examples" / f"alignkit-{name}" / "tests" / f"test_{name}.py", tmp_path)
        tests.append(tmp_path / f"test_{name}.py")
    kit = ["-p", "alignkit.testing", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    environment.run("pytest", "-q", *kit, *tests, cwd=tmp_path)


@pytest.mark.slow
def test_outside_methods_are_run_evaluated_and_compared(environment: Environment, tmp_path: Path) -> None:
    sets = "train.max_steps=4 train.per_device_train_batch_size=4 data.limit=120 data.eval_limit=30 eval.samples=0"
    short = [word for one in f"{sets} eval.suites=prefs run.plots=false".split() for word in ("--set", one)]
    over = [
        "--over",
        "method=alignkit-simpo:simpo,alignkit-kto:kto",
        "--set",
        "run.services=tracker",
        "--name",
        "outside",
    ]
    environment.run("align", "sweep", *over, *short, cwd=tmp_path)
    stored = json.loads((tmp_path / "runs" / "outside" / "sweep.json").read_text())
    assert [cell["status"] for cell in stored["cells"]] == ["finished", "finished"]
    assert {arm["name"] for arm in stored["comparison"]["arms"]} == {"alignkit-simpo:simpo", "alignkit-kto:kto"}
    for cell in stored["cells"]:
        assert any((tmp_path / "runs" / "outside" / cell["name"] / "tracker").iterdir())


@pytest.mark.slow
def test_a_new_plugin_of_every_kind_passes_at_once(environment: Environment, tmp_path: Path) -> None:
    packages = []
    environment.process("align", "new-plugin", f"my-{KINDS[0]}", "--kind", KINDS[0], cwd=tmp_path)
    for kind in KINDS:
        if kind != KINDS[0]:
            environment.run("align", "new-plugin", f"my-{kind}", "--kind", kind, cwd=tmp_path)
        packages.append(tmp_path / f"alignkit-my-{kind}")
        assert (packages[-1] / ".github" / "workflows" / "test.yml").is_file()
    environment.install(*(build(package, tmp_path) for package in packages))
    tests = [package / "tests" / f"test_my_{kind}.py" for package, kind in zip(packages, KINDS, strict=True)]
    kit = ["-p", "alignkit.testing", "-p", "no:cacheprovider", "--import-mode=importlib", "--doctest-modules"]
    doctests = [packages[0] / "alignkit_my_method", packages[1] / "alignkit_my_loss"]
    environment.run("pytest", "-q", "--rootdir", tmp_path, *kit, *tests, *doctests, cwd=tmp_path)
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
