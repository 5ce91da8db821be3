"""The content of the files and directories that a stage depends on, besides the results of other stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit import RunConfig
from alignkit.system.files import digest
from alignkit.system.manifest import manifest, sha256

_FUNCTION = re.compile(r"(\.py):\w+$")


def inputs_digest(config: RunConfig, without: Path) -> str:
    """Return a digest of the local sources and start model of a run, not of those that stages made below ``without``."""
    return digest([_content(path) for path in _paths(config) if not path.is_relative_to(without.resolve())])


def named_files(values: Any, without: Path) -> dict[str, object]:
    """Return the contents of the local files and directories that are values of settings, ``file.py:function`` too, likewise."""
    paths = {text: _FUNCTION.sub(r"\1", text) for text in _texts(values) if _may_be_path(text)}
    found = {text: Path(path).expanduser() for text, path in paths.items()}
    there = {text: path.resolve() for text, path in found.items() if path.exists()}
    return {text: _content(path) for text, path in there.items() if not path.is_relative_to(without.resolve())}


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    inner = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    for value in inner:
        yield from _texts(value)


def _paths(config: RunConfig) -> Iterator[Path]:
    data, model = config.data, config.model
    names = [*(part.source for part in data.parts), data.eval_source, model.name, model.tokenizer, model.chat_template]
    for name in names:
        if name and _may_be_path(name):
            path = Path(name).expanduser().resolve()
            yield path / "model" if (path / "run.json").is_file() else path


def _may_be_path(text: str) -> bool:
    return 0 < len(text) < 1000 and "\n" not in text  # a chat template may be given as text


def _content(path: Path) -> object:
    if path.is_dir():
        return manifest(path)
    return sha256(path) if path.is_file() else None
