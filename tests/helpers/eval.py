"""Policies for tests of the evaluation: plain forwards of a tiny model, and log-probabilities from a table."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from alignkit import Example, Scores, SuiteResult, Target
from alignkit.contract.rows import Row
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = 256, 257, 258
VOCABULARY = 259


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and three special tokens; decoding inverts encoding exactly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)} | {"<bos>": BOS, "<eos>": EOS, "<pad>": PAD}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).eval()


_ROTARY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
POSITIONED = {
    "learned": lambda: GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **_TOKENS),
    "rotary": lambda: LlamaConfig(**_ROTARY, max_position_embeddings=64, **_TOKENS),
}


def save_positioned(path: Path) -> Path:
    """Save models of one token per byte, with 64 learned or rotary positions, and return ``path``."""
    for name, config in POSITIONED.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config()).save_pretrained(path / name)
        byte_tokenizer().save_pretrained(path / name)
    return path


class ReferencePolicy:
    """Scores every completion by a separate unpadded forward; ``calls`` has the number of tokens of each call."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.calls: list[int] = []

    def score(self, examples: Sequence[Example], *, prompt: bool = False, grad: bool = True) -> Scores:
        assert not prompt
        assert not grad
        self.calls.append(sum(e.tokens for e in examples))
        rows = [
            token_logps(self.model, list(e.prompt), list(c))[
                torch.tensor(e.masks[i]) if e.masks and e.masks[i] else ...
            ]
            for e in examples
            for i, c in enumerate(e.completions)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        return Scores(
            logps=torch.cat(rows),
            sequence=torch.repeat_interleave(torch.arange(len(rows)), lengths),
            lengths=lengths,
            prompt_logps=torch.zeros(0),
            prompt_row=torch.zeros(0, dtype=torch.long),
            rows=len(examples),
        )


class TablePolicy:
    """Returns log-probabilities given by the test: ``{(id, completion): [one per token]}``."""

    model = torch.nn.Identity()

    def __init__(self, table: Mapping[tuple[str, int], Sequence[float]]) -> None:
        self.table = table

    def score(self, examples: Sequence[Example], *, prompt: bool = False, grad: bool = True) -> Scores:
        rows = [torch.tensor(self.table[e.id, i]) for e in examples for i in range(len(e.completions))]
        lengths = torch.tensor([len(row) for row in rows])
        sequence = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        nothing = torch.zeros(0)
        return Scores(torch.cat(rows), sequence, lengths, nothing, nothing.long(), len(examples))


@torch.no_grad()
def token_logps(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def pair(name: str, chosen: int = 1, rejected: int = 1, *, cluster: str = "", category: str = "") -> Example:
    """Return a pair of given lengths, for policies that ignore the tokens."""
    return Example(name, [BOS], ([5] * chosen, [6] * rejected), cluster=cluster, category=category)


def random_pairs(count: int, seed: int = 0, clusters: int = 7) -> list[Example]:
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(256) for _ in range(rng.randint(low, high))]

    return [
        Example(
            id=f"row-{i}",
            prompt=[BOS, *tokens(1, 12)],
            completions=([*tokens(1, 15), EOS], [*tokens(1, 15), EOS]),
            index=i,
            cluster=f"entity-{rng.randrange(clusters)}",
            category=rng.choice(("sums", "tone")),
        )
        for i in range(count)
    ]


def target(policy: object, examples: Sequence[Example], start: SuiteResult | None = None) -> Target:
    rows = [Row(i, e.id, str(e.prompt), tuple(map(str, e.completions)), e.cluster) for i, e in enumerate(examples)]
    return Target("test", policy, byte_tokenizer(), lambda kind: examples, lambda kind: rows, start)  # type: ignore[arg-type]
