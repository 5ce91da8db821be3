"""The built-in rules of data checks on the text of rows."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from alignkit import CheckConfig, DataRule, Hit, Row, plain_text, text_digest, texts_of
from alignkit.errors import ConfigError, suggest
from alignkit.system.files import digest

from alignkit_checks.scales import doubtful_scales
from alignkit_checks.similar import Sketches

Find = Callable[[Sequence[Row], Sequence[Row], CheckConfig], Iterator[Hit]]


def named(row: Row) -> str:
    """Return a row's location, or its id if the location is unknown."""
    return row.place or f"row {row.id}"


def _by_field(problem: Callable[[str, str, CheckConfig], str | None]) -> Find:
    """Return the rule that finds rows by the first field (name and text) with a problem."""

    def rule(rows: Sequence[Row], _held_out: Sequence[Row], limits: CheckConfig) -> Iterator[Hit]:
        for i, row in enumerate(rows):
            about = next(filter(None, (problem(*field, limits) for field in texts_of(row))), None)
            if about is not None:
                yield Hit(i, about)

    return rule


def unusable(rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Rows that training would drop."""
    return (Hit(i, row.unusable) for i, row in enumerate(rows) if row.unusable is not None)


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")


@_by_field
def control_characters(name: str, text: str, _limits: CheckConfig) -> str | None:
    """Invisible characters, which become tokens."""
    found = _CONTROL.search(text)
    return f"{name} contains U+{ord(found[0]):04X}" if found else None


# UTF-8 decoded as Latin-1 or Windows-1252, and the replacement character.
_DAMAGE = re.compile(
    "\ufffd|\u00c3[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u2013-\u203a\u20ac\u2122]|\u00e2\u20ac[\u0093-\u00a6\u201c\u201d\u2122\u0153]|\u00c2[\u00a0-\u00bf]|\u00d0[\u0080-\u00bf]\u00d0"
)


@_by_field
def encoding_damage(name: str, text: str, _limits: CheckConfig) -> str | None:
    found = _DAMAGE.search(text)
    if found is None:
        return None
    around = text[max(found.start() - 10, 0) : found.end() + 10].replace("\n", " ")
    return f"{name}: ...{around}..."


@lru_cache(maxsize=100_000)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


@lru_cache
def known_script(name: str) -> str:
    """Return a script's name in capitals, as in names of characters; raise ``ConfigError`` if no letter has such a name."""
    letters = (letter for letter in map(chr, range(0x20000)) if letter.isalpha())
    names = (
        name for name in (unicodedata.name(letter, "") for letter in letters) if not name.endswith(" SIGN")
    )  # KELVIN SIGN
    scripts = {name.partition(" ")[0] for name in names}
    if (wanted := name.upper()) not in scripts:
        hint = suggest(name.title(), sorted(map(str.title, scripts)))
        raise ConfigError(
            f'data.check.script: no letter is of the script "{name}"{hint} (such as Latin, Arabic or CJK)'
        )
    return wanted


@_by_field
def wrong_script(name: str, text: str, limits: CheckConfig) -> str | None:
    """Too few letters of the expected script; text without letters passes."""
    if limits.script is None:
        return None
    wanted = known_script(limits.script)
    letters = [letter for letter in text if letter.isalpha()]
    share = sum(_script(letter) == wanted for letter in letters) / len(letters) if letters else 1.0
    return f"{share:.0%} of the letters of {name} are {limits.script}" if share < limits.script_share else None


_WORDS = re.compile(r"[^\W\d_]+")
_LOOK_ALIKE = frozenset({"LATIN", "CYRILLIC", "GREEK"})
"""Scripts that share look-alike letters (homoglyphs)."""


@_by_field
def mixed_scripts(name: str, text: str, _limits: CheckConfig) -> str | None:
    """Words that mix look-alike letters of several scripts (Latin, Cyrillic, Greek)."""
    word = None if text.isascii() else next((w for w in _WORDS.findall(text) if _is_mixed(w)), None)
    if word is None:
        return None
    return f'"{word}" in {name} mixes {" and ".join(sorted(map(str.title, _scripts_of(word))))} letters'


def _is_mixed(word: str) -> bool:
    # Greek letters next to Latin ones are usually formulas, not spoofing: "Δx", "µm".
    return not word.isascii() and "CYRILLIC" in (found := _scripts_of(word)) and len(found) > 1


def _scripts_of(word: str) -> set[str]:
    return {_script(letter) for letter in word} & _LOOK_ALIKE


@_by_field
def too_short(name: str, text: str, limits: CheckConfig) -> str | None:
    """Fields with fewer than ``min_words`` words."""
    words = len(text.split())
    return f"{name} has {words} words" if words < limits.min_words else None


def wrong_roles(rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Conversations with an invalid order of roles: a system turn in the middle, two user turns in a row, an answer by the user."""
    for i, row in enumerate(rows):
        if isinstance(row.prompt, str):
            continue
        for answer in row.answers or ((),):
            turns = [str(m["role"]) for m in (*row.prompt, *(() if isinstance(answer, str) else answer))]
            problem = _role_problem(turns, answered=bool(row.answers))
            if problem:
                yield Hit(i, problem)
                break


def _role_problem(turns: Sequence[str], *, answered: bool) -> str | None:
    if "system" in turns[1:]:
        return "a system turn is not the first turn"
    others = [turn for turn in turns if turn != "system"]
    for before, after in pairwise(others):
        if before == after and before in ("user", "assistant"):
            return f"two consecutive {before} turns"
    if others and others[0] == "assistant":
        return "the conversation begins with an assistant turn"
    return f"the answer has the role {others[-1]}" if answered and others and others[-1] != "assistant" else None


def _asked(row: Row) -> str:
    return text_digest(row.prompt) + (digest(row.tools) if row.tools else "")


def _content(row: Row) -> str:
    """Return a digest of what is asked and answered, and of the label of an unpaired answer."""
    label = _label(row)
    more = [digest([row.tools, label])] if row.tools or label else []
    return text_digest(row.prompt, *row.answers, *more)


def _label(row: Row) -> str:
    label = row.fields.get("label")
    return str(label) if len(row.answers) == 1 and isinstance(label, bool) else ""


def duplicates(rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Rows with the same prompt, tools, answers and label as an earlier row."""
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        earlier = first.setdefault(_content(row), i)
        if earlier != i:
            yield Hit(i, f"the same as {named(rows[earlier])}")


def contradictions(rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Pairs with the same prompt and answers as another pair, but the opposite preference; likewise labels of one answer."""
    # Prompt, tools and answers -> the chosen one of the two answers, or the label of the one -> rows.
    pairs: dict[tuple[str, frozenset[str]], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, row in enumerate(rows):
        answers = [text_digest(answer) for answer in row.answers]
        side = answers[0] if len(answers) == 2 else _label(row)
        if side and row.unusable is None:
            pairs[_asked(row), frozenset(answers)][side].append(i)
    for sides in pairs.values():
        if len(sides) == 2:
            one, other = sides.values()
            for i in sorted([*one, *other]):
                yield Hit(i, f"{named(rows[(other if i in one else one)[0]])} has the opposite preference")


def near_duplicates(rows: Sequence[Row], _held_out: Sequence[Row], limits: CheckConfig) -> Iterator[Hit]:
    """Rows nearly the same as an earlier row (exact duplicates are found by :func:`duplicates`)."""
    sketches, exact, numbers = Sketches(), set[str](), list[int]()
    for i, row in enumerate(rows):
        key = text_digest(row.prompt, *row.answers)
        if key in exact:
            continue
        runs = sketches.runs("\n".join(text for _, text in texts_of(row)))
        best = sketches.most_like(runs, limits.near)
        if best is not None:
            yield Hit(i, f"{best[1]:.0%} similar to {named(rows[numbers[best[0]]])}")
        exact.add(key)
        sketches.add(runs)
        numbers.append(i)


def leaked(rows: Sequence[Row], held_out: Sequence[Row], limits: CheckConfig) -> Iterator[Hit]:
    """Rows whose prompt also occurs, exactly or nearly, in the held-out rows."""
    exact: dict[str, str] = {}
    sketches, names = Sketches(), list[str]()
    for row in held_out:
        name = named(row)
        if exact.setdefault(text_digest(row.prompt), name) == name:
            sketches.add(sketches.runs(plain_text(row.prompt)))
            names.append(name)
    for i, row in enumerate(rows):
        same = exact.get(text_digest(row.prompt))
        if same is not None:
            yield Hit(i, f"same prompt as {same}")
            continue
        best = sketches.most_like(sketches.runs(plain_text(row.prompt)), limits.near)
        if best is not None:
            yield Hit(i, f"prompt {best[1]:.0%} similar to that of {names[best[0]]}")


_FIRST_TURN = re.compile(
    r"\s*(?:Human|User|Question|Q)\s*:(.*?)\n\s*(?:Assistant|AI|Bot|Answer|A)\s*:", re.DOTALL | re.IGNORECASE
)
_GREETING = 3
"""Words up to which a first turn is a greeting, with which many dialogues begin."""


def first_turn(row: Row) -> str:
    """Return the words of a dialogue's first user turn; empty for plain text without turns, and for greetings."""
    if isinstance(row.prompt, str):
        found = _FIRST_TURN.match(row.prompt)
        text = found[1] if found else ""
    else:
        text = next((str(turn["content"]) for turn in row.prompt if turn["role"] == "user"), "")
    words = text.casefold().split()
    return " ".join(words) if len(words) > _GREETING else ""


def leaked_first_turns(rows: Sequence[Row], held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Dialogues that begin with the same turn as a held-out one and go on differently."""
    opened: dict[str, str] = {}
    for row in held_out:
        opened.setdefault(first_turn(row), named(row))
    prompts = {text_digest(row.prompt) for row in held_out}
    for i, row in enumerate(rows):
        other = opened.get(begin) if (begin := first_turn(row)) else None
        if other is not None and text_digest(row.prompt) not in prompts:
            yield Hit(i, f"the first turn is that of {other}; dialogues with one value of cluster are never divided")


_OPENING = frozenset("([{<\"'`\u201c\u2018\u00ab-/\\#$@_=*~^")
"""Characters after which text goes on without a space."""


def joined_words(rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Plain text prompts that end without a space before an answer that begins with a letter or digit."""
    for i, row in enumerate(rows):
        if not isinstance(row.prompt, str) or not row.prompt or row.prompt[-1].isspace() or row.prompt[-1] in _OPENING:
            continue
        for answer in row.answers:
            # Letters without case (Chinese, Thai, ...) are written without spaces.
            if isinstance(answer, str) and (answer[:1].isdigit() or answer[:1].lower() != answer[:1].upper()):
                yield Hit(
                    i,
                    f"prompt and answer are read as {row.prompt[-12:] + answer[:12]!r}: begin the answers with a space",
                )
                break


_LIST = re.compile(r"""\s*\[\s*(["']).*\1\s*\]\s*""", re.DOTALL)


def written_lists(rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Rejected answers that are a list written as text, as several answers are in a CSV file."""
    for i, row in enumerate(rows):
        answer = row.answers[1] if len(row.answers) == 2 else None
        if isinstance(answer, str) and _LIST.fullmatch(answer):
            yield Hit(i, f"rejected is one text, {answer[:30]!r}: several answers are a list in JSON Lines")


RULES: Sequence[DataRule] = (
    DataRule("unusable", "rows that cannot be trained on", unusable),
    DataRule("duplicate", "duplicate rows", duplicates),
    DataRule("contradiction", "contradictory preferences", contradictions),
    DataRule("near-duplicate", "near-duplicate rows", near_duplicates, drops=False),
    DataRule("encoding", "mis-encoded text (mojibake)", encoding_damage),
    DataRule("control", "control and invisible characters", control_characters, drops=False),
    DataRule("script", "text in another script", wrong_script),
    DataRule("mixed-script", "words that mix letters of several scripts", mixed_scripts, drops=False),
    DataRule("short", "fields with too few words", too_short),
    DataRule("roles", "conversations with an invalid order of roles", wrong_roles),
    DataRule(
        "joined", "prompts that end without a space before answers that begin without one", joined_words, drops=False
    ),
    DataRule("scale", "answers that may be preferred the wrong way round", doubtful_scales, drops=False),
    DataRule("list-text", "rejected answers that are lists written as text", written_lists, drops=False),
    DataRule("leak", "prompts that also occur in the held-out rows", leaked),
    DataRule("leak-first-turn", "dialogues that begin as a held-out one", leaked_first_turns, drops=False),
)
