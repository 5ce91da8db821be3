"""Rendering of pages to HTML: one file with its own style and script.

Model output and data are untrusted. Jinja escapes every value, no value is inserted into the script, and the page's
Content-Security-Policy allows only the page's script and style sheet, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.system.files import write_text

from alignkit_eval.report.folding import NOTES, SENTENCES, sentences, unfolded
from alignkit_eval.report.parts import NOT_FINITE, Page

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
"""Control characters, which HTML forbids -> Unicode control pictures."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Unpaired surrogates, as in truncated JSON escapes; they cannot be encoded as UTF-8."""


def write_page(path: Path, page: Page) -> Path:
    """Write the page as HTML and return its path."""
    write_text(path, render(page))
    return path


def render(page: Page) -> str:
    """Return the page as HTML."""
    limits = {"most_sentences": SENTENCES, "most_notes": NOTES}
    return render_template("report.html.j2", "script.js", page=page, unfolded=unfolded(page), **limits)


def render_template(template: str, script_name: str, **values: Any) -> str:
    """Return a template filled with values, the style sheet and one script."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", script_name))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    html = _environment().get_template(template).render(style=style, script=script, policy=policy, **values)
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", html.translate(_VISIBLE))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["margin"] = lambda x: f"{x:+.2f}" if math.isfinite(x) else NOT_FINITE
    environment.filters["sentences"] = sentences
    environment.tests["finite"] = lambda x: x is not None and math.isfinite(x)
    return environment


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
