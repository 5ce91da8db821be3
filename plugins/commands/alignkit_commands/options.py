"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from alignkit.errors import ConfigError
from alignkit.system.files import require_writable


def into_directory(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option ``--output DIR``: an existing directory that ``what`` is written into."""
    return click.option(
        "--output",
        metavar="DIR",
        type=click.Path(path_type=Path),
        default=Path(),
        callback=_usable,
        help=f"Existing directory that {what} is written into (default: the current directory).",
    )


def _usable(_context: click.Context, _option: click.Parameter, directory: Path) -> Path:
    """Return the directory; raises ``ConfigError`` if it does not exist or cannot be written."""
    if not directory.exists():
        raise ConfigError(f"--output {directory}: the directory does not exist")
    require_writable(directory, directory=True)
    return directory
