"""``align data check``: find problems in a source before training on it."""

from __future__ import annotations

from alignkit.data.checking.check import Check, Finding, check_source, find, fixed_files, rule_names, write_fixed

__all__ = ["Check", "Finding", "check_source", "find", "fixed_files", "rule_names", "write_fixed"]
