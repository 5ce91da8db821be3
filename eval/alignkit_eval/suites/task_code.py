"""The Python code that an lm-eval task calls: what belongs to an installed library, and what is a user's own."""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

_LIBRARIES = [*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1])]
"""Directories of Python, installed packages and this harness, whose code is known by its version."""


def functions_in(value: Any) -> Iterator[Any]:
    """Yield every function and class in a task's configuration."""
    parts: Any = ()
    if is_dataclass(value):  # first: lm-eval's configurations are empty dictionaries as well
        parts = vars(value).values()
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    elif callable(value):
        yield value
    for part in parts:
        yield from functions_in(part)


def is_installed(code: Any) -> bool:
    """Whether a function or class is of an installed library, or comes with alignkit."""
    try:
        file = Path(inspect.getfile(inspect.unwrap(code.func if isinstance(code, partial) else code))).resolve()
    except (TypeError, OSError):
        return inspect.isbuiltin(code)  # else of unknown origin
    return any(file.is_relative_to(Path(place).resolve()) for place in _LIBRARIES)
