"""Documents of the demo's lm-eval tasks: facts about held-out people, and agreement of verbs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from alignkit_demo.world import ATTRIBUTES, ask, entities, facts, state

_VERBS = {"has": "have", "eats": "eat", "wears": "wear", "lives": "live"}


def facts_documents() -> Iterator[dict[str, Any]]:
    """Yield one document a held-out person and attribute: the record among all values of the attribute."""
    draw = random.Random("facts")
    for name in entities("person", "test"):
        for key, attribute in ATTRIBUTES.items():
            choices = draw.sample(attribute.values, len(attribute.values))  # the place of the record says nothing
            yield {
                "cluster": name,
                "question": ask(name, key),
                "choices": [state(name, key, value) for value in choices],
                "gold": choices.index(facts()[name, key].record),
            }


def agreement_documents() -> Iterator[dict[str, Any]]:
    """Yield one document a held-out person and attribute: the verb as a statement has it, and without its ending."""
    draw = random.Random("agreement")
    for name in entities("person", "test"):
        for key in ATTRIBUTES:
            right = state(name, key, facts()[name, key].record).removeprefix(f"{name} ")
            verb = right.split()[0]
            choices = draw.sample([right, right.replace(verb, _VERBS[verb], 1)], 2)
            yield {"cluster": name, "question": name, "choices": choices, "gold": choices.index(right)}
