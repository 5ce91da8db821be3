"""``align demo build``."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def demo() -> None:
    """Rebuild the embedded demo."""


@demo.command()
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    help="Output directory (default: demo).",
)
@click.option("--steps", metavar="N", type=click.IntRange(min=1), help="Pre-training steps (default: 2400).")
@click.option(
    "--seed", metavar="N", type=click.IntRange(min=0), default=0, help="Random seed of corpus and weights (default: 0)."
)
def build(output: Path, steps: int | None, seed: int) -> None:
    """Build the demo's data, tokenizer and base model from scratch, deterministically."""
    from alignkit.system.quiet import quiet_libraries

    from alignkit_demo.build import STEPS
    from alignkit_demo.build import build as make

    quiet_libraries()
    make(output, steps=STEPS if steps is None else steps, seed=seed)
    click.echo(f"demo: {output}", err=True)
