"""The verdict on how a command ended that was given faulty input."""

from __future__ import annotations

import re

from tests.accept.campaign.processes import Ended

LONGEST = 400
INTERNAL = re.compile(
    r"\b[A-Z]\w*(?:Error|Exception|Interrupt)\b|object at 0x|<class |NoneType|has no attribute"
    r"|not subscriptable|not iterable|Errno|weights_only|unhashable|maximum recursion|positional argument"
)
"""Words of an error that was not meant for the user."""
SECRET = "hunter2"
"""A password that inputs contain."""
BARE = re.compile(r"\D: '[^' ]*'$")
"""The end of a message that only quotes a key."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
VERDICTS = ("refused", "used", "unclear", "crashed", "hung")


def judge(ended: Ended) -> tuple[str, str]:
    """Return one of :data:`VERDICTS` and, of all but the first two, the reason.

    refused: exit code 2 and one clear sentence. used: exit code 0. unclear: another code, or words that do not help.
    """
    if ended.code is None:
        return "hung", f"still running after {ended.seconds:.0f} s"
    if ended.code < 0 or "Traceback (most recent call last)" in ended.err + ended.out:
        return "crashed", "a signal" if ended.code < 0 else "a traceback"
    if found := CONTROL.search((ended.err + ended.out).replace("\r\n", "\n")):
        return "unclear", f"prints the control character {found[0]!r}"
    if SECRET in ended.err + ended.out:
        return "unclear", "prints a password"
    if ended.code == 0:
        return "used", ""
    if reason := unclear(ended):
        return "unclear", reason
    return "refused", ""


def unclear(ended: Ended) -> str:
    """Return why a refusal is not one clear sentence with exit code 2, or an empty text."""
    sentence = ended.error
    if ended.code != 2:
        return f"exit code {ended.code}"
    if not sentence or not any(line.startswith("Error: ") for line in ended.err.splitlines()):
        return "no error message"
    if ended.err[ended.err.index("Error: ") :].strip().count("\n"):
        return "a message of several lines"
    if len(sentence.replace(ended.cwd, "")) > LONGEST:
        return f"a message of {len(sentence)} characters"
    if "--debug" in sentence:
        return "advice to use --debug"
    if BARE.search(sentence):
        return "a message that ends with a bare key"
    if found := INTERNAL.search(sentence):
        return f"internal words: {found[0]}"
    return ""
