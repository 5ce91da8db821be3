"""Models by hub id where the hub does not answer: what is not in its cache is said at once, what is there loads."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
from alignkit import build_model
from alignkit.config import ModelConfig
from alignkit.demo import model_path
from alignkit.errors import ModelError
from alignkit_checks import hub
from alignkit_eval.evaluation.targets import find_target
from huggingface_hub import constants


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every request with these bytes; its address, and what it was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(4096).partition(b"\r")[0])
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield "http://{}:{}".format(*server.getsockname()), asked
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub, and libraries that may ask the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    hub._silent.cache_clear()
    yield tmp_path / "cache"
    hub._silent.cache_clear()
    hub._Offline.by_us = False


@pytest.mark.usefixtures("cache")
def test_a_name_of_nothing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_path(), "runs/nosuch1")
    with answering(b"") as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        for use in (find_target, lambda name: build_model(ModelConfig(name=name))):
            with pytest.raises(ModelError) as error:
                use("nosuch")
            assert 'there is no model or run "nosuch", did you mean "runs/nosuch1"?: no directory' in str(error.value)
            assert f"and {address} cannot be reached" in str(error.value)
        with pytest.raises(ModelError, match=r'there is no model or run "me/mine": .* at revision v2, and'):
            build_model(ModelConfig(name="me/mine", revision="v2"))
    assert len(asked) <= 2, asked


def test_what_is_in_the_cache_loads_without_the_hub_and_the_hub_is_asked_again_later(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = cache / "models--me--mine"
    shutil.copytree(model_path(), kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    with answering(b"") as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert build_model(ModelConfig(name="me/mine")).parameters > 0
    assert len(asked) <= 2, asked
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        huggingface_hub.get_session().head(address)
    hub._silent.cache_clear()
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert hub.check_hub("no-one/nothing") == "", "the hub itself says what it does not have"
        assert huggingface_hub.get_session().head(address).status_code == 404
    assert len(asked) == 2
