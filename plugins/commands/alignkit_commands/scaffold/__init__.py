"""Create a complete package with one working plugin, as a starting point for its author."""

from __future__ import annotations

import re
from pathlib import Path

from alignkit.errors import ConfigError
from alignkit.system.files import write_text

KINDS = ("method", "loss", "suite", "reward", "service", "rule", "command", "scheduler", "stage")
_TEMPLATES = Path(__file__).parent / "templates"


def new_plugin(name: str, kind: str, output: Path) -> Path:
    """Write the package ``alignkit-NAME`` to a new directory in ``output`` and return that directory.

    Raises:
        ConfigError: the name is not valid for a plugin, or the directory exists.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"{name!r} is not a plugin name: use lower-case letters, digits and single dashes, e.g. my-loss"
        )
    directory = output / f"alignkit-{name}"
    if directory.exists():
        raise ConfigError(f"{directory} already exists")
    snake, cls = name.replace("-", "_"), "".join(map(str.capitalize, name.split("-")))
    package = f"alignkit_{snake}"
    # The templates use << >> and <% %>, because Python and YAML contain many braces.
    environment = Environment(
        loader=FileSystemLoader([_TEMPLATES / kind, _TEMPLATES / "common"]),
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    for template in environment.list_templates():
        target = directory / template.replace("PACKAGE", package).replace("NAME", snake).removesuffix(".j2")
        text = environment.get_template(template).render(name=name, kind=kind, package=package, snake=snake, cls=cls)
        write_text(target, text)
    return directory
