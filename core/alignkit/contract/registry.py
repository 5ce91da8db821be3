"""Which plugins are installed, found by entry-point metadata alone; a plugin is imported only when it is used.

A name belongs to one plugin: a built-in keeps its plain name whatever else is installed, a name that two other
distributions share has to be written ``distribution:name``. ``ALIGN_PLUGINS`` restricts third-party plugins: ``auto``
(the default) takes all, ``none`` takes none, and ``a,b`` takes those with these names or of these distributions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignkit.errors import PluginError, suggest

if TYPE_CHECKING:
    from alignkit.contract.suites import Suite
    from alignkit.contract.types import Method

Group = Literal["align.methods", "align.services", "align.suites", "align.rewards"]
GROUPS: tuple[Group, ...] = get_args(Group)

BUILT_IN = "alignkit"
"""The distribution whose plugins are built in."""

ALLOWED_VARIABLE = "ALIGN_PLUGINS"


@dataclass(frozen=True)
class PluginEntry:
    """One installed plugin, as its distribution's metadata declares it."""

    name: str
    group: Group
    value: str
    distribution: str
    version: str
    summary: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        """What the plugin is: ``method``, ``service``, ``suite`` or ``reward``."""
        return self.group.removeprefix("align.").removesuffix("s")

    @property
    def built_in(self) -> bool:
        """Whether the plugin comes with alignkit."""
        return _normalized(self.distribution) == BUILT_IN

    @property
    def blocked(self) -> bool:
        """Whether ``ALIGN_PLUGINS`` keeps the plugin from being used."""
        allowed = os.environ.get(ALLOWED_VARIABLE, "").strip() or "auto"
        if self.built_in or allowed == "auto":
            return False
        words = {word.strip() for word in allowed.split(",")}
        return self.name not in words and _normalized(self.distribution) not in {_normalized(word) for word in words}

    @property
    def qualified(self) -> str:
        """The name that is always unambiguous: ``distribution:name``."""
        return f"{self.distribution}:{self.name}"

    def __str__(self) -> str:
        """Return ``method "orpo" (alignkit 0.1.0)``, for messages."""
        return f'{self.kind} "{self.name}" ({self.distribution} {self.version})'


@dataclass(frozen=True)
class Catalogue:
    """What a look through the installed distributions found."""

    entries: tuple[PluginEntry, ...]
    unreadable: tuple[str, ...]
    """Distributions whose entry points cannot be read, each with the reason."""


def catalogue(group: Group) -> Catalogue:
    """Return every plugin of ``group``, built-in ones first, and the distributions that could not be read."""
    found: list[PluginEntry] = []
    unreadable: list[str] = []
    for distribution in _distributions():
        # One third-party distribution with damaged metadata must not take the others down with it.
        try:
            found += _entries_of(distribution, group)
        except Exception as error:
            unreadable.append(f"{_name_of(distribution)}: {type(error).__name__}: {error}")
    found.sort(key=lambda entry: (not entry.built_in, entry.name, entry.distribution))
    return Catalogue(tuple(found), tuple(unreadable))


def entries(group: Group) -> list[PluginEntry]:
    """Return every installed plugin of ``group``, built-in ones first. Nothing is imported."""
    return list(catalogue(group).entries)


def find(group: Group, name: str) -> PluginEntry:
    """Return the plugin called ``name`` (or ``distribution:name``) in ``group``.

    Raises :class:`PluginError` where the name is unknown, shared by two third-party distributions, or blocked.
    """
    installed = catalogue(group)
    matching = [entry for entry in installed.entries if _answers_to(entry, name)]
    usable = [entry for entry in matching if not entry.blocked]
    if not matching:
        raise PluginError(_unknown(group, name, installed))
    if not usable:
        raise PluginError(
            f"{matching[0]} is blocked by {ALLOWED_VARIABLE}={os.environ[ALLOWED_VARIABLE]}: "
            f"add {matching[0].name} to it, or unset it"
        )
    if len(usable) > 1 and not usable[0].built_in:
        offers = " and ".join(f"{entry.distribution} {entry.version}" for entry in usable)
        choices = " or ".join(entry.qualified for entry in usable)
        raise PluginError(f'{usable[0].kind} "{name}" is offered by {offers}: write {choices}')
    return usable[0]


def shadowed(entry: PluginEntry) -> list[PluginEntry]:
    """Return the usable third-party plugins that a built-in of the same name stands in front of."""
    others = entries(entry.group) if entry.built_in else []
    return [other for other in others if other.name == entry.name and not other.built_in and not other.blocked]


def load(entry: PluginEntry) -> Any:
    """Import the plugin and check that it is what its group asks for.

    Raises :class:`PluginError` naming the plugin, its distribution, its version and the cause.
    """
    try:
        plugin = metadata.EntryPoint(entry.name, entry.value, entry.group).load()
    except (Exception, SystemExit) as error:  # SystemExit: a module that calls exit() must not end the command
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        raise PluginError(f"{entry} cannot be loaded from {entry.value}: {cause}") from error
    problem = _newer_contract(plugin) or _CHECKS[entry.group](entry, plugin)
    if problem:
        raise PluginError(f"{entry} cannot be used: {entry.value} {problem}")
    return plugin


