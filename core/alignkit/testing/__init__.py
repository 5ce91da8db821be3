"""Conformance tests for plugins.

    pytest_plugins = ["alignkit.testing"]            # in conftest.py

    from alignkit.testing import MethodConformance

    class TestKTO(MethodConformance):
        name = "kto"

Each class tests one installed plugin, identified by the name of its entry point. A failure states what is wrong and how to
fix it. The tests run in seconds, on the CPU with a tiny model, and download nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.testing.attention import AttentionConformance as AttentionConformance
    from alignkit.testing.commands import CommandConformance as CommandConformance
    from alignkit.testing.engines import EngineConformance as EngineConformance
    from alignkit.testing.losses import LossConformance as LossConformance
    from alignkit.testing.methods import MethodConformance as MethodConformance
    from alignkit.testing.rewards import RewardConformance as RewardConformance
    from alignkit.testing.rules import RuleConformance as RuleConformance
    from alignkit.testing.schedulers import SchedulerConformance as SchedulerConformance
    from alignkit.testing.services import ServiceConformance as ServiceConformance
    from alignkit.testing.suites import SuiteConformance as SuiteConformance

# Imported when first asked for, so that the processes of a scheduler's tasks do not import what trains.
_MODULES = "attention commands engines losses methods rewards rules schedulers services suites"
_KINDS = "Attention Command Engine Loss Method Reward Rule Scheduler Service Suite"
_MODULE_OF = {f"{kind}Conformance": module for kind, module in zip(_KINDS.split(), _MODULES.split(), strict=True)}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"alignkit.testing.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'alignkit.testing' has no attribute {name!r}")


def pytest_configure(config: Any) -> None:
    """Hide transformers' FutureWarnings in a plugin's test report."""
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning:transformers")
