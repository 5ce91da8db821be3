"""``align completion``, and what a shell completes: names of plugins, keys, and runs. Neither torch nor pydantic is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from alignkit.contract import registry
from click.shell_completion import CompletionItem

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
                if [[ $piece != [\'\"]* && $value == *[[:space:]\'\"\\\$\&\;\(\)\<\>\|]* ]]; then printf -v value %q "$value"; fi
                COMPREPLY+=("${value#"$before"}")
                if [[ $value == *[=.] ]]; then compopt -o nospace; fi
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

ZSH = r"""#compdef align
_align_completion() {
    local type value about
    local -a words_given=("${(@)words[1,CURRENT-1]}" "${words[CURRENT]%"$SUFFIX"}") found open closed
    found=("${(@f)$(
        COMP_WORDS="${words_given[*]}" COMP_CWORD=$((CURRENT - 1)) _ALIGN_COMPLETE=zsh_complete $words[1] 2> /dev/null
    )}")
    for type value about in "${(@)found}"; do
        case $type in
            dir) _files -/ ;;
            file) _files ;;
            plain)
                if [[ $about == _ ]]; then value=${value//:/\\:}; else value+=":$about"; fi
                if [[ ${value%%:*} == *[=.] ]]; then open+=("$value"); else closed+=("$value"); fi
                ;;
        esac
    done
    if (($#open)); then _describe -V key open -U -S ''; fi  # a value or a key of the section follows
    if (($#closed)); then _describe -V value closed -U; fi
}
if [[ $funcstack[1] == _align ]]; then
    _align_completion "$@"  # the file is a function in $fpath
else
    compdef _align_completion align
fi
"""
"""The script of zsh in place of click's, which puts a space behind the = of a key and completes nothing the second time."""

FISH = r"""function _align_completion
    set -l found (COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -ct) _ALIGN_COMPLETE=fish_complete align 2> /dev/null)
    for line in $found
        set -l parts (string split --max 1 , -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                echo $parts[2]
        end
    end
end
complete --no-files --command align --arguments "(_align_completion)"
"""
"""The script of fish in place of click's, which cuts what it completes at a comma."""

ABOUT = "Print the script that completes commands, options, names, keys and runs in SHELL.\n\n\b\n"


@click.command(help=ABOUT + "\n".join(INSTALL.values()))
@click.argument("shell", type=click.Choice([*INSTALL]))
def completion(shell: str) -> None:
    """Print the script of a shell."""
    click.echo({"bash": BASH, "zsh": ZSH, "fish": FISH}[shell], nl=False)


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


def _keys(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    from alignkit_commands.known_keys import keys_of, values_of

    method = context.params.get("method") or _method_of_file(context)
    given = [*(context.params.get("sets") or ()), *(context.params.get("over") or ())]
    losses = [name for text in given if text.startswith("loss=") for name in re.findall(r"[\w-]+", text[5:])]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [CompletionItem(f"{key}={item.value}") for item in _words(value, values_of(key, method, losses))]
    section = key.partition(".")[0] if "." in key else None
    found = [(name, about) for name, about in keys_of(section, method, losses) if name.startswith(key)]
    if parameter.name == "over" and "method".startswith(key):
        found.append(("method", "methods to compare"))
    return [CompletionItem(name if name.endswith(".") else f"{name}=", help=about) for name, about in found]


def _method_of_file(context: click.Context) -> str | None:
    """Return the method of the configuration or run that the command names."""
    # where the last option has no value yet, click reads no argument and keeps what it would read
    given = [context.params.get(name) for name in ("config", "run")]
    path = next((Path(found) for found in [*given, *context.args] if found), None)
    if path is None:
        return None
    try:
        text = (path / "run.yaml" if path.is_dir() else path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.search(r"^method:\s*(?:\{\s*)?(?:name:\s*)?[\"']?([\w:-]+)", text, re.MULTILINE)
    return found[1] if found else None


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