def load_method(name: str) -> tuple[PluginEntry, type[Method[Any]]]:
    """Find and import the method called ``name``."""
    entry = find("align.methods", name)
    return entry, load(entry)


def load_suite(name: str) -> tuple[PluginEntry, type[Suite[Any]]]:
    """Find and import the evaluation suite called ``name``."""
    entry = find("align.suites", name)
    return entry, load(entry)


# ------------------------------------------------------------------------------------------------- metadata


def _normalized(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distributions() -> Iterator[metadata.Distribution]:
    """Every installed distribution once: the first on the path is the one that is imported."""
    seen = set()
    for distribution in metadata.distributions():
        name = _normalized(_name_of(distribution))
        if name not in seen:
            seen.add(name)
            yield distribution


def _name_of(distribution: metadata.Distribution) -> str:
    """Return the distribution's name, taken from its folder: that needs no file to be read, and none to be whole."""
    folder = getattr(distribution, "_path", None)
    if folder is not None and folder.name.endswith((".dist-info", ".egg-info")):
        return str(folder.name.rpartition(".")[0].partition("-")[0])
    return str(distribution.metadata["Name"])


def _entries_of(distribution: metadata.Distribution, group: Group) -> list[PluginEntry]:
    points = [point for point in distribution.entry_points if point.group == group]
    if not points:
        return []
    about = distribution.metadata
    name = about["Name"] or _name_of(distribution)
    version, summary = about["Version"] or "unknown version", about["Summary"] or ""
    return [PluginEntry(point.name, group, point.value, name, version, summary) for point in points]


def _answers_to(entry: PluginEntry, name: str) -> bool:
    distribution, colon, plain = name.rpartition(":")
    if not colon:
        return entry.name == name
    return entry.name == plain and _normalized(entry.distribution) == _normalized(distribution)


def _unknown(group: Group, name: str, installed: Catalogue) -> str:
    plural = group.removeprefix("align.")
    known = [entry.name for entry in installed.entries] + [entry.qualified for entry in installed.entries]
    message = f'unknown {plural[:-1]} "{name}"{suggest(name, known)} (align {plural} lists them)'
    if installed.unreadable:
        message += f"; not looked at, because its entry points cannot be read: {'; '.join(installed.unreadable)}"
    return message


# ------------------------------------------------------------------------------------------------- declarations


def _newer_contract(plugin: Any) -> str | None:
    """Return what keeps a plugin from being used that was written for a later contract; one that says nothing is for the first."""
    from alignkit.contract.hooks import CONTRACT_VERSION

    wanted = getattr(plugin, "contract", 1)
    if isinstance(wanted, int) and wanted > CONTRACT_VERSION:
        return f"was written for contract {wanted}, and this alignkit has contract {CONTRACT_VERSION}: upgrade alignkit"
    return None


def _check_method(entry: PluginEntry, plugin: Any) -> str | None:
    from alignkit.contract.types import Method, Need, RowKind

    problem = _check_class(entry, plugin, Method, ("name", "paper", "rows", "settings_type"))
    if problem:
        return problem
    if plugin.rows not in get_args(RowKind):
        return f"declares rows = {plugin.rows!r}, which is none of {', '.join(get_args(RowKind))}"
    unknown = set(plugin.needs) - set(get_args(Need))
    if unknown:
        return f"declares the need {sorted(unknown)[0]!r}, which is none of {', '.join(get_args(Need))}"
    return None


def _check_suite(entry: PluginEntry, plugin: Any) -> str | None:
    from alignkit.contract.suites import Suite

    return _check_class(entry, plugin, Suite, ("name", "settings_type"))


def _check_class(entry: PluginEntry, plugin: Any, base: type, declarations: tuple[str, ...]) -> str | None:
    """Return what keeps ``plugin`` from being a subclass of ``base`` with its declarations made, or None."""
    from pydantic import BaseModel

    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        return f"is not a subclass of alignkit.{base.__name__}"
    missing = [name for name in declarations if not hasattr(plugin, name)]
    if missing:
        return f"does not declare {', '.join(missing)}"
    settings_type = plugin.settings_type  # type: ignore[attr-defined]
    if not (isinstance(settings_type, type) and issubclass(settings_type, BaseModel)):
        return "declares a settings_type that is not a pydantic model"
    declared = plugin.name  # type: ignore[attr-defined]
    if declared != entry.name:
        return f'declares the name "{declared}", but its entry point is called "{entry.name}"'
    abstract = sorted(getattr(plugin, "__abstractmethods__", ()))
    return f"does not define {', '.join(abstract)}" if abstract else None


def _check_reward(entry: PluginEntry, plugin: Any) -> str | None:
    from alignkit.contract.rewards import Reward

    if isinstance(plugin, type):
        return _check_class(entry, plugin, Reward, ("name", "settings_type"))
    return None if callable(plugin) else "is neither a subclass of alignkit.Reward nor a function"


def _check_service(_entry: PluginEntry, _plugin: Any) -> str | None:
    return None  # any object can carry hook implementations; the session checks those


_CHECKS = {
    "align.methods": _check_method,
    "align.suites": _check_suite,
    "align.rewards": _check_reward,
    "align.services": _check_service,
}
