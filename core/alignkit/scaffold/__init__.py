"""``align new-plugin``: a whole package around one working plugin, for its author to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.system.files import write_text

KINDS = ("method", "suite", "reward", "service", "command")
_TEMPLATES = Path(__file__).parent / "templates"


def new_plugin(name: str, kind: str, output: Path) -> Path:
    """Write the package ``alignkit-NAME`` below ``output`` and return its directory.

    Raises:
        ConfigError: the name cannot be a plugin's, or the directory exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(f"{name!r} cannot name a plugin: small letters, digits and single dashes, e.g. my-loss")
    directory = output / f"alignkit-{name}"
    if directory.exists():
        raise ConfigError(f"{directory} exists already")
    package = f"alignkit_{name.replace('-', '_')}"
    words: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "package": package,
        "cls": (cls := "".join(part.capitalize() for part in name.split("-"))),
        "object": "COMMAND" if kind == "command" else cls,
        "snake": name.replace("-", "_"),
    }
    for template in sorted([*(_TEMPLATES / "common").rglob("*.j2"), *(_TEMPLATES / kind).rglob("*.j2")]):
        inside = template.relative_to(_TEMPLATES).parts[1:]
        target = directory.joinpath(
            *(part.replace("PACKAGE", package).replace("NAME", words["snake"]) for part in inside)
        )
        write_text(target.with_suffix(""), _filled(template, words))
    return directory


def _filled(template: Path, words: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    # Python and YAML are full of braces: the templates use << >> and <% %>.
    environment = Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(words)
