"""The schemas of whole files: the configuration of a run, of a sweep with a race, and of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from alignkit.config import SHORTHANDS, RunConfig
from alignkit.contract import registry
from alignkit.errors import PluginError
from alignkit.settings.layers import SECTIONS
from alignkit.settings.train_keys import UNUSED

from alignkit_eval.comparison.looks import RaceSettings
from alignkit_eval.pipelines.stages import KINDS, STAGE_NAME
from alignkit_eval.schemas.accepted import Definitions, Schema
from alignkit_eval.schemas.keys import method_section, names_of, plugin_settings, reward_entry, train_keys

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest dialect that the YAML plugins of all editors read."""


def run_schema(method: str) -> Schema:
    """Return the schema of a configuration file for one method; raises :class:`PluginError` if it cannot be loaded."""
    definitions = Definitions()
    sections = _sections([method], definitions)
    return _file(f"align run: {method}", _object(sections, ["method"], _unused_keys([method])), definitions)


def whole_schema() -> Schema:
    """Return the schema of any file: a configuration for an installed method, or a pipeline."""
    definitions = Definitions()
    methods = list(registry.usable("align.methods"))
    sections = _sections(methods, definitions)
    unused = _unused_keys(methods)
    run = _object(sections | {"race": definitions.schema_of(RaceSettings)}, ["method"], unused)
    own = {
        "name": {
            "type": "string",
            "pattern": r"\S",
            "description": "name of the pipeline's directory (default: the file's)",
        },
        "output": {"description": "parent of the pipeline's directory (default: runs)"},
        "stages": {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": _stages(sections, definitions, unused)},
            "description": "stages, in order",
        },
    }
    shared = {name: section for name, section in sections.items() if name != "method"}
    pipeline = _object(own | shared, ["stages"])
    files = {"if": {"required": ["stages"]}, "then": pipeline, "else": run}
    return _file("alignkit: a configuration or a pipeline", files, definitions)


def _file(title: str, schema: Schema, definitions: Definitions) -> Schema:
    return {"$schema": DIALECT, "title": title, **schema, "$defs": definitions.found}


def _object(properties: Schema, required: list[str], rules: Sequence[Schema] = ()) -> Schema:
    made = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return made | ({"allOf": list(rules)} if rules else {})


def _sections(methods: list[str], definitions: Definitions) -> Schema:
    """Return the schema of every section, each a reference to a definition or a single word in its place."""
    whole, found = definitions.schema_of(RunConfig), definitions.found
    words = _add_methods(methods, definitions)
    found["TrainConfig"]["properties"] |= train_keys(tuple(UNUSED))
    found["TrainConfig"]["additionalProperties"] = False
    _add_suites(found["EvalConfig"]["properties"], definitions)
    if "RewardSpec" in found:
        found["RewardSpec"] = reward_entry(definitions)
    found["SourceConfig"] = {"anyOf": [found["SourceConfig"]["properties"]["source"], found["SourceConfig"]]}
    sections = {name: whole["properties"][name] for name in SECTIONS}
    for name, key in SHORTHANDS.items():
        about = {"description": found[f"{name.capitalize()}Config"]["description"]}
        word = words if name == "method" else found[f"{name.capitalize()}Config"]["properties"][key]
        sections[name] = about | {"anyOf": [word, {"$ref": f"#/$defs/{name.capitalize()}Config"}]}
    return sections


def _add_methods(methods: list[str], definitions: Definitions) -> Schema:
    """Define the section ``method``, and return the schema of the single word that may be in its place."""
    made, names = {}, []
    for method in methods:
        with suppress(*[PluginError] * (len(methods) > 1)):
            made[method] = method_section(method, definitions)
            names += made[method]["properties"]["name"]["enum"]
    about = definitions.found["MethodConfig"]["description"]
    if len(methods) == 1:
        section = made[methods[0]] | {"description": about}
    else:
        rules = []
        for method, section in made.items():
            definitions.found[f"method {method}"] = section
            chosen = {"required": ["name"], "properties": {"name": section["properties"]["name"]}}
            rules.append({"if": chosen, "then": {"$ref": f"#/$defs/method {method}"}})
        name = {"enum": names, "description": "installed method"}
        section = {
            "type": "object",
            "description": about,
            "required": ["name"],
            "properties": {"name": name},
            "allOf": rules,
        }
    definitions.found["MethodConfig"] = section
    return {"enum": names, "description": "the method, with its default settings"}


def _unused_keys(methods: list[str]) -> list[Schema]:
    """Return the rule that keys without effect on the engine's trainer are only for methods that bring their own."""
    own = []
    for method in methods:
        with suppress(PluginError):
            entry, method_type = registry.load_method(method)
            own += [entry.name, entry.qualified] if hasattr(method_type, "align_build_trainer") else []
    named = {"type": "object", "required": ["name"], "properties": {"name": {"enum": own}}}
    refused = {"properties": {"train": {"properties": dict.fromkeys(UNUSED, False)}}}
    bring_own = {"required": ["method"], "properties": {"method": {"anyOf": [{"enum": own}, named]}}}
    return [{"if": {"not": bring_own} if own else {}, "then": refused}]


def _add_suites(evaluation: Schema, definitions: Definitions) -> None:
    """Name the installed suites in the section ``eval``, with the settings of each."""
    suites = names_of("align.suites")
    listed = next(part for part in evaluation["suites"]["anyOf"] if part["type"] == "array")
    listed["items"] = suites
    word = next(part for part in evaluation["suites"]["anyOf"] if part["type"] == "string")
    word["pattern"] = rf"^[\s,]*(({'|'.join(suites['enum'])})\s*(,[\s,]*|$))*$".replace(".", "[.]")
    settings = plugin_settings("align.suites", definitions)
    qualified = {
        entry.qualified: settings[name] for name, entry in registry.usable("align.suites").items() if name in settings
    }
    evaluation["settings"] |= {"properties": settings | qualified, "additionalProperties": False}
    evaluation["during"] |= {"propertyNames": suites}


def _stages(sections: Schema, definitions: Definitions, unused: Sequence[Schema]) -> list[Schema]:
    """Return the schema of a stage of each installed kind."""
    name = {"type": "string", "pattern": f"^{STAGE_NAME}$", "description": "name of the stage, and of its directory"}
    made = []
    for kind, settings in plugin_settings("align.stages", definitions).items():
        own = settings.get("properties", {}) | {"name": name}
        own |= {
            key: section for key, section in sections.items() if key in own and not own[key].keys() & {"type", "anyOf"}
        }
        if kind == "eval":
            own["settings"] = definitions.found["EvalConfig"]["properties"]["settings"]
        qualified = registry.find("align.stages", kind).qualified
        own["stage"] = {"enum": [kind, qualified], "description": "kind of the stage (align stages lists them)"}
        required = [*settings.get("required", []), *(["method"] if kind == "train" else [])]
        required += [] if kind in KINDS.values() else ["stage"]
        made.append(_object(own, required, unused if kind == "train" else ()))
    return made
