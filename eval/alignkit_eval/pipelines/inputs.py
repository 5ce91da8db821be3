"""The content of the files and directories that a stage trains on and starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignkit import RunConfig
from alignkit.system.files import digest
from alignkit.system.manifest import manifest, sha256


def inputs_digest(config: RunConfig, without: Path) -> str:
    """Return a digest of the local sources and start model of a stage, not of those that stages made below ``without``."""
    return digest([_content(path) for path in _paths(config) if not path.is_relative_to(without.resolve())])


def _paths(config: RunConfig) -> Iterator[Path]:
    data, model = config.data, config.model
    names = [*(part.source for part in data.parts), data.eval_source, model.name, model.tokenizer, model.chat_template]
    for name in names:
        if name and len(name) < 1000 and "\n" not in name:  # a chat template may be given as text
            path = Path(name).expanduser().resolve()
            yield path / "model" if (path / "run.json").is_file() else path


def _content(path: Path) -> object:
    if path.is_dir():
        return manifest(path)
    return sha256(path) if path.is_file() else None
