"""``align data check``: find problems in a source before training on it."""

from __future__ import annotations

from alignkit.data.checking.check import TITLES, Check, Finding, check_source, find, write_fixed

__all__ = ["TITLES", "Check", "Finding", "check_source", "find", "write_fixed"]
