"""Code that comes with a model is run only with consent (:mod:`alignkit.system.trust`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from alignkit.config import ModelConfig
from alignkit.errors import ModelError
from alignkit.system import trust
from alignkit.system.quiet import stdout_to_stderr

T = TypeVar("T")


def with_own_code(load: Callable[[bool], T], path: str, config: ModelConfig) -> T:
    """Return ``load(trust_remote_code)``: with the model's own code if the configuration says so, or nothing else loads it."""
    files, what = sorted(Path(path).rglob("*.py")), f"the code of {path}"
    if not (config.trust_remote_code and (files or not Path(path).is_dir())):
        try:
            return load(False)
        except ModelError as error:
            if not files or "trust_remote_code" not in str(error.__cause__):
                raise
    trust.require(what, files, key="trust_remote_code: True", explicit=not config.trust_remote_code)
    with stdout_to_stderr():
        return load(True)
