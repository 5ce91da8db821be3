"""``align completion``, and what a shell completes: names of plugins, keys, and runs. Neither torch nor pydantic is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from alignkit.contract import registry
from click.shell_completion import CompletionItem, get_completion_class

Items = list[CompletionItem[Any]]

INSTALL = {
    "bash": "align completion bash > ~/.local/share/bash-completion/completions/align",
    "zsh": 'align completion zsh > "${fpath[1]}/_align"',
    "fish": "align completion fish > ~/.config/fish/completions/align.fish",
}

BASH = r"""_align_completion() {
    local line=${COMP_LINE:0:COMP_POINT} words=() before piece type value i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        piece=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $line == [[:space:]]* ]]; then words+=(""); fi  # else bash has cut a word at = or :
        line=${line#"${line%%[![:space:]]*}"}
        if ((i == COMP_CWORD)); then piece=$line; fi
        line=${line#"$piece"}
        before=${words[-1]}
        words[-1]+=$piece
    done
    if [[ $piece == [=:] ]]; then before=${words[-1]}; fi  # what bash keeps of the word
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$before"}")
                if [[ $value == *= ]]; then compopt -o nospace; fi
                ;;
        esac
    done < <(
        IFS=$'\n'
        COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) _ALIGN_COMPLETE=bash_complete "$1"
    )
}
complete -o nosort -F _align_completion align
"""
"""The script of bash in place of click's, which completes no word with = or : in it."""

ABOUT = "Print the script that completes commands, options, names, keys and runs in SHELL.\n\n\b\n"


@click.command(help=ABOUT + "\n".join(INSTALL.values()))
@click.argument("shell", type=click.Choice([*INSTALL]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script of a shell."""
    if shell == "bash":
        click.echo(BASH)
        return
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(context.find_root().command, {}, "align", "_ALIGN_COMPLETE")
    click.echo(made.source_template % made.source_vars())


def attach(command: click.Command) -> None:
    """Give the options and arguments of a command their values, where they have none of their own."""
    for parameter in command.params:
        found = _VALUES.get(f"--{parameter.name}" if isinstance(parameter, click.Option) else parameter.name or "")
        if found is not None and parameter._custom_shell_complete is None:
            parameter._custom_shell_complete = found


def _plugins(group: registry.Group, *more: str) -> Callable[..., Items]:
    def names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
        return _words(incomplete, [*registry.usable(group), *more])

    return names


def _words(incomplete: str, known: Iterable[str]) -> Items:
    """Return the words that continue the last one of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{word}") for word in known if word.startswith(last)]


def _runs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """Return the run directories that continue a path, those under runs/ for an empty one, and else files."""
    folder = Path(incomplete.rpartition("/")[0] or "runs")
    start = incomplete if "/" in incomplete or not "runs".startswith(incomplete) else "runs/"
    try:
        paths = sorted(path.as_posix() for path in folder.iterdir() if (path / "run.yaml").is_file())
    except OSError:
        paths = []
    found = [CompletionItem(path) for path in paths if path.startswith(start)]
    return found or [CompletionItem(incomplete, type="file")]


def _keys(context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    from alignkit_commands.known_keys import keys_of, values_of

    method = context.params.get("method")
    key, equals, value = incomplete.partition("=")
    if equals:
        return [CompletionItem(f"{key}={item.value}") for item in _words(value, values_of(key, method))]
    section = key.partition(".")[0] if "." in key else None
    return [CompletionItem(f"{name}=", help=about) for name, about in keys_of(section, method) if name.startswith(key)]


_VALUES: dict[str, Callable[..., Items]] = {
    "--method": _plugins("align.methods"),
    "--suites": _plugins("align.suites"),
    "--scheduler": _plugins("align.schedulers"),
    "--engine": _plugins("align.engines"),
    "--sets": _keys,
    "--over": _keys,
    "method": _plugins("align.methods"),
    **dict.fromkeys(("run", "runs", "target", "targets", "--model", "--baseline", "--resume"), _runs),
}
"""What completes an option, by the name that click gives it, and an argument."""
