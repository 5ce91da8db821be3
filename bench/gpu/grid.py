"""The cells of the comparison on a GPU: models of billions of weights, and the same grid in miniature for a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bench.cells import BenchCell, Shape, Workload

METHODS = ("orpo", "dpo", "sft", "grpo")

WORKLOADS = (
    Workload("mixed", rows=16, prompt=(64, 2048), completion=(32, 1024)),
    Workload("long-prompt", rows=8, prompt=(3072, 3072), completion=(128, 256)),
    Workload("long-both", rows=8, prompt=(2048, 2048), completion=(1024, 1024)),
    Workload("long-completion", rows=8, prompt=(128, 256), completion=(1024, 2048)),
    Workload("short", rows=32, prompt=(32, 128), completion=(32, 256)),
)
"""Ordered by what they say most about: the first are measured first."""


class Model(NamedTuple):
    """A Llama: hidden, intermediate, layers, heads and key-value heads, and how it is trained."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    tuning: str = "full"
    tied: bool = True

    def shape(self, vocabulary_name: str, vocabulary: int) -> Shape:
        sizes = self.hidden, self.intermediate, self.layers, self.heads, self.key_value_heads
        return Shape(f"{self.name}-{vocabulary_name}", vocabulary, *sizes, tied=self.tied)


MODELS = (
    Model("0.5b", 896, 4864, 24, 14, 2),
    Model("1.5b", 1536, 8960, 28, 12, 2),
    Model("8b", 4096, 14336, 32, 32, 8, tuning="lora", tied=False),
)
"""The shapes of Qwen2.5 0.5B and 1.5B and of Llama 3.1 8B, the last with adapters and gradient checkpointing."""
VOCABULARIES = {"32k": 32_000, "150k": 151_936}

TINY_WORKLOADS = tuple(
    Workload(work.name, rows=4, prompt=prompt, completion=completion)
    for work, prompt, completion in zip(
        WORKLOADS,
        [(4, 40), (48, 48), (24, 24), (4, 8), (4, 8)],
        [(4, 24), (4, 8), (12, 12), (24, 32), (4, 16)],
        strict=True,
    )
)
TINY_MODELS = (Model("tiny", 64, 96, 2, 4, 2), Model("tiny-lora", 64, 96, 2, 4, 2, tuning="lora", tied=False))
TINY_VOCABULARIES = {"1k": 1_000}


def grid(device: str, *, tiny: bool = False) -> Iterator[BenchCell]:
    """Yield every cell, the smallest model first."""
    models, words, works = (
        (TINY_MODELS, TINY_VOCABULARIES, TINY_WORKLOADS) if tiny else (MODELS, VOCABULARIES, WORKLOADS)
    )
    for model in models:
        for name, vocabulary in words.items():
            for work in works:
                for method in METHODS:
                    yield cell(method, work, model.shape(name, vocabulary), model.tuning, device)


def cell(method: str, work: Workload, shape: Shape, tuning: str, device: str) -> BenchCell:
    """Return a cell in bfloat16: frozen weights stored in it, trained ones in float32 with products in it.

    A step of GRPO has a quarter of the prompts, since each has four times as many completions.
    """
    if method == "grpo":
        work = Workload(work.name, max(work.rows // 4, 1), work.prompt, work.completion)
    adapters = tuning == "lora"
    return BenchCell(method, work, shape, tuning, adapters, device, bf16=True, frozen_bf16=adapters)


PARITY_SHAPE = Shape("parity", 1_000, hidden=256, intermediate=512, layers=2, heads=4, key_value_heads=2)
PARITY_WORK = Workload("parity", rows=4, prompt=(800, 1400), completion=(10, 100))
"""Rows are longer than the 1,024 tokens to which TRL cuts by default, so that a side that cuts them disagrees."""
TINY_PARITY_WORK = Workload("parity", rows=4, prompt=(4, 40), completion=(4, 24))


def parity_cells(cells: list[BenchCell], *, tiny: bool) -> Iterator[BenchCell]:
    """Yield a small cell for every method and tuning of ``cells``, with heads of 64 numbers as flash attention has them."""
    work = TINY_PARITY_WORK if tiny else PARITY_WORK
    for method, tuning in dict.fromkeys((one.method, one.tuning) for one in cells):
        yield cell(method, work, PARITY_SHAPE, tuning, cells[0].device)
