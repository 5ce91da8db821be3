"""``align data check``: what is wrong with a source, found before an hour of training is."""

from __future__ import annotations

from alignkit.data.checking.check import TITLES, Check, Finding, check_source, find, write_fixed

__all__ = ["TITLES", "Check", "Finding", "check_source", "find", "write_fixed"]
