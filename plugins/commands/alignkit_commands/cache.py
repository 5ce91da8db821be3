"""``align cache``: the content cache on disk."""

from __future__ import annotations

import json
import math
import time

import click


@click.group()
def cache() -> None:
    """Show or shrink the cache of tokenised rows, reference log-probabilities, data checks, evaluation results and schemas.

    The cache is in $ALIGN_CACHE (default: ~/.cache/alignkit). Removed entries are rebuilt when a run needs them; a schema that
    a YAML file names is written again by `align schema --attach`.
    """


@cache.command("list")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, with sizes in bytes and times in seconds since 1970."
)
def list_entries(as_json: bool) -> None:
    """List the entries, least recently used first."""
    from alignkit.system.files import to_json

    from alignkit_commands.entries import entries

    if as_json:
        click.echo(json.dumps(to_json(entries()), indent=2))
        return
    found = entries()
    width = max((len(_name(entry.key)) for entry in found), default=0)
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        click.echo(f"{entry.section:<10}  {_name(entry.key):<{width}}  {_size(entry.bytes)}  last used {used}")


@cache.command()
def size() -> None:
    """Print the number and size of entries per section and in total."""
    from alignkit.system.cache import cache_directory

    from alignkit_commands.entries import SECTIONS, entries

    found = entries()
    for section, content in SECTIONS.items():
        sizes = [entry.bytes for entry in found if entry.section == section]
        click.echo(f"{section:<10}  {len(sizes):>6,}  {_size(sum(sizes))}  {content}")
    click.echo(f"{'all':<10}  {len(found):>6,}  {_size(sum(entry.bytes for entry in found))}  {cache_directory()}")


@cache.command()
@click.option(
    "--older-than", metavar="DAYS", type=click.FloatRange(0), help="Remove entries not used for this many days."
)
@click.option(
    "--max-size",
    metavar="GB",
    type=click.FloatRange(0),
    help="Remove the least recently used entries until the cache is at most this large (10^9 bytes).",
)
@click.option("--all", "everything", is_flag=True, help="Remove every entry.")
def prune(older_than: float | None, max_size: float | None, everything: bool) -> None:
    """Remove entries; a run that is using one is not affected."""
    from alignkit_commands.entries import prune as remove

    if older_than is None and max_size is None and not everything:
        raise click.UsageError("choose what to remove: --older-than DAYS, --max-size GB or --all")
    since = math.inf if everything else 0.0 if older_than is None else time.time() - older_than * 86_400
    removed = remove(since, math.inf if max_size is None else max_size * 1e9)
    click.echo(f"entries removed: {len(removed):,} ({_size(sum(entry.bytes for entry in removed)).strip()})")


def _name(key: str) -> str:
    """Return the beginning of a digest, or the whole name of a schema."""
    return key[:12] if len(key) == 64 else key


def _size(count: int) -> str:
    return f"{count / 1e6:>12,.1f} MB"
