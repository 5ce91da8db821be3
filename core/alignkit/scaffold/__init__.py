"""Create a complete package with one working plugin, as a starting point for its author."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.system.files import write_text

KINDS = ("method", "suite", "reward", "service", "command")
_TEMPLATES = Path(__file__).parent / "templates"


def new_plugin(name: str, kind: str, output: Path) -> Path:
    """Write the package ``alignkit-NAME`` to a new directory in ``output`` and return that directory.

    Raises:
        ConfigError: the name is not valid for a plugin, or the directory exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"{name!r} is not a plugin name: use lower-case letters, digits and single dashes, e.g. my-loss"
        )
    directory = output / f"alignkit-{name}"
    if directory.exists():
        raise ConfigError(f"{directory} already exists")
    package = f"alignkit_{name.replace('-', '_')}"
    values: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "package": package,
        "cls": (cls := "".join(part.capitalize() for part in name.split("-"))),
        "object": "COMMAND" if kind == "command" else cls,
        "snake": name.replace("-", "_"),
    }
    for template in sorted([*(_TEMPLATES / "common").rglob("*.j2"), *(_TEMPLATES / kind).rglob("*.j2")]):
        path = "/".join(template.relative_to(_TEMPLATES).parts[1:])
        target = directory / path.replace("PACKAGE", package).replace("NAME", values["snake"]).removesuffix(".j2")
        write_text(target, _render(template, values))
    return directory


def _render(template: Path, values: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    # The templates use << >> and <% %>, because Python and YAML contain many braces.
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
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
