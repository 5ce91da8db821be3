"""What a plugin says of itself, read from its source: the first sentence of its docstring. No plugin is imported."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_DEEPEST = 5
"""Maximum number of modules that re-export a name from one another."""


def description(target: str) -> str:
    """Return the first sentence of the docstring of ``package.module:name``; empty where there is none, or no source."""
    module, _, name = target.partition("[")[0].strip().partition(":")
    _, found = defined(module, name.partition(".")[0])
    if isinstance(found, ast.ClassDef | ast.FunctionDef):
        return _sentence(ast.get_docstring(found) or "")
    return _sentence(found) if isinstance(found, str) else ""


def defined(module: str, name: str) -> tuple[str, ast.stmt | str | None]:
    """Return the module that defines a name that ``module`` defines or imports, and the statement, or the docstring below it."""
    found = None
    for _ in range(_DEEPEST):
        found = _definition(module, name)
        if not isinstance(found, ast.ImportFrom) or found.level:
            break
        renamed = {alias.asname or alias.name: alias.name for alias in found.names}
        module, name = found.module or "", renamed[name]
    return module, found


def _definition(module: str, name: str) -> ast.stmt | str | None:
    """Return the statement that defines or imports a name at the top of a module, or the docstring below an assignment."""
    body = _statements(module)
    for statement, following in zip(body, [*body[1:], None], strict=False):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return statement
        if isinstance(statement, ast.ImportFrom) and name in [alias.asname or alias.name for alias in statement.names]:
            return statement
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if name in [target.id for target in targets if isinstance(target, ast.Name)]:
            text = following.value if isinstance(following, ast.Expr) else None
            return str(text.value) if isinstance(text, ast.Constant) else ""
    return None


def assigned(module: str, name: str) -> ast.expr | None:
    """Return the value that is assigned to a name at the top of a module, or of the one that it is imported from."""
    for statement in _statements(module):
        if isinstance(statement, ast.Assign) and name in [ast.unparse(target) for target in statement.targets]:
            return statement.value
        if isinstance(statement, ast.ImportFrom) and not statement.level:
            for alias in statement.names:
                if name == (alias.asname or alias.name):
                    return assigned(statement.module or "", alias.name)
    return None


@cache
def _statements(module: str) -> list[ast.stmt]:
    source = source_of(module)
    try:
        body = ast.parse(source.read_bytes()).body if source else []
    except (OSError, SyntaxError, ValueError):
        return []
    return [inner for each in body for inner in (each.body if isinstance(each, ast.If) else [each])]


def source_of(module: str) -> Path | None:
    """Return the file of a module, found without importing its packages."""
    places: list[str] | None = None
    spec = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), places if count > 1 else sys.path)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _sentence(text: str) -> str:
    """Return the first sentence of a docstring as plain text, without its full stop."""
    first = " ".join(text.partition("\n\n")[0].split()).replace("``", "").replace("`", "")
    end = first.find(". ")
    return (first if end < 0 else first[:end]).removesuffix(".")
