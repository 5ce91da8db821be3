"""The picture of the README is what the committed results look like, and its text says their numbers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from alignkit_eval.report.forest import picture

ROOT = Path(__file__).parents[2]
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


@pytest.fixture(scope="module")
def build() -> Any:
    spec = importlib.util.spec_from_file_location("build_picture", ROOT / "docs" / "build_picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dark", [False, True])
def test_the_committed_picture_is_the_one_that_the_code_draws(dark: bool, build: Any) -> None:
    committed = (build.IMAGES / build.NAMES[dark]).read_text(encoding="utf-8")
    drawn = picture(build.comparison(), dark=dark)
    words, others = (re.findall(r">([^<>]*\w[^<>]*)</text>", svg) for svg in (committed, drawn))
    assert words == others, "run: python docs/build_picture.py"
    places, again = ([float(n) for n in _NUMBER.findall(_shapes(svg))] for svg in (committed, drawn))
    assert places == pytest.approx(again, abs=1.5), "run: python docs/build_picture.py"


def _shapes(svg: str) -> str:
    """Return the paths and positions of a picture, without colours and the names of its parts."""
    return " ".join(re.findall(r' (?:d|x|y|width|height|transform)="([^"]*)"', svg))


def test_the_readme_shows_the_picture_in_both_themes_with_its_numbers_as_text(build: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<picture>.*?</picture>", readme, re.DOTALL)
    for name in build.NAMES.values():
        assert f"docs/images/{name}" in shown
    assert "prefers-color-scheme: dark" in shown
    assert re.search(r'alt="([^"]*)"', shown)[1] == build.alt()
