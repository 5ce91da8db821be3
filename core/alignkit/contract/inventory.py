"""Every installed plugin with the state it is in: each is imported, and whatever that raises is its own affair."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.contract import registry
from alignkit.contract.checks import check_plugin_hooks, implementations
from alignkit.errors import AlignError, ConfigError

_CLASSES = {
    "method": "MethodConformance",
    "suite": "SuiteConformance",
    "reward": "RewardConformance",
    "service": "ServiceConformance",
}
_SLOW = "not learns and not resume and not trains"


class Plugin(NamedTuple):
    """An installed plugin: ``state`` is ok, broken (with the cause) or blocked."""

    kind: str
    name: str
    distribution: str
    version: str
    built_in: bool
    state: str
    hooks: tuple[str, ...]
    cause: str = ""


def inventory() -> list[Plugin]:
    """Return every plugin of every group, and distributions whose entry points cannot be read."""
    found = []
    for group in registry.GROUPS:
        catalogue = registry.catalogue(group)
        found += [_look(entry) for entry in catalogue.entries]
        for cause in catalogue.unreadable:
            name = cause.partition(":")[0]
            found.append(Plugin(group.removeprefix("align.")[:-1], "-", name, "-", False, "broken", (), cause))
    return found


def _look(entry: registry.PluginEntry) -> Plugin:
    about = (entry.kind, entry.name, entry.distribution, entry.version, entry.built_in)
    if entry.blocked:
        return Plugin(*about, "blocked", (), f"by {registry.ALLOWED_VARIABLE}")
    try:
        plugin: Any = registry.load(entry)
        hooks: tuple[str, ...] = ()
        if entry.group in ("align.methods", "align.services"):
            # Hooks are looked at on an object, as in a run; one without its settings will do.
            looked_at = object.__new__(plugin) if isinstance(plugin, type) else plugin
            hooks = tuple(sorted({found.hook for found in implementations(looked_at)}))
            check_plugin_hooks(entry, looked_at)
    except AlignError as error:
        return Plugin(*about, "broken", (), str(error))
    except Exception as error:
        return Plugin(*about, "broken", (), f"{type(error).__name__}: {error}")
    return Plugin(*about, "ok", hooks)


def quick_check(name: str, kind: str | None) -> int:
    """Run the quick part of the conformance kit on a plugin and return pytest's exit code.

    Raises:
        ConfigError: there is no such plugin, two kinds share its name, or pytest is not installed.
    """
    if find_spec("pytest") is None:
        raise ConfigError("align plugins check needs pytest: pip install pytest")
    kinds = [
        entry.kind
        for group in registry.GROUPS
        for entry in registry.entries(group)
        if name in (entry.name, entry.qualified) and kind in (None, entry.kind)
    ]
    kinds = list(dict.fromkeys(kinds))
    if len(kinds) != 1:
        known = sorted({entry.name for group in registry.GROUPS for entry in registry.entries(group)})
        from alignkit.errors import suggest

        said = f"{name} is a {' and a '.join(kinds)}: say which with --kind" if kinds else f"there is no plugin {name}"
        raise ConfigError(said + ("" if kinds else suggest(name, known)))
    base = _CLASSES[kinds[0]]
    extra = '    capabilities = frozenset({"external"})\n' if kinds[0] == "method" and _external(name) else ""
    source = f"from alignkit.testing import {base}\n\n\nclass TestPlugin({base}):\n    name = {name!r}\n{extra}"
    with tempfile.TemporaryDirectory(prefix="align-check-") as directory:
        file = Path(directory) / "test_plugin.py"
        file.write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", _SLOW, "--rootdir", directory]
        return subprocess.run([*command, str(file)], cwd=directory, check=False).returncode


def _external(name: str) -> bool:
    plugin = registry.load_method(name)[1]
    return any(found.hook == "align_build_trainer" for found in implementations(plugin))
