"""A tiny real model and synthetic rows: good answers consist of even tokens, bad ones of odd tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignkit.contract import Answered, Example, RowKind

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

VOCABULARY = 128
END = 2
_FIRST = 4
"""The first token that is not a special token."""


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Return a Llama with random weights and about ten thousand parameters; ``changes`` override its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": END,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(shape | changes)))


def rows(kind: RowKind, n: int, seed: int = 0, longest: int = 10) -> list[Example]:
    """Return rows of a kind: preference rows with the good answer first, unpaired rows with ``label`` in their fields."""
    draw = random.Random(seed)

    def tokens(first: int, step: int = 2) -> list[int]:
        return draw.choices(range(first, VOCABULARY, step), k=draw.randint(2, longest))

    made = []
    for i in range(n):
        prompt, good, bad = tokens(_FIRST, 1), [*tokens(_FIRST), END], [*tokens(_FIRST + 1), END]
        label = i % 2 == 0
        completions: dict[RowKind, tuple[list[int], ...]] = {
            "preference": (good, bad),
            "completion": (good,),
            "unpaired": (good if label else bad,),
            "prompt": (),
            "ranked": (good, [*good[:-1], *bad], bad),
        }
        fields = {"label": label}
        made.append(Example(f"row-{i}", prompt, completions[kind], index=i, cluster=f"c{i}", fields=fields))
    return made


def good_share(answers: Sequence[Answered]) -> list[float]:
    """Return the share of even tokens of each answer: a learnable reward."""
    return [sum(token % 2 == 0 for token in a.answer_ids) / max(len(a.answer_ids), 1) for a in answers]


class Words:
    """A minimal tokenizer for rollouts: token 7 decodes to the word ``w7``."""

    pad_token_id, eos_token_id = 0, END

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(f"w{token}" for token in tokens)
