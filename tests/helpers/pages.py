"""The commands that pages of the documentation show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIALS = ("start-engineer", "start-rlhf", "start-researcher", "lora", "editors", "migrating")
"""Pages whose blocks ``python -m tests.accept pages`` runs one after another, in an environment of their own."""
_ENDS = ("|", ">", "&&", "&", "--", ";")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every ``align`` command in the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    bare = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join([*fenced, *re.findall(r"(?:^ {4}.*\n)+", bare, re.MULTILINE)])
    for line in lines.replace("\\\n", " ").splitlines():
        if line.strip().startswith("align "):
            words = shlex.split(re.sub(r"; +(align )", r" ; \1", line), comments=True)
            while words:
                end = next((number for number, word in enumerate(words) if word in _ENDS), len(words))
                if words[0] == "align":
                    yield words[1:end]
                words = words[end + 1 :]
