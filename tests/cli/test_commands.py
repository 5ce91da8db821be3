"""Commands and reports of installed packages: found through entry points; a broken one does not affect the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest
from alignkit.cli.failures import complete_command
from alignkit.contract.registry import load_command, usable
from alignkit_commands.inventory import inventory

from tests.helpers.runs import short_options
from tests.helpers.third_party import Site

HELLO = """
import click
from alignkit import Command

COMMAND = Command("align_hello:hello", "Greet the user.")

@click.command()
def hello():
    click.echo("hello from align-hello")
"""


def install(site: Site, distribution: str, source: str, name: str = "hello") -> None:
    module = distribution.replace("-", "_")
    site.install(distribution, source.replace("align_hello", module), group="commands", **{name: f"{module}:COMMAND"})


def test_a_third_party_command_is_listed_and_runs(site: Site) -> None:
    install(site, "align-hello", HELLO)
    assert re.search(r"^  hello +Greet the user\.$", site.align("--help").stdout, re.MULTILINE)
    assert site.align("hello", "--debug").stdout == "hello from align-hello\n"
    states = {(plugin.kind, plugin.name, plugin.built_in): plugin.state for plugin in inventory()}
    assert states["command", "hello", False] == states["command", "run", True] == states["report", "run", True] == "ok"


def test_names_follow_the_rules_of_every_plugin(site: Site) -> None:
    install(site, "align-one", HELLO)
    install(site, "align-two", HELLO)
    install(site, "rival", HELLO, "methods")
    listed = site.align("--help").stdout
    assert [name in listed for name in ("align-one:hello", "align-two:hello", "rival:methods")] == [True] * 3
    ambiguous = site.align("hello")
    assert ambiguous.returncode == 2
    assert "write align-one:hello or align-two:hello" in ambiguous.stderr
    assert site.align("align-two:hello").returncode == 0
    assert "orpo" in site.align("methods").stdout
    assert site.align("rival:methods").stdout == "hello from align-hello\n"


def test_align_plugins_disables_a_command(site: Site) -> None:
    install(site, "align-hello", HELLO)
    assert "hello" not in site.align("--help", ALIGN_PLUGINS="none").stdout
    blocked = site.align("hello", ALIGN_PLUGINS="none")
    assert (blocked.returncode, blocked.stderr) == (
        2,
        'Error: command "hello" (align-hello 1.2.3) is blocked by ALIGN_PLUGINS=none: add hello to it, or unset it\n',
    )


BROKEN = {
    "its declaration raises": ("1 / 0", "cannot be loaded from align_hello:COMMAND: ZeroDivisionError"),
    "its declaration ends Python": ("raise SystemExit(3)", "cannot be loaded from align_hello:COMMAND: SystemExit: 3"),
    "it is not declared": (HELLO.replace("COMMAND =", "OTHER ="), "has no attribute 'COMMAND'"),
    "it is the click command itself": (
        HELLO.replace("COMMAND =", "OTHER =") + "COMMAND = hello",
        "cannot be used: align_hello:COMMAND is not an alignkit.Command",
    ),
    "it has no summary": (HELLO.replace("Greet the user.", " "), "has an empty summary"),
}
BROKEN_TARGET = {
    "its module raises": (
        HELLO.replace("align_hello:hello", "no_such_module:hello"),
        "No module named 'no_such_module'",
    ),
    "its function is missing": (HELLO.replace("align_hello:hello", "align_hello:bye"), "no attribute 'bye'"),
    "it is not a click command": (
        HELLO.replace("align_hello:hello", "align_hello:Command"),
        "cannot be used: align_hello:Command is not a click command",
    ),
}


@pytest.mark.parametrize("fault", [*BROKEN, *BROKEN_TARGET])
def test_a_broken_command_harms_no_other(site: Site, fault: str) -> None:
    source, cause = (BROKEN | BROKEN_TARGET)[fault]
    install(site, "align-hello", source)
    listed = site.align("--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    shown = " ".join(listed.stdout.split())
    assert "run Train a model with one method and evaluate it before and after." in shown
    assert ('hello (broken: command "hello" (align-hello 1.2.3) ' in shown) == (fault in BROKEN)
    called = site.align("hello")
    assert (called.returncode, "Traceback" in called.stderr) == (2, False)
    assert called.stderr.startswith('Error: command "hello" (align-hello 1.2.3) cannot be ')
    assert cause in called.stderr
    (found,) = [plugin for plugin in inventory() if plugin.name == "hello"]
    assert found.state == "broken"
    assert cause in found.cause


def test_a_declaration_is_not_imported_for_other_commands(site: Site) -> None:
    install(site, "align-hello", "print('imported')\n" + HELLO)
    assert "imported" in site.align("hello").stderr, "what a module prints is kept out of a command's output"
    for other in ("methods", "nothing"):
        done = site.align(other)
        assert "imported" not in done.stdout + done.stderr


def test_shell_completion_leaves_out_what_is_broken(site: Site) -> None:
    install(site, "align-hello", HELLO.replace("align_hello:hello", "no_such_module:hello"))
    install(site, "align-help", HELLO, "helpful")
    done = site.align(_ALIGN_COMPLETE="bash_complete", COMP_WORDS="align h", COMP_CWORD="1")
    assert (done.stdout, done.stderr) == ("plain,helpful\n", "")


# ------------------------------------------------------------------------------------------------- reports


@pytest.fixture
def without_reports(site: Site) -> Site:
    """Install metadata of alignkit that declares everything but its reports, in front of the real one."""
    declared = metadata.distribution("alignkit").read_text("entry_points.txt") or ""
    head, section, rest = declared.partition("[align.reports]\n")
    assert section
    info = site.install("alignkit", module="unused", group="methods")
    (info / "entry_points.txt").write_text(head + rest.partition("\n\n")[2])
    return site


def test_an_html_page_needs_a_report(without_reports: Site, tmp_path: Path) -> None:
    done = without_reports.align("data", "check", "demo", "--html", tmp_path / "page.html")
    assert done.returncode == 2
    assert done.stderr == (
        "Error: --html: no installed package provides a data report (entry-point group align.reports)\n"
    )
    assert not (tmp_path / "page.html").exists()


def test_a_dry_run_needs_a_report(without_reports: Site) -> None:
    done = without_reports.align("run", "--method", "orpo", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "\nError: --dry-run: no installed package describes a run (entry-point group align.reports)\n"
    )


def test_a_run_needs_no_report_and_calls_any_package_s(without_reports: Site) -> None:
    options = [*short_options(1), "--set", "run.plots=true", "--set", "eval.suites=[]"]
    done = without_reports.align("run", "--method", "orpo", "--name", "bare", *options)
    assert done.returncode == 0, done.stderr
    assert "report" not in done.stderr
    module = "def write(run): return run / 'page.txt'"
    without_reports.install("align-page", module, group="reports", run="align_page:write")
    resumed = without_reports.align("resume", "runs/bare")  # finished already: only the report is written
    assert (resumed.returncode, resumed.stderr.splitlines()[-1]) == (0, "report: runs/bare/page.txt")
    (without_reports.path / "align_page.py").write_text("1 / 0")
    resumed = without_reports.align("resume", "runs/bare")
    assert resumed.returncode == 0
    assert 'Note: no report was written: report "run" (align-page 1.2.3) cannot be loaded' in resumed.stderr


def with_subcommands(command: click.Command) -> Iterator[click.Command]:
    yield command
    for subcommand in getattr(command, "commands", {}).values():
        yield from with_subcommands(subcommand)


def test_no_value_of_any_option_is_dropped_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    told: dict[str, str] = {}
    for name, entry in usable("align.commands").items():
        complete_command(whole := load_command(entry))
        for command in with_subcommands(whole):
            for option in (one for one in command.params if isinstance(one, click.Option)):
                form = str(option.metavar)
                if option.is_flag or (option.multiple and not ("=" in form and "," not in form)):
                    continue  # the same word twice is the same, and all values of a list are taken
                try:
                    command.make_context(command.name, [option.opts[-1], "key=1"] * 2)
                except click.ClickException as error:
                    told[f"{name} {option.opts[-1]}"] = error.format_message()
                told[f"{name} {option.opts[-1]}"] = told.get(f"{name} {option.opts[-1]}", "") + capfd.readouterr().err
    assert len(told) > 100
    assert [
        option for option, said in told.items() if f"{option.split()[-1]} " not in said or "2 times" not in said
    ] == []
    assert told["sweep --seeds"] == "--seeds is given 2 times: write its values as --seeds N,N."
    assert told["run --model"] == "--model is given 2 times, and takes one value."
    assert told["run --set"] == "note: --set key=... is given 2 times: the last one holds\n"
