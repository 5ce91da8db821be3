"""``align examples``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
from alignkit.errors import ConfigError, suggest

from alignkit_commands.options import into_directory

_PLACES = Path(__file__).with_name("examples"), Path(__file__).parents[3] / "examples"
"""Where the examples are: in an installed package, or in the repository."""


@click.command()
@click.argument("name", required=False)
@into_directory("the example")
def examples(name: str | None, output: Path) -> None:
    """List the examples, or copy the one called NAME: pipelines (YAML), packages with a plugin, and notebooks."""
    found = _examples()
    if name is None:
        width = max(map(len, found))
        for other, path in found.items():
            click.echo(f"{other:<{width}}  {_about(path)}")
        click.echo("copy one with: align examples NAME", err=True)
        return
    if name not in found:
        raise ConfigError(f"there is no example {name}{suggest(name, [*found])}; they are {', '.join(found)}")
    path = found[name]
    target = output / path.name
    if target.exists():
        raise ConfigError(f"{target} exists and is not overwritten: name another directory with --output")
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copyfile(path, target)
    click.echo(f"copied to {target}; next: {_next_step(target)}", err=True)


def _examples() -> dict[str, Path]:
    """Return the examples by name: files without their suffix, packages without ``alignkit-``."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        raise ConfigError(f"the examples are missing from this installation: {_PLACES[0]} does not exist")
    packages = [path.parent for path in sorted(folder.glob("*/pyproject.toml"))]
    paths = [*packages, *sorted(folder.glob("*.yaml")), *sorted(folder.glob("notebooks/*.ipynb"))]
    return {path.stem.removeprefix("alignkit-"): path for path in paths}


def _about(path: Path) -> str:
    """Return the first sentence of an example's README, its first comment, or the first text of a notebook."""
    text = (path / "README.md" if path.is_dir() else path).read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    if path.suffix != ".yaml":
        text = text.partition("\n\n")[2]
    paragraph = text.strip().partition("\n\n")[0].splitlines()
    words = " ".join(line.lstrip("# ") for line in paragraph)
    return re.split(r"(?<=\w)\.(?: |$)|:(?: {3}|$)", words)[0]


def _next_step(path: Path) -> str:
    """Return the command that uses a copied example."""
    if path.is_dir():
        return f'pip install -e "{path}[test]" && pytest {path}'
    if path.suffix == ".ipynb":
        return f'pip install jupyterlab "alignkit[notebooks]" && jupyter lab {path}'
    return f"align {'pipeline' if 'stages:' in path.read_text(encoding='utf-8') else 'run'} {path}"
