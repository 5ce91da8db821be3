"""lm-eval without what its helpers print."""

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

    lm-eval runs git to get a version, and git's error message goes directly to the process's stderr. Progress bars go
    through ``sys.stderr``.
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
