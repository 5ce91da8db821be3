"""The entry-point groups, and what a plugin of each must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

Group = Literal["align.methods", "align.services", "align.suites", "align.rewards", "align.commands", "align.reports"]
GROUPS: tuple[Group, ...] = get_args(Group)

CONTRACT_VERSION = 1
"""Version of the contract between alignkit and plugins; a plugin states the one it was written for in ``contract``."""


def problem_with(group: Group, name: str, plugin: Any) -> str | None:
    """Return why ``plugin``, declared as entry point ``name`` of ``group``, cannot be used; None if it can."""
    return _newer_contract(plugin) or _CHECKS[group](name, plugin)


def _newer_contract(plugin: Any) -> str | None:
    """Return the problem with a plugin written for a later contract version than this one; without a version it is 1."""
    wanted = getattr(plugin, "contract", 1)
    if isinstance(wanted, int) and wanted > CONTRACT_VERSION:
        return f"was written for contract {wanted}, and this alignkit has contract {CONTRACT_VERSION}: upgrade alignkit"
    return None


def _check_method(name: str, plugin: Any) -> str | None:
    from alignkit.contract.types import Method, Need, RowKind

    problem = _check_class(name, plugin, Method, ("name", "paper", "rows", "settings_type"))
    if problem:
        return problem
    if plugin.rows not in get_args(RowKind):
        return f"declares rows = {plugin.rows!r}, which is not one of {', '.join(get_args(RowKind))}"
    unknown = set(plugin.needs) - set(get_args(Need))
    if unknown:
        return f"declares the need {sorted(unknown)[0]!r}, which is not one of {', '.join(get_args(Need))}"
    return None


def _check_suite(name: str, plugin: Any) -> str | None:
    from alignkit.contract.suites import Suite

    return _check_class(name, plugin, Suite, ("name", "settings_type"))


def _check_reward(name: str, plugin: Any) -> str | None:
    from alignkit.contract.rewards import Reward

    if isinstance(plugin, type):
        return _check_class(name, plugin, Reward, ("name", "settings_type"))
    return None if callable(plugin) else "is neither a subclass of alignkit.Reward nor a function"


def _check_class(name: str, plugin: Any, base: type, declarations: tuple[str, ...]) -> str | None:
    """Return the problem with a plugin that must be a subclass of ``base`` and set ``declarations``, or None."""
    from pydantic import BaseModel

    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        return f"is not a subclass of alignkit.{base.__name__}"
    missing = [declaration for declaration in declarations if not hasattr(plugin, declaration)]
    if missing:
        return f"does not declare {', '.join(missing)}"
    settings_type = plugin.settings_type  # type: ignore[attr-defined]
    if not (isinstance(settings_type, type) and issubclass(settings_type, BaseModel)):
        return "declares a settings_type that is not a pydantic model"
    declared = plugin.name  # type: ignore[attr-defined]
    if declared != name:
        return f'declares the name "{declared}", but its entry point is called "{name}"'
    abstract = sorted(getattr(plugin, "__abstractmethods__", ()))
    return f"does not define {', '.join(abstract)}" if abstract else None


def _check_service(_name: str, _plugin: Any) -> str | None:
    return None  # any object can have hook implementations; the session checks those


def _check_command(_name: str, plugin: Any) -> str | None:
    from alignkit.contract.commands import Command

    if not isinstance(plugin, Command):
        return "is not an alignkit.Command"
    return None if plugin.summary.strip() else "has an empty summary"


def _check_report(_name: str, plugin: Any) -> str | None:
    return None if callable(plugin) else "is not a function"


_CHECKS: dict[Group, Callable[[str, Any], str | None]] = {
    "align.methods": _check_method,
    "align.suites": _check_suite,
    "align.rewards": _check_reward,
    "align.services": _check_service,
    "align.commands": _check_command,
    "align.reports": _check_report,
}
