"""``align export``."""

from __future__ import annotations

import math
from pathlib import Path

import click
from alignkit.errors import ConfigError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--merge", metavar="RUN,RUN", help="Average the weights of RUN and these runs (a model soup).")
@click.option("--weights", metavar="W,W", help="Coefficients of the average, RUN's first (default: equal).")
@click.option(
    "--output", metavar="DIR", type=click.Path(path_type=Path), help="Output directory (default: RUN/export)."
)
def export(run: Path, merge: str | None, weights: str | None, output: Path | None) -> None:
    """Export RUN's model as a standard model directory: adapter merged, safetensors, tokenizer and model card.

    The exported model is loaded again and must score held-out rows as the run does. Tied embeddings of which an adapter
    changed only one are untied.
    """
    from alignkit.system.quiet import quiet_libraries

    from alignkit_eval.export import export as write

    quiet_libraries()
    runs = [run, *(Path(word.strip()) for word in (merge or "").split(",") if word.strip())]
    try:
        shares = None if weights is None else [float(word) for word in weights.split(",")]
        if not all(map(math.isfinite, shares or ())):
            raise ValueError(weights)
    except ValueError as error:
        raise ConfigError(f"--weights {weights}: write numbers separated by commas, e.g. 0.5,0.5") from error
    where = write(runs, output or run / "export", shares)
    click.echo(f"export: {where} (scores verified against {' + '.join(map(str, runs))})", err=True)
