"""Runs of a sweep that were trained with something else than a cell is trained with now: defaults and code change between two calls."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from alignkit import RunConfig
from alignkit.contract import registry
from alignkit.contract.registry import provided
from alignkit.rundir.directory import RunDir
from alignkit.system.code import is_library
from alignkit.system.files import digest

from alignkit_eval.sweeps.grid import SweepCell

FOLDER = "earlier"
"""Folder of a sweep with the runs that were trained anew."""

_HARMLESS = re.compile(r"run\.(?!seed$|engine$|services$)")
"""Keys that a cell need not share with its run: where it is, and how it is spread over processes."""


def trained_otherwise(planned: Sequence[SweepCell], codes: Mapping[str, str | None]) -> dict[str, list[SweepCell]]:
    """Return the cells whose runs were trained with other settings or code than they would be now, by what differs.

    Args:
        planned: cells with their configurations as they are resolved now.
        codes: digest of the code (:func:`code_of_objective`) by cell, where it is known.
    """
    compare, found = provided("align.checks", "changes"), dict[str, list[SweepCell]]()
    for cell in planned:
        if not (cell.directory / "run.json").is_file():
            continue
        changes = compare(RunDir(cell.directory), cell.config) if compare else []
        said = [
            f"{key} was {_shown(old)} and is {_shown(new)} now" for key, old, new in changes if not _HARMLESS.match(key)
        ]
        if not said and codes.get(cell.name) not in (None, code_of_objective(cell.config)):
            said = [f"the code of {cell.config.method.name} or of what it uses has changed"]
        if said:
            found.setdefault("; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else ""), []).append(
                cell
            )
    return found


def set_aside(directory: Path, otherwise: Mapping[str, Sequence[SweepCell]]) -> list[str]:
    """Move the runs of cells that are trained anew to :data:`FOLDER`, and return a note for each reason."""
    notes = []
    for reason, cells in otherwise.items():
        for cell in cells:
            places = (directory / FOLDER / f"{cell.name}{'' if n == 1 else f'-{n}'}" for n in range(1, 10_000))
            place = next(place for place in places if not place.exists())
            place.parent.mkdir(exist_ok=True)
            cell.directory.rename(place)
        names = ", ".join(cell.name for cell in cells)
        notes.append(
            f"trained anew: {names}, because since then {reason} (what was trained before is in {directory / FOLDER})"
        )
    return notes


def code_of_objective(config: RunConfig) -> str:
    """Return a digest of the code of a configuration's method, losses and functions in files, without comments and docstrings.

    It covers the modules of their packages that they import, alignkit's own and installed libraries apart.
    """
    settings = config.method.settings
    chosen = settings.get("loss")
    losses = [*chosen] if isinstance(chosen, Mapping) else [chosen] if isinstance(chosen, str) else []
    entries = [registry.find("align.methods", config.method.name)]
    known = registry.usable("align.losses")
    entries += [known[name] for name in losses if name in known]
    starts = tuple(sorted({entry.value.partition(":")[0] for entry in entries}))
    files = re.findall(r"[\'\"]([^\'\"]+\.py)(?=[:\'\"])", repr(settings))
    return digest([starts, _code(starts), [_stripped(Path(f)) for f in files if Path(f).is_file()]])[:12]


@cache
def _code(starts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the modules that these import, themselves included, each with the digest of its code."""
    own = {name.partition(".")[0] for name in starts}
    waiting, found = [*starts], dict[str, str]()
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        spec = None
        if name not in found and top not in ("alignkit", "alignkit_eval"):
            with suppress(ImportError, ValueError, AttributeError):
                spec = find_spec(name)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        if top in own or not is_library(spec.origin):
            found[name] = _stripped(Path(spec.origin))
            waiting += _imported(
                Path(spec.origin), name if spec.submodule_search_locations else name.rpartition(".")[0]
            )
    return sorted(found.items())


def _imported(file: Path, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):
                module = resolve_name("." * node.level + (node.module or ""), package)
                yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def _stripped(file: Path) -> str:
    """Return the digest of a file's code without comments and docstrings; of its bytes where it cannot be parsed."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return hashlib.sha256(file.read_bytes()).hexdigest()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a text alone is a docstring or a comment
            node.body = [one for one in body if not (isinstance(one, ast.Expr) and _is_text(one.value))]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
