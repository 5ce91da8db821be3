"""``align examples``."""

from __future__ import annotations

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
    """List the examples, or copy the one called NAME: pipelines (YAML) and packages with a plugin."""
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
        next_step = f'pip install -e "{target}[test]" && pytest {target}'
    else:
        shutil.copyfile(path, target)
        next_step = f"align {'pipeline' if 'stages:' in path.read_text(encoding='utf-8') else 'run'} {target}"
    click.echo(f"copied to {target}; next: {next_step}", err=True)


def _examples() -> dict[str, Path]:
    """Return the examples by name: files without their suffix, packages without ``alignkit-``."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        raise ConfigError(f"the examples are missing from this installation: {_PLACES[0]} does not exist")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix == ".yaml" or (path / "pyproject.toml").is_file()]
    return {path.stem.removeprefix("alignkit-"): path for path in paths}


def _about(path: Path) -> str:
    """Return the first sentence of an example's comment or README."""
    text = (path / "README.md" if path.is_dir() else path).read_text(encoding="utf-8")
    lines = [line.lstrip("# ").strip() for line in text.splitlines()]
    prose = [line for line in (lines[1:] if path.is_dir() else lines) if line]
    return prose[0].split(":   ")[0].rstrip(".:")
