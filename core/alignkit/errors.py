"""The exceptions alignkit raises, each with the exit code of the command line."""

from __future__ import annotations

import re


class AlignError(Exception):
    """Base class of alignkit's errors; the message is one sentence a user can act on.

    ``exit_code`` is the exit code of the command line: 2 for wrong usage, configuration or data, 1 for a failed run,
    130 or 143 for an interrupted one.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(readable(message))


class ConfigError(AlignError):
    """A configuration file, key or value that cannot be used."""


class DataError(AlignError):
    """A data source or row that cannot be used; the message names file and line if known."""


class SourceError(DataError):
    """A source that cannot be read for any kind of row."""


class NoRowsError(DataError):
    """Data without rows of the kind a suite needs."""


class ModelError(AlignError):
    """A model, tokenizer or adapter that cannot be loaded or trained."""


class PluginError(AlignError):
    """A plugin that is unknown, ambiguous, blocked or broken; the message names plugin, distribution and cause."""


class CheckpointError(AlignError):
    """A run or checkpoint that cannot be resumed."""


class RunFailedError(AlignError):
    """A run that failed after it started (non-finite loss, out of memory, a failing suite)."""

    exit_code = 1


class InterruptedRun(AlignError):  # noqa: N818  an interruption is not an error
    """A run stopped by a signal after saving a checkpoint; the exit code is 128 + the signal number."""

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def memory_fault(error: BaseException) -> str | None:
    """Return what to do about an error that says that Python or PyTorch could not allocate memory; None for any other."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and not (isinstance(error, RuntimeError) and re.search("can't allocate memory|bad_alloc", str(error))):
        return None
    return "out of memory: lower train.tokens_per_micro_batch or data.max_length, or set train.gradient_checkpointing"


def suggest(name: str, known: list[str]) -> str:
    """Return ``', did you mean "x"?'`` for the closest known name, or an empty string.

    >>> suggest("orop", ["orpo", "dpo"])
    ', did you mean "orpo"?'
    """
    import difflib

    alike = [each for each in known if each.lower() == name.lower()]
    close = alike or difflib.get_close_matches(name[:100], known, n=1, cutoff=0.6)
    return f', did you mean "{close[0]}"?' if close else ""


def first_line(error: BaseException) -> str:
    """Return the cause an error names in one line of at most 300 characters, to be part of another sentence.

    >>> first_line(ValueError("no such key.")), first_line(KeyError()), first_line(FileNotFoundError(2, "No such file"))
    ('no such key', 'KeyError', 'No such file')
    """
    text = getattr(error, "strerror", None) or _text(error) or type(error).__name__
    if "weights_only" in text:  # torch's message advises to switch the protection off
        return "a weights file is a pickle that would run code: save the weights as safetensors"
    if isinstance(error, KeyError) and error.args and " " not in text:
        return f"{text} is missing or unknown"
    line, *more = filter(None, map(str.strip, text.splitlines()))
    return (f"{line} {more[0]}" if line.endswith(":") and more else line).rstrip(" .:")[:300]


def shortened(text: str, limit: int) -> str:
    """Return a text cut in the middle to at most ``limit`` characters.

    >>> shortened("0123456789" * 9, 16), shortened("short", 16)
    ('01234567...56789', 'short')
    """
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-(limit - limit // 2 - 3) :]}"


def readable(message: str) -> str:
    r"""Return a message in one line; words over 300 characters, and the whole over 1,000, are cut in the middle.

    >>> readable("expected text\n  but got <class 'int'>")
    'expected text but got int'
    """
    message = re.sub(r"<class '([^']*)'>", r"\1", re.sub(r"\s*\n\s*", " ", message.strip()))
    return shortened(re.sub(r"\S{300,}", lambda word: shortened(word[0], 60), message), 1000)


def described(error: BaseException) -> str:
    r"""Return an error's type and its whole message in one line.

    >>> described(ValueError("two\n  lines")), described(SystemExit())
    ('ValueError: two lines', 'SystemExit')
    """
    return f"{type(error).__name__}: {' '.join(_text(error).split())}".rstrip(": ")


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # a plugin's error whose __str__ fails
        return ""
