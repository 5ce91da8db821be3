"""The line by which an editor finds the schema of a YAML file, and the schema that it names."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from alignkit.contract import registry
from alignkit.system.cache import cache_directory
from alignkit.system.code import code_of
from alignkit.system.files import digest, read_regular, write_text

MARK = "# yaml-language-server: $schema="


def schema_line(method: str) -> str:
    """Return the first line of a configuration file for a method, whose schema is in the cache; empty if that cannot be written."""
    with suppress(OSError):
        entry = registry.find("align.methods", method)
        plugins = sorted(
            (e.qualified, e.version, e.value) for group in registry.GROUPS for e in registry.entries(group)
        )
        known = [plugins, code_of(entry.value.partition(":")[0]), version("transformers")]
        file = _directory() / f"{entry.name}-{digest(known)[:12]}.json"
        if file.exists():
            file.touch()  # its last use, for `align cache`
        else:
            _write(file, method)
        return f"{MARK}{file.as_uri()}\n"
    return ""


def attach(file: Path, method: str | None) -> None:
    """Make the schema for a method, or for any file, that of a YAML file: its first line names it, in place of an earlier one."""
    lines = read_regular(file).decode("utf-8").splitlines(keepends=True)
    schema = _directory() / f"{method or 'any'}.json".replace(":", "-")
    _write(schema, method)
    rest = "".join(line for line in lines if not line.startswith(MARK))
    write_text(file, f"{MARK}{schema.as_uri()}\n{rest}")


def _directory() -> Path:
    return (cache_directory() / "schema").absolute()


def _write(file: Path, method: str | None) -> None:
    from alignkit_eval.schemas.files import run_schema, whole_schema

    write_text(file, json.dumps(run_schema(method) if method else whole_schema()))
