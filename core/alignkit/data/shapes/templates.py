"""Columns computed from other columns by sandboxed Jinja templates (``data.template``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from alignkit.contract.rows import RawRows
from alignkit.errors import ConfigError, DataError, first_line


def fill(raw: RawRows, templates: Mapping[str, str]) -> RawRows:
    """Return the rows with one more column per template over the source's columns, e.g. ``Q: {{ question }}``.

    Raises:
        ConfigError: a template is not valid Jinja.
        DataError: a row lacks a column used by a template; the message names file and line.
    """
    if not templates:
        return raw
    from jinja2 import TemplateError

    compiled = {name: _compiled(name, text) for name, text in templates.items()}
    rows = []
    for position, row in enumerate(raw.rows):
        try:
            made = {name: template.render(row) for name, template in compiled.items()}
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(f"{raw.where(position)}: data.template: {first_line(error)}") from None
        rows.append({**row, **made})
    return RawRows(rows, raw.where, raw.source)


@lru_cache(maxsize=32)
def _compiled(name: str, text: str) -> Any:
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise ConfigError(f"data.template.{name}: {first_line(error)}") from None
