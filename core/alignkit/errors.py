"""Errors a user can act on: one clear sentence, the place it points at, and the exit code it ends the command with."""

from __future__ import annotations


class AlignError(Exception):
    """Base of every error alignkit raises on purpose.

    The message is one sentence a user can act on. ``exit_code`` is what the command line ends with:
    2 for wrong usage, configuration or data, 1 for a run that failed, 130/143 for an interrupted one.
    """

    exit_code = 2


class ConfigError(AlignError):
    """A configuration file, key or value that cannot be used."""


class DataError(AlignError):
    """A data source or row that cannot be used; the message names file and line where there is one."""


class SourceError(DataError):
    """A source that cannot be read, whatever its rows would be used for."""


class NoRowsError(DataError):
    """Data that has no rows of the kind a suite asks for."""


class ModelError(AlignError):
    """A model, tokenizer or adapter that cannot be loaded or trained."""


class PluginError(AlignError):
    """A plugin that is unknown, ambiguous, blocked or broken; the message names plugin, distribution and cause."""


class CheckpointError(AlignError):
    """A run or checkpoint that cannot be resumed."""


class RunFailedError(AlignError):
    """A run that started and could not go on (non-finite loss, out of memory, a failing suite)."""

    exit_code = 1


class InterruptedRun(AlignError):  # noqa: N818  an interruption is no error of anybody's
    """A run stopped by a signal after its checkpoint was saved: exit code 128 + signal number."""

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def suggest(name: str, known: list[str]) -> str:
    """Return ``', did you mean "x"?'`` for the closest known name, or an empty string.

    >>> suggest("orop", ["orpo", "dpo"])
    ', did you mean "orpo"?'
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f', did you mean "{close[0]}"?' if close else ""


def first_line(error: BaseException) -> str:
    """Return the cause an error names in one line of at most 300 characters, to be part of another sentence.

    >>> first_line(ValueError("no such key.")), first_line(KeyError()), first_line(FileNotFoundError(2, "No such file"))
    ('no such key', 'KeyError', 'No such file')
    """
    text = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(" .:")[:300]
