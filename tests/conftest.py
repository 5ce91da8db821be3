"""Fixtures every test can ask for."""

from tests.third_party import site

__all__ = ["site"]
