"""The suite that docs/evaluation.md shows works as it stands, installed as a third party's."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.helpers.third_party import Site

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_suite_of_the_docs(site: Site) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    site.install("align-brevity", code, group="suites", brevity="align_brevity:BrevitySuite")
    done = site.align("eval", "demo", "--suite", "brevity", "--set", "eval.settings.brevity.limit=8", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert 0 < found["suites"]["brevity"]["metrics"]["short"]["value"] < 1


def test_every_command_and_suite_of_the_docs_exists() -> None:
    from alignkit.contract import registry

    text = DOCS.read_text()
    assert set(re.findall(r"\balign (\w+)", text)) <= set(registry.usable("align.commands"))
    suites = text.partition("## Suites\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `([\w-]+)` \|", suites, re.MULTILINE))
    assert named == {entry.name for entry in registry.entries("align.suites") if entry.built_in}
