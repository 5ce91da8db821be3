"""The versions, the hardware and the revision that a run records."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from alignkit_eval.report.environment import environment, git_revision


def test_the_environment_is_known_and_json() -> None:
    found = environment()
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert {"alignkit", "transformers", "trl", "peft", "datasets", "python"} <= found["versions"].keys()
    assert found["hardware"]["cores"] >= 1
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found


def test_the_revision_of_a_repository_and_of_none(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_revision(tmp_path) == {"revision": head, "dirty": False}
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == {"revision": head, "dirty": True}


def test_a_machine_without_git_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(Path(__file__).parent) is None
