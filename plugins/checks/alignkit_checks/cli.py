"""``align data check``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from alignkit import settings
from alignkit.config import DataConfig, ModelConfig, Reading
from alignkit.errors import ConfigError
from alignkit.system.files import require_writable
from alignkit.training.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit_checks.check import Check
    from alignkit_checks.contamination import Contamination


@click.group()
def data() -> None:
    """Check data before training on it."""


@data.command("check")
@click.argument("source")
@click.option("--split", metavar="NAME", help="Split of SOURCE (default: train, or the only one).")
@click.option("--eval-data", metavar="SOURCE", help="Held-out rows; prompts they share with SOURCE are leaks.")
@click.option(
    "--against",
    metavar="FILE",
    multiple=True,
    help="Evaluation data (rows of any shape, .txt, or an lm-eval task's .yaml), whose n-grams must not occur in SOURCE; repeatable.",
)
@click.option("--ngram", metavar="N", type=click.IntRange(2), help="Words of such an n-gram (default: 13).")
@click.option(
    "--ngram-unit",
    type=click.Choice(["words", "tokens"]),
    help="What n-grams are made of; tokens are those of --model's tokenizer (default: words).",
)
@click.option("--model", metavar="M", help="Also check tokenisation with this model's tokenizer and chat template.")
@click.option("--max-length", metavar="N", type=click.IntRange(2), help="Maximum tokens of a row (default: 1024).")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Check at most this many rows (default: all).")
@click.option("--column", "columns", metavar="NAME=COLUMN", multiple=True, help="Column names: prompt=instruction.")
@click.option(
    "--near",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="Similarity (Jaccard, of word trigrams) from which two texts are near-duplicates (default: 0.8).",
)
@click.option("--min-words", metavar="N", type=click.IntRange(0), help="Minimum words of a text (default: 0).")
@click.option("--script", metavar="NAME", help="Expected script: Latin, Cyrillic, ... (default: any).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Also write a report with plots."
)
@click.option(
    "--fix",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write a cleaned copy, and OUT.dropped.jsonl with reasons.",
)
@click.option("--strict", is_flag=True, help="Exit with code 1 if there are problems.")
def check_data(source: str, as_json: bool, html: Path | None, fix: Path | None, strict: bool, **options: Any) -> None:
    """Report problems of SOURCE, with examples and line numbers: broken rows, duplicates, contradictions, leaks and more.

    SOURCE is a file, directory, URL, saved data set, hub id or demo, or the configuration of a run (.yaml): then all of its
    sources are checked, with its columns and thresholds (data.check).
    """
    from alignkit.data.tokenise.rules import ENDLESS
    from alignkit.models.paths import resolve_path
    from alignkit.models.positions import named_positions, room
    from alignkit.models.tokenizer import load_tokenizer

    from alignkit_checks.check import check_source
    from alignkit_checks.scales import refuse_inverted

    configured = Path(source).suffix.lower() in (".yaml", ".yml")
    sections, model, session = (
        _sections(Path(source)) if configured else ([DataConfig(source=source)], ModelConfig(), None)
    )
    write_page = None if html is None else _page_writer(html)
    if fix is not None:
        _require_fixable(fix, sections)
    if named := options.pop("model"):
        model = model.model_copy(update={"name": named})
    tokenizer = load_tokenizer(model, resolve_path(model.name)) if configured or named else None
    fits = ENDLESS if tokenizer is None else room(named_positions(model), session.method if session else None)
    eval_data = options.pop("eval_data")
    contamination = _contamination(options, tokenizer, session)
    sections = [_with_options(section, **options) for section in sections]
    for section in sections:
        refuse_inverted(section)
    found = [
        check_source(
            section.source,
            split=section.split,
            config=section,
            kind=session.method.rows if session else None,
            held_out=eval_data or section.eval_source,
            tokenizer=tokenizer,
            load=session.load_data if session else None,
            room=fits,
            contamination=contamination,
        )
        for section in sections
    ]
    if as_json:
        values = [one.to_json() for one in found]
        click.echo(json.dumps(values if configured else values[0], indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(line for one in found for line in one.lines()))
    if write_page is not None:
        click.echo(f"report: {write_page(found, html)}", err=True)
    if fix is not None:
        _fix(found[0], fix)
    if strict and any(one.findings for one in found):
        sys.exit(1)


def _page_writer(html: Path) -> Callable[..., Any]:
    """Return what writes a data report, as an installed package provides it; refuses a file that cannot be written."""
    from alignkit.contract.registry import provided

    write = provided("align.reports", "data")
    if write is None:
        raise ConfigError("--html: no installed package provides a data report (entry-point group align.reports)")
    require_writable(html)
    return write


def _require_fixable(fix: Path, sections: Sequence[DataConfig]) -> None:
    from alignkit_checks.fix import fixed_files

    if len(sections) > 1:
        raise ConfigError("--fix cleans one source at a time, and this configuration has several")
    fixed_files(fix)


def _fix(check: Check, fix: Path) -> None:
    from alignkit_checks.fix import write_fixed

    kept, left = write_fixed(check, fix)
    click.echo(
        f"{kept:,} rows written to {fix}, {left:,} dropped rows to {fix}.dropped.jsonl, with the reasons", err=True
    )


def _contamination(
    options: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, session: Session | None
) -> Contamination | None:
    """Take the options about evaluation data from ``options``, and return its n-grams; None where none is named."""
    from alignkit_checks.contamination import NGRAM, Contamination

    against, n, unit = (options.pop(name) for name in ("against", "ngram", "ngram_unit"))
    if not against:
        if n or unit:
            raise ConfigError(f"--{'ngram' if n else 'ngram-unit'} has no effect without --against")
        return None
    if unit == "tokens" and tokenizer is None:
        raise ConfigError("--ngram-unit tokens needs a tokenizer: name a model with --model")
    own = tokenizer if unit == "tokens" else None
    return Contamination(against, n or NGRAM, own, session.load_data if session else None)


def _sections(source: Path) -> tuple[list[DataConfig], ModelConfig, Session]:
    """Return a run's data section for each of its sources, its model, and a session of its method and services."""
    config = settings.resolve(source).config
    parts = [{name: getattr(part, name) for name in Reading.model_fields} for part in config.data.parts]
    sections = [config.data.model_copy(update={**part, "sources": []}) for part in parts]
    return sections, config.model, Session.open(config, only="align_load_data")


def _with_options(section: DataConfig, columns: tuple[str, ...], **options: Any) -> DataConfig:
    """Return the section with the command line's options in place of its own."""
    names = dict(column.partition("=")[::2] for column in columns)
    if not all(names.values()):
        raise ConfigError("--column: write NAME=COLUMN, e.g. --column prompt=instruction")
    given = {name: value for name, value in options.items() if value is not None}
    limits: dict[str, Any] = {name: given.pop(name) for name in ("near", "min_words", "script") if name in given}
    given |= {"columns": section.columns | names, "check": section.check.model_copy(update=limits)}
    return section.model_copy(update=given)
