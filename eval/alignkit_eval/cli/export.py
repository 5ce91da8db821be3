"""``align export``."""

from __future__ import annotations

import math
from functools import partial
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
    "--format",
    "kind",
    type=click.Choice(["hf", "gguf", "ollama", "mlx"]),
    default="hf",
    show_default=True,
    help="hf: for transformers; gguf: for llama.cpp; ollama: gguf with a Modelfile; mlx: the adapter, for mlx-lm.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16", "q8_0"]),
    default="auto",
    help="Type of the weights (auto: the run's model.dtype; of gguf float16). q8_0: 8 bits, of gguf alone.",
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Output directory (default: RUN/export, RUN/gguf, ...).",
)
@click.option("--push", metavar="REPO", help="Upload the exported directory to REPO of the Hugging Face hub.")
@click.option("--private", is_flag=True, help="With --push: make a new repository private.")
@click.option("--dry-run", is_flag=True, help="With --push: print what would be uploaded, without uploading.")
def export(
    run: Path,
    merge: str | None,
    merge_method: Any,
    weights: str | None,
    output: Path | None,
    kind: str,
    dtype: str,
    push: str | None,
    private: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Export RUN's model as a standard model directory: adapter merged, safetensors, tokenizer and model card.

    The exported model is loaded again and must score held-out rows as the run does; of gguf, the difference is reported.
    Tied embeddings of which an adapter changed only one are untied. A directory that was exported before is uploaded as it is.
    """
    from alignkit.system.quiet import quiet_libraries

    from alignkit_eval.export import export as write
    from alignkit_eval.gguf import export_gguf
    from alignkit_eval.merging import Merging
    from alignkit_eval.mlx_adapter import export_mlx
    from alignkit_eval.push import upload

    quiet_libraries()
    runs = [run, *(Path(word.strip()) for word in (merge or "").split(",") if word.strip())]
    shares = None if weights is None else _numbers(weights)
    if (private or dry_run) and push is None:
        raise ConfigError(f"--{'private' if private else 'dry-run'} is for --push REPO")
    if kind == "hf" and dtype == "q8_0":
        raise ConfigError("--dtype q8_0 is for --format gguf or ollama")
    if kind == "mlx" and (merge or dtype != "auto" or push):
        raise ConfigError("--format mlx writes the adapter of one run, in float32: without --merge, --dtype and --push")
    merging, where = Merging(merge_method, shares, **given), output or run / ("export" if kind == "hf" else kind)
    if push is not None and where.joinpath("README.md").is_file() and dtype == "auto" and len(runs) == 1:
        click.echo(f"export: {where} is there already", err=True)
    elif kind == "hf":
        write(runs, where, merging, dtype)
        click.echo(f"export: {where} (scores verified against {' + '.join(map(str, runs))})", err=True)
    elif kind == "mlx":
        click.echo(f"export: {export_mlx(run, where)} (scores verified against {run}, by mlx-lm)", err=True)
    else:
        say = partial(click.echo, err=True)
        click.echo(f"export: {export_gguf(runs, where, merging, dtype, ollama=kind == 'ollama', say=say)}", err=True)
    if push is not None:
        upload(where, push, private=private, dry_run=dry_run, say=click.echo)


def _numbers(weights: str) -> list[float]:
    try:
        numbers = [float(word) for word in weights.split(",")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(weights)
    except ValueError as error:
        raise ConfigError(f"--weights {weights}: write numbers separated by commas, e.g. 0.5,0.5") from error
    return numbers
