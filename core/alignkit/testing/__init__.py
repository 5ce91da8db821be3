"""Conformance tests for plugins.

    pytest_plugins = ["alignkit.testing"]            # in conftest.py

    from alignkit.testing import MethodConformance

    class TestKTO(MethodConformance):
        name = "kto"

Each class tests one installed plugin, identified by the name of its entry point. A failure states what is wrong and how to
fix it. The tests run in seconds, on the CPU with a tiny model, and download nothing.
"""

from __future__ import annotations

from typing import Any

from alignkit.testing.attention import AttentionConformance
from alignkit.testing.commands import CommandConformance
from alignkit.testing.losses import LossConformance
from alignkit.testing.methods import MethodConformance
from alignkit.testing.rewards import RewardConformance
from alignkit.testing.rules import RuleConformance
from alignkit.testing.schedulers import SchedulerConformance
from alignkit.testing.services import ServiceConformance
from alignkit.testing.suites import SuiteConformance

__all__ = [
    "AttentionConformance",
    "CommandConformance",
    "LossConformance",
    "MethodConformance",
    "RewardConformance",
    "RuleConformance",
    "SchedulerConformance",
    "ServiceConformance",
    "SuiteConformance",
]


def pytest_configure(config: Any) -> None:
    """Hide transformers' FutureWarnings in a plugin's test report."""
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning:transformers")
