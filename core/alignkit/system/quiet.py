"""Libraries kept off the console: their log records and warnings go to the run's log, progress bars are off."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

LIBRARIES = (
    "accelerate datasets evaluate filelock fsspec httpx huggingface_hub lm_eval lm-eval matplotlib peft py.warnings "
    "torch transformers trl urllib3"
).split()
"""Loggers of libraries that write to the console (py.warnings: Python's warnings, captured)."""

ENVIRONMENT = {
    # With as many spinning threads as cores, and cores that are busy, small steps take forty times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    # pydantic looks for plugins of its own in every distribution, and falls over one with damaged metadata.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}
"""Variables to set before torch and the other libraries are imported."""


def set_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set :data:`ENVIRONMENT`, except what the user has set; torch must not be imported yet."""
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)


def quiet_libraries(handler: logging.Handler | None = None) -> None:
    """Send log records and warnings of libraries to ``handler`` (None: drop them) and disable their progress bars."""
    import logging  # here, because `align --help` imports this module

    logging.captureWarnings(True)  # those of the imports as well
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
    # The first record would make transformers add a console handler of its own: let it do so before they are replaced.
    transformers_logging.get_verbosity()
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers = [handler or logging.NullHandler()]
        logger.propagate = False


@contextmanager
def quieted(handler: logging.Handler | None = None) -> Iterator[None]:
    """Quiet libraries in the block, see :func:`quiet_libraries`; after it, their logging and warnings are as they were."""
    import logging

    shown, loggers = warnings.showwarning, [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    quiet_libraries(handler)
    captured = warnings.showwarning is shown
    try:
        yield
    finally:
        logging.captureWarnings(captured)
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what the block prints or writes to stdout, from C and child processes too, to stderr: stdout is for results."""
    saved = None
    with suppress(OSError, AttributeError):  # stdout or stderr is closed
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)
