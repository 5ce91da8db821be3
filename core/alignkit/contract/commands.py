"""The types of entry points that add a command to ``align``, write reports or check runs; importing them imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias


class Command(NamedTuple):
    """A command of ``align``, declared as an entry point of the group ``align.commands``.

    ``align --help`` imports the module that holds it, to show the summary; the module of the command itself is imported
    only when the command is called. Keep the two apart where the latter imports anything heavy.
    """

    target: str
    """Location of the click command: ``package.module:function``."""
    summary: str
    """One line for ``align --help``."""
    distributed: bool = False
    """Whether it runs in all processes of a launcher such as torchrun; otherwise it is refused in several."""


Report: TypeAlias = "Callable[..., Any]"
"""A function that writes a report and returns what it wrote, declared as an entry point of the group ``align.reports``.

The entry point's name determines when it is called: ``run`` after ``align run`` and ``align resume``, with the run's
directory; ``plots`` at the end of every run, with its directory; ``card`` for every saved model, with its directory,
the run's record and, for the mean of several models, the name and weight of each; ``data`` by ``align data check
--html FILE``, with the list of checks and the file to write; ``dry-run`` by ``align run --dry-run``, with the
configuration (and ``measure=True`` with ``--measure``): it prints what the run comes to; ``summary`` when a run has
finished, with its console, the results of the suites before and after training, and the samples: it prints them;
``samples``, ``numbers`` and ``environment`` return parts of a run's record; ``metrics`` by ``align status``, with the
metrics of the suites before and after training: it returns lines; ``schema``, with the name of a method, returns the
first line of a configuration file for it, by which editors find its schema; ``completion`` gives the parameters of a
command their values when a shell completes it; ``loading``, with a command, says when it begins to load libraries.
"""

Launcher: TypeAlias = "Callable[..., int | None]"
"""A function for commands that run in several processes, declared as an entry point of ``align.launchers``.

``distribute`` is called with the configuration and fills in its processes and what its strategy needs. ``options`` decorates
a click command with the options of a launch. ``torch`` is called with the configuration, the words of the command line, and what was given of ``processes``, ``nodes``, ``node_rank``
and ``rendezvous``; it returns the exit code, or None where this process shall carry the command out itself.
"""

RunCheck: TypeAlias = "Callable[..., Any]"
"""A function that checks a run before it trains, declared as an entry point of the group ``align.checks``.

It raises an :class:`~alignkit.errors.AlignError` for a run that is refused. The entry point's name determines when it
is called: ``model`` with a directory or hub id, the model's configuration as read from there, the section ``model``
and the keywords ``classifier`` and ``meta``; ``settings`` with the configuration, the method and the training
arguments, before anything is loaded; ``data`` with the tokenised data and ``data.check``, ``saving`` with the loaded
model, the training arguments, the steps of an epoch and the run's directory: these two return lines for the console;
``hub`` with a hub id and its revision, and ``model=False`` for a data set's, before it is loaded: it returns why the hub
is not asked, or an empty text;
``resume`` with the run's directory, its configuration now and whether changes are accepted (``--change``): it returns
them; ``changes`` with the first two: it returns ``(key, old, new)`` of each.
"""

RunCallbacks: TypeAlias = "Callable[..., Any]"
"""A function that returns callbacks of ``transformers.Trainer``, declared as an entry point of ``align.callbacks``.

``progress`` is called with the console; ``during`` with the configuration, the suite whose metric chooses the best
model, a function that evaluates suites and one that writes a record; ``best-settings`` with the configuration: it
returns that suite and the training arguments that it needs; ``best`` with the configuration, the training arguments,
a function that evaluates the suite whose metric chooses the best model (None: a held-out metric does) and one that
writes a record to metrics.jsonl. A callback's ``require`` is called with the held-out loss and its metrics before the
first step; what its ``for_record`` returns of the trainer is added to run.json.
"""
