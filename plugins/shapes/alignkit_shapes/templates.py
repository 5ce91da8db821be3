"""Columns computed from other columns by sandboxed Jinja templates (``data.template``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from alignkit.contract.rows import RawRows
from alignkit.errors import ConfigError, DataError, SourceError, first_line
from alignkit.system.budget import time_limit


def fill(raw: RawRows, templates: Mapping[str, str]) -> RawRows:
    """Return the rows with one more column per template over the source's columns, e.g. ``Q: {{ question }}``.

    Raises:
        ConfigError: a template is not valid Jinja.
        DataError: a row lacks a column used by a template; the message names file and line.
    """
    if not templates:
        return raw
    compiled = {name: _compiled(name, text) for name, text in templates.items()}
    rows: list[Mapping[str, Any]] = []
    with time_limit():
        for position, row in enumerate(raw.rows):
            try:
                made = {name: template.render(row) for name, template in compiled.items()}
            except TimeoutError as error:
                raise SourceError(f"{raw.where(position)}: data.template does not end: {error}") from None
            except Exception as error:  # whatever a template does
                raise DataError(f"{raw.where(position)}: data.template: {first_line(error)}") from None
            rows.append({**row, **made})
    return RawRows(rows, raw.where, raw.source)


def variables(templates: Mapping[str, str]) -> set[str]:
    """Return the columns that templates use."""
    from jinja2 import Environment, meta

    return {name for text in templates.values() for name in meta.find_undeclared_variables(Environment().parse(text))}


@lru_cache(maxsize=32)
def _compiled(name: str, text: str) -> Any:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(text)
    except (TemplateError, SyntaxError, RecursionError) as error:
        raise ConfigError(f"data.template.{name}: {first_line(error)}") from None
