"""The installed plugins, found through entry-point metadata alone; a plugin is imported only when it is used.

A plain name refers to one plugin: built-in plugins always keep theirs, and a name that two third-party distributions share
must be written ``distribution:name``. ``ALIGN_PLUGINS`` restricts third-party plugins: ``auto`` (the default) allows all of
them, ``none`` none, and ``a,b`` those with these names or from these distributions.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from alignkit.contract.groups import GROUPS as GROUPS
from alignkit.contract.groups import Group as Group
from alignkit.contract.groups import problem_with
from alignkit.errors import PluginError, suggest

if TYPE_CHECKING:
    import click

    from alignkit.contract.commands import Report
    from alignkit.contract.suites import Suite
    from alignkit.contract.types import Method

BUILT_IN = "alignkit"
"""Name of the distribution whose plugins are built in."""

ALLOWED_VARIABLE = "ALIGN_PLUGINS"


@dataclass(frozen=True)
class PluginEntry:
    """One installed plugin as declared in its distribution's metadata."""

    name: str
    group: Group
    value: str
    distribution: str
    version: str
    summary: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        """The group's name in the singular: ``method``, ``suite``, ``command``."""
        return self.group.removeprefix("align.").removesuffix("s")

    @property
    def built_in(self) -> bool:
        """Whether the plugin comes with alignkit."""
        return _normalized(self.distribution) == BUILT_IN

    @property
    def blocked(self) -> bool:
        """Whether ``ALIGN_PLUGINS`` disables the plugin."""
        allowed = os.environ.get(ALLOWED_VARIABLE, "").strip() or "auto"
        if self.built_in or allowed == "auto":
            return False
        words = {word.strip() for word in allowed.split(",")}
        return self.name not in words and _normalized(self.distribution) not in {_normalized(word) for word in words}

    @property
    def qualified(self) -> str:
        """The unambiguous name: ``distribution:name``."""
        return f"{self.distribution}:{self.name}"

    def __str__(self) -> str:
        """Return ``method "orpo" (alignkit 0.1.0)``, for messages."""
        return f'{self.kind} "{self.name}" ({self.distribution} {self.version})'


@dataclass(frozen=True)
class Catalogue:
    """The plugins of one group, and the distributions that could not be read."""

    entries: tuple[PluginEntry, ...]
    unreadable: tuple[str, ...]
    """Distributions with unreadable entry points, each with the reason."""


def catalogue(group: Group) -> Catalogue:
    """Return every plugin of ``group``, built-in ones first, and the distributions whose entry points are unreadable."""
    found: list[PluginEntry] = []
    unreadable: list[str] = []
    for distribution in _distributions():
        # A distribution with damaged metadata must not hide the others.
        try:
            found += _entries_of(distribution, group)
        except Exception as error:
            unreadable.append(f"{_name_of(distribution)}: {type(error).__name__}: {error}")
    found.sort(key=lambda entry: (not entry.built_in, entry.name, entry.distribution))
    return Catalogue(tuple(found), tuple(unreadable))


def entries(group: Group) -> list[PluginEntry]:
    """Return every installed plugin of ``group``, built-in ones first, without importing any."""
    return list(catalogue(group).entries)


def usable(group: Group) -> dict[str, PluginEntry]:
    """Return the plugins of ``group`` that are not blocked, each under the name it is called by.

    That is ``distribution:name`` for a third-party plugin whose plain name is also a built-in's or another distribution's.
    """
    found = [entry for entry in entries(group) if not entry.blocked]
    count = Counter(entry.name for entry in found)
    return {entry.name if entry.built_in or count[entry.name] == 1 else entry.qualified: entry for entry in found}


def find(group: Group, name: str) -> PluginEntry:
    """Return the plugin called ``name`` (or ``distribution:name``) in ``group``.

    Raises:
        PluginError: the name is unknown, blocked, or shared by two third-party distributions.
    """
    installed = catalogue(group)
    matching = [entry for entry in installed.entries if _matches(entry, name)]
    allowed = [entry for entry in matching if not entry.blocked]
    if not matching:
        raise PluginError(_unknown(group, name, installed))
    if not allowed:
        raise PluginError(
            f"{matching[0]} is blocked by {ALLOWED_VARIABLE}={os.environ[ALLOWED_VARIABLE]}: "
            f"add {matching[0].name} to it, or unset it"
        )
    if len(allowed) > 1 and not allowed[0].built_in:
        offers = " and ".join(f"{entry.distribution} {entry.version}" for entry in allowed)
        choices = " or ".join(entry.qualified for entry in allowed)
        raise PluginError(f'{allowed[0].kind} "{name}" is provided by {offers}: write {choices}')
    return allowed[0]


