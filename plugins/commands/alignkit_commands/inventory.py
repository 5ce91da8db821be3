"""Every installed plugin with its state. Each is imported; errors are reported per plugin and do not affect the others."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.contract import registry
from alignkit.contract.checks import check_hooks, implementations
from alignkit.contract.commands import Command
from alignkit.contract.groups import singular
from alignkit.contract.guard import loading
from alignkit.errors import AlignError, ConfigError, suggest

_QUICK = "not learns and not resume and not trains"


class Plugin(NamedTuple):
    """An installed plugin; ``state`` is ok, broken (with the cause) or blocked."""

    kind: str
    name: str
    distribution: str
    version: str
    built_in: bool
    state: str
    hooks: tuple[str, ...]
    cause: str = ""


def inventory() -> list[Plugin]:
    """Return every plugin of every group, and the distributions whose entry points cannot be read."""
    found = []
    for group in registry.GROUPS:
        catalogue = registry.catalogue(group)
        found += [_inspect(entry) for entry in catalogue.entries]
        for cause in catalogue.unreadable:
            name = cause.partition(":")[0]
            found.append(Plugin(singular(group), "-", name, "-", False, "broken", (), cause))
    return found


def _inspect(entry: registry.PluginEntry) -> Plugin:
    about = (entry.kind, entry.name, entry.distribution, entry.version, entry.built_in)
    if entry.blocked:
        return Plugin(*about, "blocked", (), f"by {registry.ALLOWED_VARIABLE}")
    hooks: tuple[str, ...] = ()
    try:
        with loading(f"{entry} cannot be inspected"):
            plugin: Any = registry.load(entry)
            if isinstance(plugin, Command):
                registry.load_command(entry)
            elif entry.group in ("align.methods", "align.services"):
                # Hooks are looked up on an instance, as in a run; it needs no settings for that.
                instance = object.__new__(plugin) if isinstance(plugin, type) else plugin
                hooks = tuple(sorted({found.hook for found in implementations(instance)}))
                check_hooks(entry, instance)
    except AlignError as error:
        return Plugin(*about, "broken", (), str(error))
    return Plugin(*about, "ok", hooks)


def quick_check(name: str, kind: str | None) -> int:
    """Run the quick conformance tests on an installed plugin and return pytest's exit code.

    Raises:
        ConfigError: there is no such plugin, plugins of two kinds share the name, or pytest is not installed.
    """
    if find_spec("pytest") is None:
        raise ConfigError("align plugins check needs pytest: pip install pytest")
    without = (
        "report",
        "sampler",
        "format",
        "launcher",
        "check",
        "source",
        "callback",
    )  # kinds that have no conformance tests
    checked = [e for group in registry.GROUPS for e in registry.entries(group) if e.kind not in without]
    kinds = list(dict.fromkeys(e.kind for e in checked if name in (e.name, e.qualified) and kind in (None, e.kind)))
    if not kinds:
        raise ConfigError(f"there is no plugin {name}{suggest(name, sorted({entry.name for entry in checked}))}")
    if len(kinds) > 1:
        raise ConfigError(f"{name} is a {' and a '.join(kinds)}: choose one with --kind")
    base, extra = f"{kinds[0].capitalize()}Conformance", ""
    if kinds[0] == "method":
        hooks = {found.hook for found in implementations(registry.load_method(name)[1])}
        extra = '    capabilities = frozenset({"external"})\n' if "align_build_trainer" in hooks else ""
    source = f"from alignkit.testing import {base}\n\n\nclass TestPlugin({base}):\n    name = {name!r}\n{extra}"
    with tempfile.TemporaryDirectory(prefix="align-check-") as directory:
        file = Path(directory) / "test_plugin.py"
        file.write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", _QUICK, "--rootdir", directory]
        return subprocess.run([*command, str(file)], cwd=directory, check=False).returncode
