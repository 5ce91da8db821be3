"""A conformance kit: what a plugin's own tests run to know that it is right.

    pytest_plugins = ["alignkit.testing"]            # in conftest.py

    from alignkit.testing import MethodConformance

    class TestKTO(MethodConformance):
        name = "kto"

Each class is a set of tests about one installed plugin, by the name of its entry point. A failure says what is wrong and how
to mend it. Everything runs on a tiny model on the CPU, in seconds, and downloads nothing.
"""

from __future__ import annotations

from typing import Any

from alignkit.testing.commands import CommandConformance
from alignkit.testing.methods import MethodConformance
from alignkit.testing.others import RewardConformance, ServiceConformance, SuiteConformance

__all__ = ["CommandConformance", "MethodConformance", "RewardConformance", "ServiceConformance", "SuiteConformance"]


def pytest_configure(config: Any) -> None:
    """Keep what transformers says about its own future out of a plugin's test report."""
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning:transformers")
