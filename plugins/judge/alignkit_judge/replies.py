"""Replies of an endpoint, kept in the content cache: one file for each judge, one line for each reply, written when it arrives."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from alignkit.errors import first_line
from alignkit.system.cache import cache_directory, private_directory
from alignkit.system.files import digest

logger = logging.getLogger(__name__)


class Reply(NamedTuple):
    """The probability that the answer shown as A is better (None: the judge names neither), and the tokens it took."""

    a: float | None
    sent: int
    received: int


class Replies:
    """The replies of one judge by the digest of what it was asked. Failing to store them is logged and never an error.

    A line has a checksum of its own: one that a killed process left unfinished, or that is damaged, is asked for again.
    """

    def __init__(self, judge: str) -> None:
        self._name = f"{digest(['replies of a judge', judge])}.jsonl"
        self._lock = Lock()
        self._path: Path | None = None
        self._known: dict[str, Reply] | None = None

    def get(self, key: str) -> Reply | None:
        """Return the reply to a question, if it is known."""
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return self._known.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply."""
        line = json.dumps([key, *reply, _checksum(key, reply)]) + "\n"
        with self._lock:
            assert self._known is not None
            self._known[key] = reply
            if self._path is not None:
                try:
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(line)
                except OSError as error:
                    self._unusable(error)

    def _read(self) -> dict[str, Reply]:
        known: dict[str, Reply] = {}
        try:
            self._path = private_directory(cache_directory() / "evaluation") / self._name
            text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
            if text:
                os.utime(self._path)  # the time of last use, for `align cache`
            if text and not text.endswith("\n"):
                with self._path.open("a", encoding="utf-8") as file:
                    file.write("\n")
        except OSError as error:
            self._unusable(error)
            return known
        for line in text.splitlines():
            try:
                key, a, sent, received, checksum = json.loads(line)
                reply = Reply(a, sent, received)
            except (ValueError, TypeError):
                continue
            if checksum == _checksum(key, reply):
                known[key] = reply
        return known

    def _unusable(self, error: OSError) -> None:
        logger.warning("replies of the judge are not kept: %s", first_line(error))
        self._path = None


def _checksum(key: str, reply: Reply) -> str:
    return digest([key, *reply])[:16]
