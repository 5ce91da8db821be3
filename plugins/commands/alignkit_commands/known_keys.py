"""The keys of ``--set`` and their values, read from the source of the sections, methods and transformers without importing them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from functools import cache

from alignkit.contract import registry

from alignkit_commands.descriptions import assigned, defined, source_of

CONFIG = "alignkit.config"
_DEEPEST = 3


def keys_of(section: str | None, method: str | None, losses: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the keys of a section with their descriptions; without one, sections and the settings of the method and its losses."""
    if section is None:
        for name, field in _fields(CONFIG, "RunConfig"):
            yield f"{name}.", _about(field)
        yield from ((_alias(field) or name, _about(field)) for name, field in _settings(method, losses))
    elif section == "train":
        yield from ((f"train.{name}", _about(field)) for name, field in _train())
    else:
        yield from ((path, _about(field)) for path, field in _nested(section))


def values_of(key: str, method: str | None, losses: Sequence[str] = ()) -> list[str]:
    """Return the values that a key can have, where they can be listed."""
    if key in ("loss", "method.loss"):
        return list(registry.usable("align.losses"))
    if key == "method":
        return list(registry.usable("align.methods"))
    if key == "eval.suites":
        return list(registry.usable("align.suites"))
    section = key.partition(".")[0] if "." in key else None
    fields = _settings(method, losses) if section is None else _train() if section == "train" else _nested(section)
    for name, field in fields:
        if key in (name, f"train.{name}", _alias(field)):
            names = [node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name)]
            texts = [
                n.value for n in ast.walk(field.annotation) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            return ["true", "false"] if "bool" in names else texts if "Literal" in names else []
    return []


def _nested(section: str) -> Iterator[tuple[str, ast.AnnAssign]]:
    """Yield the dotted keys of a section, those of sections in it as well."""
    kinds = dict(_fields(CONFIG, "RunConfig"))
    if section in kinds:
        yield from _of_section(kinds[section].annotation, section, _DEEPEST)


def _of_section(annotation: ast.expr, prefix: str, depth: int) -> Iterator[tuple[str, ast.AnnAssign]]:
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and depth:
            for name, field in _fields(CONFIG, node.id):
                yield f"{prefix}.{name}", field
                if "list" not in ast.unparse(field.annotation):
                    yield from _of_section(field.annotation, f"{prefix}.{name}", depth - 1)


def _train() -> Iterator[tuple[str, ast.AnnAssign]]:
    """Yield the keys of ``train:``, those of transformers that can be set among them."""
    config = source_of(CONFIG)
    owned = json.loads((config.parent / "settings" / "owned_keys.json").read_bytes()) if config else {}
    unset = {key for keys in owned.values() for key in keys.split()}
    yield from _fields(CONFIG, "TrainConfig")
    for name, field in _fields("transformers.training_args", "TrainingArguments"):
        if name not in unset and not name.startswith("_"):
            yield name, field


def _settings(method: str | None, losses: Sequence[str]) -> Iterator[tuple[str, ast.AnnAssign]]:
    """Yield the settings of a method, and those of the losses that it is given, or else has."""
    entry = registry.usable("align.methods").get(method or "")
    module, _, name = entry.value.partition(":") if entry else ("", "", "")
    module, found = defined(module, name)
    if not isinstance(found, ast.ClassDef):
        return
    for statement in found.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "settings_type":
            roots = [node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)]
            fields = dict(_fields(module, roots[0])) if roots else {}
            for name in (losses or _first(module, roots[0])) if "loss" in fields else ():
                fields = dict(_of_loss(name)) | fields
            yield from fields.items()


def _first(module: str, name: str) -> tuple[str, ...]:
    """Return the loss that a class of settings has by default."""
    module, found = defined(module, name)
    for statement in found.body if isinstance(found, ast.ClassDef) else ():
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "first":
            return (str(ast.literal_eval(statement.value)),)
    return ()


def _of_loss(name: str) -> Iterator[tuple[str, ast.AnnAssign]]:
    """Yield the settings of a loss: the keyword-only arguments of its function."""
    entry = registry.usable("align.losses").get(name)
    module, _, function = entry.value.partition(":") if entry else ("", "", "")
    module, found = defined(module, function)
    for argument in found.args.kwonlyargs if isinstance(found, ast.FunctionDef) else ():
        kind = argument.annotation
        kind = (assigned(module, kind.id) or kind) if isinstance(kind, ast.Name) else kind
        value = None
        if (
            isinstance(kind, ast.Subscript)
            and ast.unparse(kind.value) == "Annotated"
            and isinstance(kind.slice, ast.Tuple)
        ):
            kind, value = kind.slice.elts[:2]
        if kind is not None:
            yield argument.arg, ast.AnnAssign(ast.Name(argument.arg), kind, value, simple=1)


@cache
def _fields(module: str, name: str) -> tuple[tuple[str, ast.AnnAssign], ...]:
    """Return the annotated fields of a class, its bases' first."""
    module, found = defined(module, name)
    if not isinstance(found, ast.ClassDef):
        return ()
    made: dict[str, ast.AnnAssign] = {}
    for base in found.bases:
        made |= dict(_fields(module, base.id)) if isinstance(base, ast.Name) else {}
    for field in found.body:
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and "ClassVar" not in ast.unparse(field.annotation)
        ):
            made[field.target.id] = field
    return tuple(made.items())


def _argument(field: ast.AnnAssign, name: str) -> str:
    keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
    values = [keyword.value for keyword in keywords if keyword.arg == name]
    return str(values[0].value) if values and isinstance(values[0], ast.Constant) else ""


def _alias(field: ast.AnnAssign) -> str:
    return _argument(field, "alias")


def _about(field: ast.AnnAssign) -> str:
    return " ".join(_argument(field, "description").split())
