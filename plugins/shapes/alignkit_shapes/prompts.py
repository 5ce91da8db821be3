"""Prompts made from an instruction, or from the shared beginning of two answers."""

from __future__ import annotations

from typing import TypeAlias

from alignkit.contract import Text

from alignkit_shapes.messages import as_turn

Parts: TypeAlias = tuple[Text, tuple[Text, ...]]
"""A prompt and its answers."""

# The texts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca), for models without a chat template.
_ALPACA = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n{given}### Response:\n"
)
_ALPACA_MORE = ", paired with an input that provides further context"


def instruction_prompt(instruction: str, given: str, *, chat: bool) -> Text:
    """Return the prompt of an instruction and an optional input: a user turn if ``chat``, else Alpaca's plain text."""
    if chat:
        return as_turn("user", f"{instruction}\n\n{given}" if given else instruction)
    return _ALPACA.format(
        more=_ALPACA_MORE if given else "", instruction=instruction, given=f"### Input:\n{given}\n\n" if given else ""
    )


def as_conversations(prompt: Text, answers: tuple[Text, ...]) -> Parts:
    """Return prompt and answers, all as conversations if one of them is: plain text becomes a turn."""
    if all(isinstance(text, str) for text in (prompt, *answers)):
        return prompt, answers
    return as_turn("user", prompt), tuple(as_turn("assistant", answer) for answer in answers)


def split_pair(chosen: Text, rejected: Text) -> Parts:
    """Return the shared beginning of a pair as its prompt, and what remains as its answers.

    Conversations are split between messages. Text is split after the last shared ``Assistant:`` (the format of
    Anthropic's HH-RLHF), else at the last word boundary, so that no word is divided between prompt and answer
    (``trl.extract_prompt`` splits at the first differing character); a space at the boundary goes to the answers.

    >>> split_pair("It is blue.", "It is black.")
    ('It is', (' blue.', ' black.'))
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = _shared_text(chosen, rejected)
        return chosen[:cut], (chosen[cut:], rejected[cut:])
    first, second = as_turn("assistant", chosen), as_turn("assistant", rejected)
    shared = 0
    # Each answer keeps at least its last message: identical conversations are the same answer to one prompt.
    while shared < min(len(first), len(second)) - 1 and first[shared] == second[shared]:
        shared += 1
    return first[:shared], (first[shared:], second[shared:])


def _shared_text(chosen: str, rejected: str) -> int:
    pairs = zip(chosen, rejected, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    turn = chosen.rfind("Assistant:", 0, length)
    if turn >= 0:
        return turn + len("Assistant:")
    while length and not chosen[length - 1].isspace():
        length -= 1
    return length - 1 if length and chosen[length - 1] == " " else length
