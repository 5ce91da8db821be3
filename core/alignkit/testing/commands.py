"""Conformance tests of commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
from click.testing import CliRunner

from alignkit.contract import registry
from alignkit.testing.installed import InstalledPlugin

_ALIGN = (
    "import sys; from alignkit.__main__ import main; code = main(sys.argv[1:]); "
    "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
)


class CommandConformance(InstalledPlugin):
    """Tests of one installed command of ``align``; set ``name``."""

    group = "align.commands"

    def test_align_help_shows_its_summary(self) -> None:
        """``align --help`` lists the command with its one-line summary and does not import torch."""
        summary = self._load().summary
        assert len(summary.splitlines()) == 1, f"the summary must be one line: {summary!r}"
        shown = " ".join(_help("--help").split())
        assert f"{self.name} {summary}" in shown, f"align --help does not show {summary!r}"

    def test_its_help_is_complete(self) -> None:
        """The command, its subcommands and all their options have help texts."""
        for command in _with_subcommands(registry.load_command(self._entry())):
            assert command.help, f"{command.name} has no help: give the function a docstring"
            bare = [p.opts[-1] for p in command.params if isinstance(p, click.Option) and not p.help]
            assert not bare, f"options of {command.name} without a help text: {', '.join(bare)}"

    def test_help_exits_with_0(self) -> None:
        """``align NAME --help`` exits with 0 and does not import torch: heavy imports belong inside the function."""
        _help(self.name, "--help")

    def test_an_unknown_option_exits_with_2(self) -> None:
        """Wrong usage is one message and exit code 2, not a traceback."""
        done = CliRunner().invoke(registry.load_command(self._entry()), ["--no-such-option"])
        assert done.exit_code == 2, f"an unknown option exits with {done.exit_code}, expected 2: {done.output}"


def _help(*arguments: str) -> str:
    """Run ``align`` in a fresh process, check that it exits with 0 and does not import torch, and return its output."""
    command = [sys.executable, "-c", _ALIGN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"align {' '.join(arguments)} exits with {done.returncode}: {done.stderr}"
    return done.stdout


def _with_subcommands(command: click.Command) -> Iterator[click.Command]:
    yield command
    for subcommand in getattr(command, "commands", {}).values():
        yield from _with_subcommands(subcommand)
