"""``align export``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import click
from alignkit.errors import ConfigError

from alignkit_eval.merging import MergeMethod


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--merge", metavar="RUN,RUN", help="Combine the weights of RUN and these runs.")
@click.option(
    "--merge-method",
    type=click.Choice(get_args(MergeMethod)),
    default="mean",
    show_default=True,
    help="mean: a model soup; the others combine the changes that training made and add them to the start model.",
)
@click.option("--weights", metavar="W,W", help="Factors, RUN's first (default: equal for the mean, else 1 each).")
@click.option("--density", type=float, help="Share of the changes that ties (default 0.2) and dare (0.1) keep.")
@click.option("--seed", type=click.IntRange(0), help="Random seed of dare (default 0).")
@click.option(
    "--output", metavar="DIR", type=click.Path(path_type=Path), help="Output directory (default: RUN/export)."
)
def export(
    run: Path, merge: str | None, merge_method: Any, weights: str | None, output: Path | None, **given: Any
) -> None:
    """Export RUN's model as a standard model directory: adapter merged, safetensors, tokenizer and model card.

    The exported model is loaded again and must score held-out rows as the run does. Tied embeddings of which an adapter
    changed only one are untied.
    """
    from alignkit.system.quiet import quiet_libraries

    from alignkit_eval.export import export as write
    from alignkit_eval.merging import Merging

    quiet_libraries()
    runs = [run, *(Path(word.strip()) for word in (merge or "").split(",") if word.strip())]
    try:
        shares = None if weights is None else [float(word) for word in weights.split(",")]
        if not all(map(math.isfinite, shares or ())):
            raise ValueError(weights)
    except ValueError as error:
        raise ConfigError(f"--weights {weights}: write numbers separated by commas, e.g. 0.5,0.5") from error
    where = write(runs, output or run / "export", Merging(merge_method, shares, **given))
    click.echo(f"export: {where} (scores verified against {' + '.join(map(str, runs))})", err=True)
