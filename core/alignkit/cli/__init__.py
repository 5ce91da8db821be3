"""The command line. It names its commands as ``module:object`` texts, so that ``--help`` and listings load nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

import click

from alignkit import __version__
from alignkit.cli.failures import State, debug_option, explain
from alignkit.cli.lazy import LazyCommand, LazyGroup

COMMANDS = {
    "run": LazyCommand("alignkit.cli.runs:run", "Train a model with one method, and evaluate it before and after."),
    "resume": LazyCommand("alignkit.cli.runs:resume", "Continue an interrupted run."),
    "eval": LazyCommand("alignkit_eval.cli.evaluate:evaluate", "Evaluate models: preferences, perplexity, benchmarks."),
    "compare": LazyCommand("alignkit_eval.cli.compare:compare", "Compare runs on the same items, with intervals."),
    "sweep": LazyCommand("alignkit_eval.cli.sweep:sweep", "Train a grid of settings and seeds, and compare them."),
    "pipeline": LazyCommand("alignkit_eval.cli.pipeline:pipeline", "Train in stages: sft, reward, ppo, eval, export."),
    "status": LazyCommand("alignkit.cli.status:status", "Say how a run stands."),
    "watch": LazyCommand("alignkit.cli.status:watch", "Watch a run as it goes, in the terminal."),
    "generate": LazyCommand("alignkit.cli.models:generate", "Answer prompts with one or several models."),
    "chat": LazyCommand("alignkit.cli.models:chat", "Talk to a model."),
    "export": LazyCommand("alignkit.cli.models:export", "Write a run's model as a stock one, or the mean of several."),
    "data": LazyCommand("alignkit.cli.data:data", "Check data before training on it."),
    "methods": LazyCommand("alignkit.cli.listing:methods", "List the installed methods."),
    "suites": LazyCommand("alignkit.cli.listing:suites", "List the installed evaluation suites."),
    "rewards": LazyCommand("alignkit.cli.listing:rewards", "List the installed reward functions."),
    "services": LazyCommand("alignkit.cli.listing:services", "List the installed services (loggers, data sources)."),
    "plugins": LazyCommand("alignkit.cli.plugins:plugins", "List every plugin with its hooks and state; check one."),
    "new-plugin": LazyCommand("alignkit.cli.plugins:new_plugin", "Write a package with one working plugin."),
    "schema": LazyCommand("alignkit.cli.schema:schema", "Print the JSON schema of a method's configuration."),
    "demo": LazyCommand("alignkit.cli.demo:demo", "Build the embedded demo's data and model anew."),
}


@click.group(cls=LazyGroup, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="align")
@debug_option
def align() -> None:
    """Align language models with preferences: one engine for every method, one harness to compare them.

    `align run --method orpo` trains the embedded demo, offline.
    """


def run_command(arguments: Sequence[str]) -> int:
    """Run ``align ARGUMENTS``; return its exit code, with any error as one sentence on stderr."""
    state = State()
    try:
        result = align.main(list(arguments), prog_name="align", obj=state, standalone_mode=False)
    except BaseException as error:
        return explain(error, state)
    return result if isinstance(result, int) else 0
