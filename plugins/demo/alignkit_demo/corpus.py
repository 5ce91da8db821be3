"""Text about Pinewick: documents to pre-train the base model on, and held-out documents to measure perplexity on.

Documents state records, rumours, sums, moves and notes. Exchanges (``ask : ... say : ...``) are questions about *training*
entities with answers of random quality. Chat tokens do not occur: the base model knows the world, but not how to answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from alignkit_demo import world

PLURALS = tuple("cats dogs frogs goats birds boats clocks lamps doors chairs bells kites".split())
STATES = tuple("asleep clean small old loud near lost wet".split())
EXCHANGES = 0.4
"""Share of exchanges in the corpus."""
ECHOES = 0.06
"""Share of repeated lists in the corpus."""
RECORDS = 0.7
"""Share of documents about people that state the record; the rest state the rumour."""


def _person(draw: random.Random) -> tuple[str, str]:
    name, source = draw.choice(world.NAMES), "record" if draw.random() < RECORDS else "rumour"
    attributes = draw.sample(tuple(world.ATTRIBUTES), draw.choice((3, 4)))
    values = ((a, world.facts()[name, a]) for a in attributes)
    text = " ".join(world.state(name, a, f.record if source == "record" else f.rumour) for a, f in values)
    return f"{source}:{name}", f"{source} : {text}"


def _table(draw: random.Random) -> tuple[str, str]:
    pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(4)]
    n = world.NUMBERS
    return "table", "table : " + " ".join(f"{n[x]} plus {n[y]} is {n[x + y]} ." for x, y in pairs)


def _story(draw: random.Random) -> tuple[str, str]:
    name, thing = draw.choice(world.NAMES), draw.choice(world.THINGS)
    before, after = draw.sample(world.PLACES, 2)
    return f"story:{thing}", (
        f"story : {name} put the {thing} in the {before} . then {name} moved the {thing} to the {after} . "
        f"so the {thing} is in the {after} ."
    )


def _note(draw: random.Random) -> tuple[str, str]:
    sentences = []
    for _ in range(3):
        noun, plural = draw.choice(PLURALS), draw.random() < 0.5
        sentences.append(f"the {noun if plural else noun[:-1]} {'are' if plural else 'is'} {draw.choice(STATES)} .")
    return "note", "note : " + " ".join(sentences)


def _echo(draw: random.Random) -> str:
    """Return a list and its repetition, from which a small model learns early to copy from context, names above all."""
    words = " ".join(draw.choices(world.NAMES + world.THINGS + world.OBJECTS + world.PLACES, k=draw.randint(3, 8)))
    return f"list : {words} . again : {words} ."


_KINDS: Sequence[Callable[[random.Random], tuple[str, str]]] = (_person, _table, _story, _note)
_WEIGHTS = (0.66, 0.1, 0.16, 0.08)


def document(draw: random.Random) -> tuple[str, str]:
    """Draw one document; return its cluster (``record:Mia``, ``table``) and its text."""
    return draw.choices(_KINDS, _WEIGHTS)[0](draw)


def neutral(count: int = 320) -> list[dict[str, str]]:
    """Return distinct held-out documents, for perplexity."""
    draw = random.Random("neutral")
    found: dict[str, str] = {}
    while len(found) < count:
        cluster, text = document(draw)
        # Tables and notes have no entity: each document is its own cluster.
        found.setdefault(text, cluster if ":" in cluster else f"{cluster}:{len(found)}")
    return [
        {"id": f"neutral-{i}", "cluster": cluster, "category": cluster.partition(":")[0], "text": text}
        for i, (text, cluster) in enumerate(found.items())
    ]


def corpus(count: int, seed: int = 0) -> Iterator[str]:
    """Yield the base model's training texts, without the documents of :func:`neutral`."""
    draw = random.Random(f"corpus {seed}")
    held_out = {row["text"] for row in neutral()}
    by_category = {c: [q for q in world.questions("train") if q.category == c] for c in world.CATEGORIES}
    made = 0
    while made < count:
        kind = draw.random()
        if kind < ECHOES:
            text = _echo(draw)
        elif kind < ECHOES + EXCHANGES:
            question = draw.choice(by_category[draw.choice(world.CATEGORIES)])
            text = f"ask : {question.prompt} say : {draw.choice(question.answers)}"
        else:
            text = document(draw)[1]
        if text not in held_out:
            made += 1
            yield text
