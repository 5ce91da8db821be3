"""The installed plugins, found through entry-point metadata alone; a plugin is imported only when it is used.

A plain name refers to one plugin: built-in plugins always keep theirs, and a name that two third-party distributions share
must be written ``distribution:name``. ``ALIGN_PLUGINS`` restricts third-party plugins: ``auto`` (the default) allows all of
them, ``none`` none, and ``a,b`` those with these names or from these distributions.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.contract.groups import GROUPS as GROUPS
from alignkit.contract.groups import Group as Group
from alignkit.contract.groups import problem_with, singular
from alignkit.contract.guard import loading, running
from alignkit.errors import PluginError, described, suggest

if TYPE_CHECKING:
    import click

    from alignkit.config import RunConfig
    from alignkit.contract.engines import Engine
    from alignkit.contract.suites import Suite
    from alignkit.contract.types import Method

_COMMANDS = {"train": "run", "fit": "run", "test": "eval", "benchmark": "eval", "predict": "generate"}  # elsewhere
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
        return singular(self.group)

    @property
    def built_in(self) -> bool:
        return _normalized(self.distribution) == "alignkit"

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


class Catalogue(NamedTuple):
    """The plugins of one group, and the distributions whose entry points are unreadable, each with the reason."""

    entries: list[PluginEntry]
    unreadable: list[str]


def catalogue(group: Group) -> Catalogue:
    """Return every plugin of ``group``, built-in ones first, and the distributions whose entry points are unreadable."""
    found: list[PluginEntry] = []
    unreadable: list[str] = []
    for distribution, folder in _distributions().items():
        # A distribution with damaged metadata must not hide the others.
        try:
            found += _entries_of(distribution, folder, group)
        except Exception as error:
            unreadable.append(f"{distribution}: {described(error)}")
    found.sort(key=lambda entry: (not entry.built_in, entry.name, entry.distribution))
    return Catalogue(found, unreadable)


def entries(group: Group) -> list[PluginEntry]:
    """Return every installed plugin of ``group``, built-in ones first, without importing any."""
    return catalogue(group).entries


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
    with loading(f"{entry} cannot be used: {entry.value}"):
        problem = problem_with(entry.group, entry.name, plugin)
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


def open_engine(config: RunConfig) -> Engine:
    """Find, import and make the engine of a run."""
    engine: Engine = load(find("align.engines", config.run.engine))()
    return engine


def load_command(entry: PluginEntry) -> click.Command:
    """Import a command of ``align`` itself, not just its declaration; raises :class:`PluginError` as :func:`load` does."""
    import click

    target = load(entry).target
    command = _import(entry, target)
    if not isinstance(command, click.Command):
        raise PluginError(f"{entry} cannot be used: {target} is not a click command")
    return command


def provided(group: Group, name: str) -> Callable[..., Any] | None:
    """Import the function that an installed package provides as ``name``; None where none does."""
    entry = usable(group).get(name)
    if entry is None:
        return None
    function = load(entry)

    def run(*arguments: Any, **options: Any) -> Any:
        with running(f"{entry} failed"):
            return function(*arguments, **options)

    return run


def _import(entry: PluginEntry, value: str) -> Any:
    with loading(f"{entry} cannot be loaded from {value}"):
        return resolve_name(value.partition("[")[0].strip())


def _normalized(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distributions() -> dict[str, str]:
    """Return the metadata folder of every distribution with plugins by name: of two copies, the one that Python imports.

    A run asks dozens of times: folders are read again only when one has changed (times alone are too coarse to tell), and
    directly, because importing ``importlib.metadata`` takes as long as the rest of ``align --help``.
    """
    places = [place or "." for place in reversed(sys.path) if os.path.isdir(place or ".")]  # noqa: PTH112
    states = ((place, os.stat(place)) for place in places)  # noqa: PTH116
    return _read_path(tuple((place, at.st_ino, at.st_mtime_ns, at.st_nlink, at.st_size) for place, at in states))


@lru_cache(maxsize=1)
def _read_path(places: tuple[tuple[str, int, int, int, int], ...]) -> dict[str, str]:
    folders = {}
    for place, *_ in places:
        with suppress(OSError), os.scandir(place) as found:
            for entry in found:
                stem, _, suffix = entry.name.rpartition(".")
                if suffix in ("dist-info", "egg-info"):
                    folders[_normalized(stem.partition("-")[0])] = entry.path
    return {name: folder for name, folder in folders.items() if _has_plugins(folder)}


def _has_plugins(folder: str) -> bool:
    with suppress(OSError), open(f"{folder}/entry_points.txt", "rb") as file:
        return b"[align." in file.read()
    return False


def _entries_of(distribution: str, folder: str, group: Group) -> list[PluginEntry]:
    text = _read(f"{folder}/entry_points.txt")
    section = f"\n{text}".partition(f"\n[{group}]\n")[2].partition("\n[")[0]
    lines = [line for line in section.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return []
    headers = _read(f"{folder}/{'METADATA' if folder.endswith('.dist-info') else 'PKG-INFO'}").partition("\n\n")[0]
    about = dict(line.split(": ", 1) for line in headers.splitlines() if ": " in line)
    origin = (about.get("Name", distribution), about.get("Version", "unknown version"), about.get("Summary", ""))
    points = (line.split("=", 1) for line in lines)
    return [PluginEntry(name.strip(), group, value.strip(), *origin) for name, value in points]


def _read(file: str) -> str:
    with open(file, encoding="utf-8") as stream:
        return stream.read()


def _matches(entry: PluginEntry, name: str) -> bool:
    distribution, colon, plain = name.rpartition(":")
    return entry.name == plain and (not colon or _normalized(entry.distribution) == _normalized(distribution))


def _unknown(group: Group, name: str, installed: Catalogue) -> str:
    plural = group.removeprefix("align.")
    known = [entry.name for entry in installed.entries] + [entry.qualified for entry in installed.entries]
    listed = "methods losses suites rewards services schedulers stages".split()
    listing = "--help" if group == "align.commands" else plural if plural in listed else "plugins"
    if group == "align.methods" and name in usable("align.losses"):
        return f'unknown method "{name}": it is a loss, add --set loss={name} to a method with losses (align losses)'
    if group == "align.commands" and name in usable("align.methods"):
        return f'unknown command "{name}": it is a method, write align run --method {name}'
    near = suggest(_COMMANDS.get(name, name) if group == "align.commands" else name, known)
    message = f'unknown {singular(group)} "{name}"{near} (align {listing} lists them)'
    if not known:
        message += f"; no {plural} are installed (if alignkit's own are missing, reinstall it)"
    if installed.unreadable:
        message += f"; distributions with unreadable entry points: {'; '.join(installed.unreadable)}"
    return message