def shadowed(entry: PluginEntry) -> list[PluginEntry]:
    """Return the usable third-party plugins whose plain name belongs to the built-in ``entry``."""
    others = entries(entry.group) if entry.built_in else []
    return [other for other in others if other.name == entry.name and not other.built_in and not other.blocked]


def load(entry: PluginEntry) -> Any:
    """Import the plugin and check that it is what its group requires.

    Raises:
        PluginError: it cannot be imported or used; names the plugin, its distribution, its version and the cause.
    """
    plugin = _import(entry, entry.value)
    if problem := problem_with(entry.group, entry.name, plugin):
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


def load_command(entry: PluginEntry) -> click.Command:
    """Import a command of ``align`` itself, not just its declaration; raises :class:`PluginError` as :func:`load` does."""
    import click

    target = load(entry).target
    command = _import(entry, target)
    if not isinstance(command, click.Command):
        raise PluginError(f"{entry} cannot be used: {target} is not a click command")
    return command


def load_report(name: str) -> Report | None:
    """Import the function that writes the report called ``name``; None where no installed package provides it."""
    entry = usable("align.reports").get(name)
    return None if entry is None else load(entry)


def _import(entry: PluginEntry, value: str) -> Any:
    try:
        return metadata.EntryPoint(entry.name, value, entry.group).load()
    except (Exception, SystemExit) as error:  # SystemExit: a module that calls exit() must not end the command
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        raise PluginError(f"{entry} cannot be loaded from {value}: {cause}") from error


# ------------------------------------------------------------------------------------------------- metadata


def _normalized(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distributions() -> Iterator[metadata.Distribution]:
    """Yield every installed distribution once: of two copies, the first on the path, which is the one Python imports."""
    seen = set()
    for distribution in metadata.distributions():
        name = _normalized(_name_of(distribution))
        if name not in seen:
            seen.add(name)
            yield distribution


def _name_of(distribution: metadata.Distribution) -> str:
    """Return the distribution's name, from its folder where possible: that works with missing or damaged files."""
    folder = getattr(distribution, "_path", None)
    if folder is not None and folder.name.endswith((".dist-info", ".egg-info")):
        return str(folder.name.rpartition(".")[0].partition("-")[0])
    return str(distribution.metadata["Name"])


def _entries_of(distribution: metadata.Distribution, group: Group) -> list[PluginEntry]:
    if f"[{group}]" not in (distribution.read_text("entry_points.txt") or ""):
        return []  # parsing every distribution's entry points would take most of the time of `align --help`
    points = [point for point in distribution.entry_points if point.group == group]
    about = distribution.metadata
    name = about["Name"] or _name_of(distribution)
    version, summary = about["Version"] or "unknown version", about["Summary"] or ""
    return [PluginEntry(point.name, group, point.value, name, version, summary) for point in points]


def _matches(entry: PluginEntry, name: str) -> bool:
    distribution, colon, plain = name.rpartition(":")
    if not colon:
        return entry.name == name
    return entry.name == plain and _normalized(entry.distribution) == _normalized(distribution)


def _unknown(group: Group, name: str, installed: Catalogue) -> str:
    plural = group.removeprefix("align.")
    known = [entry.name for entry in installed.entries] + [entry.qualified for entry in installed.entries]
    listing = "--help" if group == "align.commands" else plural
    message = f'unknown {plural[:-1]} "{name}"{suggest(name, known)} (align {listing} lists them)'
    if not known:
        message += f"; no {plural} are installed (if alignkit's own are missing, reinstall it)"
    if installed.unreadable:
        message += f"; distributions with unreadable entry points: {'; '.join(installed.unreadable)}"
    return message
