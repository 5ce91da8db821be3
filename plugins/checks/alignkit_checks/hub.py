"""Whether the hub can be reached: without a network its libraries ask again and again, for minutes, before they look into their cache."""

from __future__ import annotations

import sys
import time
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError, first_line

SECONDS = 5
"""Longest wait for the hub's first answer."""


def check_hub(name: str, revision: str | None = None, *, model: bool = True) -> str:
    """Let the hub's libraries work from their cache alone where the hub does not answer (a minute later it is asked again).

    Returns why it is not asked, an empty text if it answers.

    Args:
        name: hub id that is about to be loaded.
        revision: its revision, where it is not the newest.
        model: whether it is a model's.

    Raises:
        ModelError: the hub does not answer, or must not be asked, and the model is not in the cache.
    """
    why = _silent(int(time.monotonic() // 60))
    if why and model and not _cached(name, revision):
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f'there is no model or run "{name}"{_near(name)}: no directory has this name, the cache of the hub does not hold '
            f"it{at}, and {why}"
        )
    return why


@lru_cache(maxsize=1)
def _silent(_minute: int) -> str:
    """Return why the hub is not asked, and switch its libraries' offline mode on; an empty text if it answers."""
    from huggingface_hub import constants, get_session

    if _Offline.by_us:
        _set_offline(constants, False)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so that the hub is not asked"
    began = time.monotonic()
    try:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
        except Exception:
            if time.monotonic() - began > 1:
                raise
            time.sleep(0.5)  # a fault that passes
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:
        _set_offline(constants, True)
        return f"{constants.ENDPOINT} cannot be reached ({first_line(error)})"
    return ""


class _Offline:
    by_us = False


def _set_offline(constants: Any, offline: bool) -> None:
    _Offline.by_us = constants.HF_HUB_OFFLINE = offline
    if "datasets" in sys.modules:  # it copies the value when it is imported
        sys.modules["datasets"].config.HF_HUB_OFFLINE = offline


def _cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(name, f"{kind}config.json", revision=revision) for kind in ("", "adapter_")]
    except ValueError:  # no hub id at all
        return False
    return any(isinstance(file, str) for file in found)


def _near(name: str) -> str:
    """Return the nearest name of a run or model here or below ``runs``, as a question."""
    here = [place for folder in (Path(), Path("runs")) if folder.is_dir() for place in folder.iterdir()]
    marks = ("run.json", "config.json", "adapter_config.json")
    names = {place.name: str(place) for place in here if any((place / mark).is_file() for mark in marks)}
    close = get_close_matches(Path(name).name, names, n=1)
    return f', did you mean "{names[close[0]]}"?' if close else ""
