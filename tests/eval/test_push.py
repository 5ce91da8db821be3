"""Uploads of an export to the hub, by huggingface_hub over HTTP: which files arrive, with which bytes, and what is said if they do not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from alignkit.errors import RunFailedError
from alignkit_eval.push import upload

from tests.helpers.hub_server import Hub, serving_hub
from tests.helpers.runs import ALIGN

FILES = {
    "README.md": b"---\nlibrary_name: transformers\n---\n# A model\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 5000,
    "nested/chat_template.jinja": "{{ 'ü' }}\r\n".encode(),
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving_hub(Hub("hf_test")) as hub:
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was exported."""
    for name, content in FILES.items():
        (path := tmp_path / "run" / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "run"


def test_every_file_arrives_with_its_bytes(hub: Hub, run: Path) -> None:
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_OFFLINE": "0", "HF_HOME": str(run / "home")}
    command = [str(ALIGN), "export", "run", "--push", "me/model", "--private"]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=run.parent, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"uploaded: {hub.url}/me/model/commit/{1:040x}\n"), done.stderr
    assert hub.files == {f"me/model/{name}": content for name, content in FILES.items()}
    assert hub.visibility == {"me/model": "private"}
    assert hub.messages == ["Upload with alignkit"]


@pytest.mark.parametrize("refused", ["/api/repos/create", "/commit/"])
def test_a_refused_upload_says_what_to_do(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    hub.failing = refused
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(RunFailedError) as caught:
        upload(run / "export", "me/model", private=False, dry_run=False, say=print)
    said = str(caught.value)
    assert said.startswith(f"me/model was not uploaded ({run / 'export'} is complete): 403 Forbidden")
    assert said.endswith("; log in with `hf auth login`, or set HF_TOKEN to a token that may write there")
    assert hub.token not in said
    assert hub.files == {}
