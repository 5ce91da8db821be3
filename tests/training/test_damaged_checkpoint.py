"""Damage to any file of a checkpoint is noticed, and resume takes the checkpoint before it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import CheckpointError
from alignkit.training.checkpoints import MANIFEST, fault, last_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.engine import build_trainer, configuration, random_pairs, random_prompts

METHODS: dict[str, Any] = {
    "orpo": "orpo",
    "ppo in the middle of a rollout": {"name": "ppo", "reward": "length", "max_new_tokens": 4, "epochs": 3},
}


@pytest.fixture(scope="module", params=METHODS)
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the checkpoints of two steps."""
    method = METHODS[request.param]
    config = configuration(method, optim="adamw_torch", max_steps=2, save_strategy="steps", save_steps=1)
    rows = random_pairs(8) if method == "orpo" else random_prompts(8)
    directory = tmp_path_factory.mktemp("run")
    build_trainer(config, directory, rows)[0].train()
    return directory


@contextmanager
def changed(file: Path, content: bytes | None) -> Iterator[None]:
    """Give a file another content for a while; None: remove it."""
    whole = file.read_bytes()
    try:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        yield
    finally:
        file.write_bytes(whole)


def damaged(draw: st.DataObject, whole: bytes) -> bytes | None:
    """Draw what may become of a file: gone, cut short, grown, or one bit of it another."""
    at = draw.draw(st.integers(0, len(whole) - 1), label="position")
    bit = draw.draw(st.integers(0, 7), label="bit")
    flipped = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    zeroed = whole[:at] + bytes(len(whole) - at)
    kinds = {"missing": None, "truncated": whole[:at], "grown": whole + b"\0", "flipped": flipped, "zeroed": zeroed}
    return kinds[draw.draw(st.sampled_from(list(kinds)), label="damage")]


def files(checkpoint: Path) -> list[str]:
    return sorted(str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file())


def manifest(content: bytes | None) -> Any:
    """Return what a manifest says, None where it cannot be read."""
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return None


def test_the_manifest_lists_every_file(checkpoints: Path) -> None:
    newest = checkpoints / "checkpoint-2"
    assert fault(newest) is None
    assert last_checkpoint(checkpoints) == newest
    listed = manifest((newest / MANIFEST).read_bytes())["files"]
    assert sorted([*listed, MANIFEST]) == files(newest)
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "engine_0.pt"} <= listed.keys()


@given(drawn=st.data())
@settings(deadline=None, max_examples=60)
def test_damage_to_any_file_is_noticed(checkpoints: Path, drawn: st.DataObject) -> None:
    newest, before = checkpoints / "checkpoint-2", checkpoints / "checkpoint-1"
    name = drawn.draw(st.sampled_from(files(newest)), label="file")
    whole = (newest / name).read_bytes()
    content = damaged(drawn, whole)
    if content == whole or (name == MANIFEST and manifest(content) == manifest(whole)):
        return  # zeros where there were zeros, or another white space
    with changed(newest / name, content):
        problem = fault(newest)
        assert problem is not None
        assert name in problem or name == MANIFEST
        assert last_checkpoint(checkpoints) == before
        with (
            changed(before / MANIFEST, None),
            pytest.raises(CheckpointError, match=r"no checkpoint in .* can be resumed"),
        ):
            last_checkpoint(checkpoints)
    assert fault(newest) is None
