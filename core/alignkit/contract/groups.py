"""The entry-point groups, and what a plugin of each must be."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, get_args

from alignkit.contract.commands import Command

Group = Literal[
    "align.methods",
    "align.services",
    "align.suites",
    "align.rewards",
    "align.losses",
    "align.results",
    "align.samplers",
    "align.schedulers",
    "align.stages",
    "align.contexts",
    "align.engines",
    "align.formats",
    "align.sources",
    "align.shapes",
    "align.rules",
    "align.commands",
    "align.reports",
    "align.launchers",
    "align.checks",
    "align.callbacks",
    "align.attention",
    "align.models",
    "align.orders",
]
GROUPS: tuple[Group, ...] = get_args(Group)


def singular(group: str) -> str:
    """Return what a plugin of ``group`` is called: ``method``, ``loss``."""
    word = group.removeprefix("align.")
    return word.removesuffix("es" if word.endswith("sses") else "s")


CONTRACT_VERSION = 1
"""Version of the contract between alignkit and plugins; a plugin states the one it was written for in ``contract``."""


def problem_with(group: Group, name: str, plugin: Any) -> str | None:
    """Return why ``plugin``, declared as entry point ``name`` of ``group``, cannot be used; None if it can."""
    wanted = getattr(plugin, "contract", 1)
    if isinstance(wanted, int) and wanted > CONTRACT_VERSION:
        return f"was written for contract {wanted}, and this alignkit has contract {CONTRACT_VERSION}: upgrade alignkit"
    match group:
        case "align.methods":
            return _check_method(name, plugin)
        case "align.engines":
            return _check_engine(name, plugin)
        case "align.suites" | "align.schedulers" | "align.stages":
            return _check_class(name, plugin, _type(singular(group).capitalize()))
        case "align.rewards" if isinstance(plugin, type):
            return _check_class(name, plugin, _type("Reward"))
        case "align.rewards":
            return None if callable(plugin) else "is neither a subclass of alignkit.Reward nor a function"
        case "align.services":
            return None  # any object can have hook implementations; the session checks those
        case "align.samplers":
            return None if callable(getattr(plugin, "unavailable", None)) else "has no function unavailable()"
        case "align.formats" | "align.attention" | "align.losses":
            wanted = {"align.formats": "DataFormat", "align.attention": "AttentionKernel"}.get(group, "Loss")
            return None if isinstance(plugin, _type(wanted)) else f"is not an alignkit.{wanted}"
        case "align.rules":
            rules = plugin if isinstance(plugin, Sequence) else ()
            fine = rules and all(isinstance(rule, _type("DataRule")) for rule in rules)
            return None if fine else "is not a sequence of alignkit.DataRule"
        case "align.commands":
            if not isinstance(plugin, Command):
                return "is not an alignkit.Command"
            return None if plugin.summary.strip() else "has an empty summary"
    return None if callable(plugin) else "is not a function"


def _type(name: str) -> Any:
    return getattr(import_module("alignkit.contract"), name)


def _check_method(name: str, plugin: Any) -> str | None:
    from alignkit.contract.types import Method, RowKind

    if problem := _check_class(name, plugin, Method, "paper", "rows"):
        return problem
    if plugin.rows not in get_args(RowKind):
        return f"declares rows = {plugin.rows!r}, which is not one of {', '.join(get_args(RowKind))}"
    return _unknown_need(plugin)


def _check_engine(name: str, plugin: Any) -> str | None:
    problem = _check_class(name, plugin, _type("Engine"), "needs", settings=False)
    return problem or _unknown_need(plugin)


def _unknown_need(plugin: Any) -> str | None:
    from alignkit.contract.types import Need

    if unknown := set(plugin.needs) - set(get_args(Need)):
        return f"declares the need {min(unknown)!r}, which is not one of {', '.join(get_args(Need))}"
    return None


def _check_class(name: str, plugin: Any, base: type, *declarations: str, settings: bool = True) -> str | None:
    """Return the problem with a plugin that must be a subclass of ``base`` with a name, ``settings`` and ``declarations``."""
    from pydantic import BaseModel

    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        return f"is not a subclass of alignkit.{base.__name__}"
    if missing := [one for one in ("name", *declarations, *["settings_type"] * settings) if not hasattr(plugin, one)]:
        return f"does not declare {', '.join(missing)}"
    declared: Any = plugin
    if settings and not (isinstance(declared.settings_type, type) and issubclass(declared.settings_type, BaseModel)):
        return "declares a settings_type that is not a pydantic model"
    if declared.name != name:
        return f'declares the name "{declared.name}", but its entry point is called "{name}"'
    abstract = sorted(getattr(plugin, "__abstractmethods__", ()))
    return f"does not define {', '.join(abstract)}" if abstract else None
