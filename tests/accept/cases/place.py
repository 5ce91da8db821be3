"""Where a case runs: a directory, tiny models, the command, and what becomes of its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.accept.campaign.processes import Align, Ended

QUIET = ["--set", "run.plots=false", "--set", "eval.samples=0"]
METALS = [
    {"prompt": f"Name {what} that {does}.", "chosen": f" {good}", "rejected": f" {bad}"}
    for what, does, good, bad in [
        ("a metal", "is hard", "Iron is a hard metal", "Wood"),
        ("a bird", "can sing in the morning", "The wren", "A cow or perhaps another beast"),
        ("a fish", "swims in the sea", "Cod, and herring, and many others", "Trees"),
        ("a tree", "grows tall", "Oak", "Grass grows, but never tall"),
        ("a river", "is long", "The Nile is long", "The road"),
        ("a number", "is even", "Twelve", "Eleven, I think, or thirteen"),
        ("a colour", "a leaf has", "Green, in summer", "Loud"),
        ("a day", "begins the week", "Monday", "Noon is not a day"),
        ("a planet", "has rings", "Saturn has them", "The moon"),
        ("a fruit", "is red", "A cherry", "Bread, and sometimes stone"),
    ]
]


@dataclass(frozen=True)
class Place:
    """The directory of one case."""

    path: Path
    models: Path
    _align: Align

    def __call__(self, *arguments: str | Path, cache: str = "cache", timeout: float = 240.0) -> Ended:
        """Run a command here, with a cache of this case's own."""
        return self._align(*arguments, cwd=self.path, timeout=timeout, ALIGN_CACHE=str(self.path / cache))

    def good(self, *arguments: str | Path, cache: str = "cache") -> Ended:
        """Run a command that must succeed."""
        ended = self(*arguments, cache=cache)
        assert ended.code == 0, ended
        return ended

    def model(self, name: str) -> str:
        """Return the directory of a tiny model."""
        return str(self.models / name)

    def rows(self, name: str, rows: Sequence[Any]) -> str:
        """Write JSON Lines and return the file's name."""
        (self.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    def read(self, name: str) -> Any:
        """Return the value of a JSON file."""
        return json.loads((self.path / name).read_text())

    def tokens(self, model: str, data: str, **columns: str) -> list[tuple[str, ...]]:
        """Return the prompt and completions of every row as they would be trained on, decoded."""
        from alignkit.config import RunConfig
        from alignkit.data.load import load_data
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self.model(model))
        section: dict[str, Any] = {
            "columns": columns,
            "source": str(self.path / data),
            "eval_split": 0.0,
            "cache": False,
            "workers": 1,
            "max_dropped": 1.0,
        }
        found = load_data(RunConfig(method="dpo", model=self.model(model), data=section), "preference", tokenizer)
        return [
            tuple(tokenizer.decode(ids) for ids in (example.prompt, *example.completions)) for example in found.train
        ]


def refused(ended: Ended) -> str:
    """Return the sentence of a refusal; anything else is an error."""
    assert ended.code == 2, ended
    assert ended.error, ended
    assert "--debug" not in ended.error, ended
    return f"refused: {ended.error}"
