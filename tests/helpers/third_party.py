"""Real third-party distributions in a folder on the import path: a module and a dist-info directory, as pip makes them."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.helpers.runs import align

METHOD = """
import torch
from pydantic import Field
from alignkit import LossOutput, LossTerm, Method, Settings, hookimpl

class MineSettings(Settings):
    strength: float = Field(1.0, ge=0, le=10, alias="mu", description="weight of the loss")
    flavour: str = Field("plain", description="any word")

class Mine(Method[MineSettings]):
    name = "mine"
    paper = "A method for tests"
    rows = "preference"
    settings_type = MineSettings
    defaults = {"train.learning_rate": 3e-5, "train.num_train_epochs": 2}

    @hookimpl
    def align_compute_loss(self, batch):
        weight = torch.ones((), requires_grad=True)
        return LossOutput([LossTerm("mine", weight * len(batch), "rows")])
"""


class Site:
    """A folder on the import path, in which distributions can be installed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(
        self, distribution, source="", *, version="1.2.3", module=None, group="methods", metadata=None, **points
    ):
        """Install a distribution of one module; ``points`` are its entry points, ``mine="my_module:Mine"``."""
        module = module or distribution.replace("-", "_")
        (self.path / f"{module}.py").write_text(dedent(source))
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nSummary: For tests\n"
        (info / "METADATA").write_text(about if metadata is None else metadata)
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[align.{group}]", *lines]) + "\n")
        return info

    def run(self, *command, **environment):
        """Run a command with this folder on the import path."""
        path = os.pathsep.join(filter(None, [str(self.path), os.environ.get("PYTHONPATH")]))
        variables = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            env=variables | environment,
            cwd=self.path,
            timeout=900,
        )

    def align(self, *arguments, **environment):
        """Run ``align`` with this folder on the import path."""
        return align(*arguments, cwd=self.path, **{"PYTHONPATH": str(self.path)} | environment)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty :class:`Site` on ``sys.path``; modules imported from it are removed afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("ALIGN_PLUGINS", raising=False)
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
