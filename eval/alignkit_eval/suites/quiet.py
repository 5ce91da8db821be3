"""lm-eval without what its helpers print, and without its description of the machine."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator

from alignkit.system.distributed import rank


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what lm-eval's helpers print, except for progress bars on a terminal.

    Some write directly to the process's stderr. Progress bars go through ``sys.stderr``.
    """
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    watched = rank() == 0 and sys.stderr.isatty()
    saved = os.dup(2)
    with (
        open(os.devnull, "wb") as nowhere,
        os.fdopen(os.dup(saved), "w") if watched else io.StringIO() as shown,
        contextlib.redirect_stderr(shown),
    ):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def machine_undescribed() -> Iterator[None]:
    """Keep lm-eval from describing the machine: it calls pip, git and others for seconds, and nothing of it is used."""
    from lm_eval import evaluator

    described = evaluator.add_env_info, evaluator.get_git_commit_hash
    evaluator.add_env_info = evaluator.get_git_commit_hash = lambda *_: None
    try:
        yield
    finally:
        evaluator.add_env_info, evaluator.get_git_commit_hash = described
