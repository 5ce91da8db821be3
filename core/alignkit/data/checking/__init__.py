"""``align data check``: what is wrong with a source, found before an hour of training is."""

from __future__ import annotations

from alignkit.data.checking.check import Check, Finding, check_source, write_fixed
from alignkit.data.checking.rules import Limits

__all__ = ["Check", "Finding", "Limits", "check_source", "write_fixed"]
