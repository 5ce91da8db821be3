"""JSON schemas of pydantic models as YAML is read into them: numbers written as text, both names of an aliased key, shorthands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.settings.messages import LARGEST
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

Schema = dict[str, Any]

_WHOLE = r"[0-9]+(_[0-9]+)*(\.0+)?"
_REAL = r"([0-9]+(_[0-9]+)*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
_YES_OR_NO = ("true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0")
_ANY_CASE = "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in word) for word in _YES_OR_NO)
_REWARD = {"$ref": "#/$defs/RewardSpec"}
_REWARD_OR_NAME = {"anyOf": [_REWARD, {"type": "string"}]}
_OWN_KEYWORDS = ("neutral", "elsewhere", "title")


class Accepted(GenerateJsonSchema):
    """Schemas of what pydantic converts to the type of a field, and the loader does not refuse afterwards."""

    def int_schema(self, schema: core_schema.IntSchema) -> Schema:
        """Return the schema of a whole number, which may be written as text."""
        return self._or_text(super().int_schema(schema), schema.get("strict"))

    def float_schema(self, schema: core_schema.FloatSchema) -> Schema:
        """Return the schema of a number, which may be written as text."""
        return self._or_text(super().float_schema(schema), schema.get("strict"))

    def bool_schema(self, schema: core_schema.BoolSchema) -> Schema:
        """Return the schema of true or false, also as yes, no, on, off, 1 or 0."""
        if self._config.strict:
            return super().bool_schema(schema)
        text = {"type": "string", "pattern": f"^({_ANY_CASE})$"}
        return {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, text]}

    def literal_schema(self, schema: core_schema.LiteralSchema) -> Schema:
        """Return the schema of the values of a Literal, in which Python does not tell 0 from false."""
        values = super().literal_schema(schema)
        same = [int(value) for value in schema["expected"] if isinstance(value, bool)]
        return {"enum": [*schema["expected"], *same]} if same else values

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        """Return the schema of a model, whose aliased fields may be given by their names if it says so."""
        made = super().model_schema(schema)
        cls = schema["cls"]
        return with_field_names(made, cls) if cls.model_config.get("populate_by_name") else made

    def _or_text(self, made: Schema, strict: bool | None) -> Schema:
        limits = {key: value for key, value in made.items() if key != "type"}
        return number(made["type"], limits, strict=bool(self._config.strict if strict is None else strict))


def number(kind: str, limits: Schema, *, strict: bool = False) -> Schema:
    """Return the schema of a number (``kind``: integer or number) within limits; unless ``strict``, it may be written as text."""
    largest = LARGEST[kind == "number"]
    upper = {} if limits.keys() & {"maximum", "exclusiveMaximum"} else {"maximum": largest}
    lower = {} if limits.keys() & {"minimum", "exclusiveMinimum"} else {"minimum": -largest}
    made = {"type": kind, **limits, **lower, **upper}
    if strict:
        return made
    positive = made.get("minimum", 0) > 0 or made.get("exclusiveMinimum", -1) >= 0
    sign = "[+]?" if positive or made.get("minimum", -1) >= 0 else "[-+]?"
    bounds = r"(?!\s*[+]?[0.]+([eE]|\s*$))" if positive else ""
    if 1 in (made.get("maximum"), made.get("exclusiveMaximum")):
        bounds += rf"(?!\s*[+]?0*({'[1-9]' if 'exclusiveMaximum' in made else '[2-9]|[1-9][0-9_]'})[0-9_.]*\s*$)"
    pattern = rf"^{bounds}\s*{sign}{_WHOLE if kind == 'integer' else _REAL}\s*$"
    return {**made, "type": [kind, "string"], "pattern": pattern}


def with_field_names(schema: Schema, cls: type[BaseModel]) -> Schema:
    """Return the schema of a model with every aliased field under its name as well; only one of the two may be given."""
    properties = dict(schema.get("properties", {}))
    required, rules = list(schema.get("required", [])), list(schema.get("allOf", []))
    for name, info in cls.model_fields.items():
        alias = info.alias
        if alias is None or alias == name or alias not in properties or name in properties:
            continue
        properties[name] = {**properties[alias], "description": f"same as {alias}: {info.description}"}
        rules.append({"not": {"required": [alias, name]}})
        if alias in required:
            required.remove(alias)
            rules.append({"anyOf": [{"required": [alias]}, {"required": [name]}]})
    made = {**schema, "properties": properties, "required": required, "allOf": rules}
    return {key: value for key, value in made.items() if value != []}


class Definitions:
    """The definitions of several schemas under distinct names."""

    def __init__(self) -> None:
        self.found: Schema = {}

    def schema_of(self, model: type[BaseModel]) -> Schema:
        """Return the schema of a model, whose definitions are kept here."""
        return self.adopt(model.model_json_schema(by_alias=True, schema_generator=Accepted))

    def adopt(self, schema: Schema) -> Schema:
        """Return a schema without its definitions, which are kept here, renamed if another one has the name."""
        definitions = schema.pop("$defs", {})
        names = {name: next(self._free(name, definition)) for name, definition in definitions.items()}
        for name, definition in definitions.items():
            self.found[names[name]] = _plain(definition, names)
        adopted: Schema = _plain(schema, names)
        return adopted

    def _free(self, name: str, definition: Schema) -> Iterator[str]:
        yield from (
            candidate
            for number in range(1, 1000)
            if self.found.get(candidate := name if number == 1 else f"{name}{number}") in (None, _plain(definition, {}))
        )


def _plain(schema: Any, names: Mapping[str, str], *, keyed: bool = False) -> Any:
    """Return a schema with renamed references, without titles and keywords of alignkit's own; ``keyed``: its keys are a user's."""
    if isinstance(schema, list):
        return [_plain(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    if schema.get("items") == _REWARD and not keyed:  # a list, or a single one, or names
        about = {"description": schema.get("description", "")}
        return about | {"anyOf": [_REWARD, {"type": "string"}, {"type": "array", "items": _REWARD_OR_NAME}]}
    for key, value in schema.items():
        if key == "$ref" and not keyed:
            name = value.rpartition("/")[2]
            made[key] = f"#/$defs/{names.get(name, name)}"
        elif keyed or key not in _OWN_KEYWORDS:
            exact = not keyed and key in ("default", "const", "enum", "examples")
            made[key] = value if exact else _plain(value, names, keyed=not keyed and key == "properties")
    return made
