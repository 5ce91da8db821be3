"""Results that other tools wrote, read as those of a suite (group ``align.results``), and ours in lm-eval's form."""

from __future__ import annotations

from pathlib import Path

from alignkit import SuiteResult
from alignkit.contract import registry
from alignkit.errors import ConfigError


def read_elsewhere(path: Path) -> dict[str, SuiteResult]:
    """Return what another tool wrote to ``path``, by suite; empty where no installed reader knows its form.

    Raises :class:`ConfigError` for a file that a reader knows and cannot use.
    """
    found: dict[str, list[SuiteResult]] = {}
    for name in sorted(registry.usable("align.results")):
        if (read := registry.provided("align.results", name)) and (results := read(path)):
            found[name] = results
    if len(found) > 1:
        raise ConfigError(f"{path} has results of several tools ({', '.join(found)}): name the files of one of them")
    return {result.suite: result for results in found.values() for result in results}


def named_twice(path: Path, files: list[Path]) -> ConfigError:
    """Return the error of a directory that has several results where one is needed."""
    return ConfigError(f"{path} has {len(files)} results: name one of them, such as {files[-1]}")
