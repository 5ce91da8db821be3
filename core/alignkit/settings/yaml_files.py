"""Reading and writing YAML 1.2: duplicate keys are errors, and the line of every key is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import ConfigError
from alignkit.settings.layers import KeyPath, Layer
from alignkit.system.files import read_regular
from alignkit.system.trust import mention

MOST_VALUES = 100_000
"""Maximum number of values in a configuration, those repeated by aliases counted each time."""

DEEPEST = 32
"""Maximum nesting of a configuration."""

LONGEST_INTEGER = 40
"""Maximum digits of an integer: more are a mistake, and Python needs quadratic time to read them."""

_TAG = "tag:yaml.org,2002:"
_LINE_BREAK = re.compile("[\r\n\x85\u2028\u2029]")

# The core schema of YAML 1.2 (section 10.3.2). PyYAML follows YAML 1.1, in which 1e-4 is text, `no` is false and 1:30 is 90.
# Each line: tag, pattern, and possible first characters ("" for an empty scalar).
_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, beginnings in _CORE_SCHEMA:
        for character in beginnings:
            table.setdefault(character, []).append((_TAG + tag, re.compile(rf"^(?:{pattern})\Z")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    """Writes YAML that :class:`_Loader` reads back unchanged: text that looks like a number is quoted."""

    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, _data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """Double-quote text with a line break of any kind: otherwise YAML folds some of them into spaces."""
        return self.represent_scalar(_TAG + "str", text, style='"' if _LINE_BREAK.search(text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def read(path: Path) -> Layer:
    """Read a configuration file.

    Raises :class:`ConfigError`, with the line, if the file is missing, not valid YAML, not a mapping, or repeats a key.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        hint = f": did you mean {path / 'run.yaml'}?" if (path / "run.yaml").is_file() else ", not a file"
        raise ConfigError(f"{path} is a directory{hint}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a configuration: it is not UTF-8 text") from error
    node = _compose(text, str(path))
    reader = _Reader(str(path))
    values = None if node is None else reader.build(node, ())
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}:1: a configuration must be a mapping of sections, such as `method: orpo`")
    return Layer(values or {}, reader.places, default_place=str(path))


def parse_value(text: str) -> Any:
    """Return a command-line value: a number, true, false, null, a YAML list or mapping, or text.

    Raises :class:`ConfigError` for a value that is too large or too deeply nested, or repeats a key.

    >>> parse_value("1e-4"), parse_value("[a, 2]"), parse_value("no")
    (0.0001, ['a', 2], 'no')
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        try:
            node = _compose(text, "")
            return None if node is None else _Reader("").build(node, ())
        except _NotYAMLError:
            return text  # a Jinja template or a regular expression
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    try:
        return _scalar(tag, text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def write(values: Mapping[str, Any]) -> str:
    """Return ``values`` as YAML that :func:`read` reads back unchanged."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _NotYAMLError(ConfigError):
    """Text that is not valid YAML, or uses a mapping as a key."""


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise _NotYAMLError(f"{place}: invalid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: {_TOO_DEEP}".removeprefix(": ")) from error


_TOO_DEEP = f"the values are nested more than {DEEPEST} deep"


class _Reader:
    """Converts YAML nodes to values and records the line of every key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[KeyPath, str] = {}
        self._open: set[int] = set()
        self._values = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places.setdefault(path, self._place(node))
        self._values += 1
        if self._values > MOST_VALUES:
            raise self._problem(node, f"the configuration has more than {MOST_VALUES:,} values, aliases expanded")
        if isinstance(node, yaml.ScalarNode):
            try:
                value = _scalar(node.tag, node.value)
                mention(f"{path[-1] if path else ''}: {value}", f"{self._place(node)}: {'.'.join(path)}")
                return value
            except ValueError as error:
                raise self._problem(node, str(error)) from error
        if id(node) in self._open:
            raise self._problem(node, "this alias is inside its own anchor")
        if len(self._open) >= DEEPEST:
            raise self._problem(node, _TOO_DEEP)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self._problem(node, _unknown_tag(node.tag))
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            values: Any = [self.build(item, (*path, str(i))) for i, item in enumerate(node.value)]
        else:
            values = self._mapping(node, path)
        self._open.remove(id(node))
        return values

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._problem(key_node, "a key must be a single word", _NotYAMLError)
            key = str(key_node.value)
            if key in values:
                raise self._problem(key_node, f"{'.'.join((*path, key))} is given twice")
            self.places[*path, key] = self._place(key_node)
            values[key] = self.build(value_node, (*path, key))
        return values

    def _place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def _problem(self, node: yaml.Node, message: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        return kind(f"{self._place(node)}: {message}" if self.name else message)


def _scalar(tag: str, text: str) -> Any:
    """Return the value of a scalar; raises ValueError for a tag outside the core schema."""
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) > LONGEST_INTEGER:
            raise ValueError(f"an integer of {len(text):,} digits is too large")
        case "int":
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return text
        case other:
            raise ValueError(_unknown_tag(other))


def _unknown_tag(tag: str) -> str:
    return f"the tag !!{tag.removeprefix(_TAG)} is not supported"
