"""``align data check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from alignkit.cli.failures import debug_option


@click.group()
def data() -> None:
    """Look at data before training on it."""


@data.command()
@click.argument("source")
@click.option("--split", metavar="NAME", help="Split of the source.")
@click.option("--eval-data", metavar="SOURCE", help="Held-out rows, whose prompts must not stand in SOURCE.")
@click.option("--model", metavar="M", help="Whose tokenizer tells what truncation would do.")
@click.option(
    "--max-length", metavar="N", type=click.IntRange(2), default=1024, show_default=True, help="Tokens of a row."
)
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Look at the first rows only.")
@click.option("--column", "columns", metavar="OURS=THEIRS", multiple=True, help="Column names: prompt=instruction.")
@click.option(
    "--near",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    help="What counts as nearly the same.",
)
@click.option("--min-words", metavar="N", type=click.IntRange(0), default=0, help="Fewest words of a field.")
@click.option("--script", metavar="NAME", help="Script the text is to be in: Latin, Cyrillic, ...")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option(
    "--fix", metavar="OUT", type=click.Path(path_type=Path), help="Write a cleaned copy, and OUT.dropped.jsonl."
)
@click.option("--strict", is_flag=True, help="Exit with 1 where anything was found.")
@debug_option
def check(
    source: str,
    split: str | None,
    eval_data: str | None,
    model: str | None,
    max_length: int,
    limit: int | None,
    columns: tuple[str, ...],
    near: float,
    min_words: int,
    script: str | None,
    as_json: bool,
    fix: Path | None,
    strict: bool,
) -> None:
    """Say what is wrong with SOURCE, with examples and line numbers: broken rows, duplicates, contradictions, leaks, and more."""
    from alignkit.config import DataConfig, ModelConfig
    from alignkit.data.checking import Limits, check_source, write_fixed
    from alignkit.errors import ConfigError
    from alignkit.models import load_tokenizer, resolve_path

    names = dict(column.partition("=")[::2] for column in columns)
    if not all(names.values()):
        raise ConfigError("--column: write OURS=THEIRS, e.g. --column prompt=instruction")
    tokenizer = None if model is None else load_tokenizer(ModelConfig(name=model), resolve_path(model))
    found = check_source(
        source,
        split=split,
        config=DataConfig(source=source, columns=names, max_length=max_length, limit=limit),
        limits=Limits(near=near, min_words=min_words, script=script),
        held_out=eval_data,
        tokenizer=tokenizer,
    )
    click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else "\n".join(found.lines()))
    if fix is not None:
        kept, left = write_fixed(found, fix)
        click.echo(f"{kept:,} rows are in {fix}, {left:,} were left out: {fix}.dropped.jsonl says why", err=True)
    if strict and found.findings:
        sys.exit(1)
