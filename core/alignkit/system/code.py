"""Digests of the code that a kept result depends on."""

from __future__ import annotations

import hashlib
import inspect
import re
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from alignkit.system.files import digest

_IMPORT = re.compile(rb"^\s*(?:from\s+(\w+)|import\s+(\w.*))", re.MULTILINE)
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@cache
def code_of(module: str) -> str:
    """Return a digest of the top-level package of a module or entry point, and of what it imports.

    Installed libraries are left out: their versions are known.
    """
    if (first := re.split("[.:]", module)[0]) != module:
        return code_of(first)
    waiting, found = [first], dict[str, list[str]]()
    while waiting:
        if (package := waiting.pop()) in found:
            continue
        found[package] = []
        for source in (file.read_bytes() for file in source_files(package, libraries=len(found) == 1)):
            found[package].append(hashlib.sha256(source).hexdigest())
            for one, several in _IMPORT.findall(source):
                names = (one or several).decode("ascii", "replace").split(",")
                waiting += [word for name in names for word in name.replace(".", " ").split()[:1]]
    return digest(sorted(found.items()))[:12]


def source_files(package: str, *, libraries: bool = True) -> list[Path]:
    """Return the source files of a top-level package or module, none of an installed one unless ``libraries``."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return []
    folders = [str(folder) for folder in spec.submodule_search_locations or []] if spec else []
    places = folders or ([spec.origin] if spec and spec.has_location and spec.origin else [])
    if not libraries and any(map(is_library, places)):
        return []
    found = sorted(file for folder in folders for file in Path(folder).rglob("*.py")) or map(Path, places)
    return [file for file in found if file.is_file()]


def is_library(place: str) -> bool:
    """Whether a file or folder belongs to Python or to an installed library."""
    return place.startswith(_LIBRARIES) or "site-packages" in place


def code_beside(kind: type) -> list[str]:
    """Return digests of the Python files beside that of a class; none for a class of a library."""
    if kind.__module__.partition(".")[0] in ("transformers", "peft", "tokenizers"):
        return []
    folder = Path(inspect.getfile(kind)).parent
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.py"))]
