"""What is printed: control sequences become visible text, and passwords in URLs are masked."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters but tab and line feed, overrides of the writing direction, and halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Found from the colon, not from each letter of an image in a page. A path of a URL has a single slash.
_USER = re.compile(r"(:/(?<=[\w+.-]:/)(?:/|(?=[^/\s]+:)))[^/\s\"'<>]+@")
_SECRET = re.compile(
    r"([?&][\w-]*(?:token|secret|passw|signature|sig|key|credential)[\w-]*=)[^&\s\"'<>]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """Return a text with user names, passwords and signatures in URLs masked: ``https://***@host/x?sig=***``."""
    return _SECRET.sub(r"\1***", _USER.sub(r"\1***@", text)) if ":/" in text else text


def printable(text: str) -> str:
    """Return a text as it may be printed; control characters are written as in JSON, so that JSON keeps its value."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", redact(text))


class PrintableStream:
    """A text stream that writes everything :func:`printable`; only :func:`rich_console` writes around it."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        bar = text.startswith("\r")  # a progress bar
        return self.stream.write("\r" * bar + printable(text[bar:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def printable_streams() -> Iterator[None]:
    """Write to stdout and stderr what is printable only, while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and PrintableStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def from_here(text: str) -> str:
    """Return a text with absolute paths below the current directory written relative to it."""
    return re.sub(rf"(?<![\w./-]){re.escape(str(Path.cwd()))}/(?=[\w.])", "", text)


def rich_console(stream: IO[str] | None = None, *, quiet: bool = False) -> Console:
    """Return a console of rich for a stream (default: stderr), with its own control sequences and no others."""
    from rich.console import Console
    from rich.text import Text

    class PrintableConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    raw = getattr(stream or sys.stderr, "stream", stream or sys.stderr)
    return PrintableConsole(file=raw, quiet=quiet, highlight=False, soft_wrap=True, force_jupyter=False)


def duration(seconds: float) -> str:
    """Return a time span in words.

    >>> duration(42), duration(90), duration(7300)
    ('42 s', '1 min 30 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
