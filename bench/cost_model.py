"""Expected costs of a training step on a GPU, from counts alone: ``python -m bench.cost_model`` prints the table of docs/gpu.md.

A step is counted as floating-point operations of three kinds and as bytes moved, for masks and for all that is no product. Letters: ``H`` hidden size, ``I``
intermediate size, ``L`` layers, ``K`` key-value heads of ``D`` numbers, ``V`` vocabulary; ``T`` tokens that pass the trunk, ``C``
scores of queries and keys in a head, ``S`` positions that pass the head.

    trunk      2 L (2 H H + 2 H K D + 3 H I) T    a forward pass
    attention  4 L H C                            a forward pass
    head       2 H V S                            a forward pass
    masks      L passes x 2 bytes x B M M         a mask of B rows of M tokens as a bias in bfloat16, written and read
    layers     L T bytes a token                  norms, rotary embeddings, gates, casts, residuals (:mod:`bench.traffic`)
    optimizer  34 bytes a trained weight          AdamW reads four float32 numbers and writes three; a cast to bfloat16

A training step is several forward passes' worth of each (:func:`passes`). Launches and synchronisations are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from bench.cells import BenchCell, Shape
from bench.traffic import KERNELS as TRAFFIC
from bench.traffic import traffic

PEAK = 989e12
"""bfloat16 operations per second of an H100 SXM without sparsity, from its data sheet."""
BANDWIDTH = 3.35e12
"""Bytes per second of its memory."""
RATES = {"product": 0.65, "flash": 0.5, "dense": 0.2, "memory": 0.9}
"""Assumed shares of the peaks: large matrix products, flash attention forward and backward, attention with a dense mask, memory."""
KERNELS = {"ours-compiled": "compiled", "ours-liger": "liger", "trl": "liger", "trl-reference": "liger"}
"""How the layers of a side compute what is no product; those of the others do it an operation after the other."""
OPTIMIZER = 7 * 4 + 6
"""Bytes that an optimizer step moves for a trained weight, with its cast for the next step's products."""


class Row(NamedTuple):
    """Token counts of a row."""

    prompt: int
    completions: tuple[int, ...]


class Counts(NamedTuple):
    """What a side computes for a step: ``T``, ``C``, ``S``, whether attention has dense masks, and their cells ``B M M``."""

    trunk: float
    cells: float
    scored: float
    mask: float = 0.0
    passes_of_reference: float = 0.0
    """Forward passes over the same rows without gradient."""


class Passes(NamedTuple):
    """Forward passes' worth of work in a training step."""

    trunk: float
    attention: float
    head: float


def passes(*, lora: bool, checkpointing: bool, logits_kept: bool = False) -> Passes:
    """Return the passes of a step with backward.

    A backward pass computes the gradient of the input (1 forward's worth) and of the weight (1, none where it is frozen).
    Flash attention's backward has 5 products for the forward's 2, since it computes the scores anew. A head in chunks computes
    its logits anew (1) unless all of them are kept. Gradient checkpointing adds a forward pass of trunk and attention.
    """
    weight = 0 if lora else 1
    again = 1 if checkpointing else 0
    return Passes(2 + weight + again, 3.5 + again, 2 + weight + (0 if logits_kept else 1))


@dataclass(frozen=True)
class Cost:
    """Floating-point operations by kind, and bytes: of masks, and of the layers and the optimizer."""

    trunk: float
    attention: float
    head: float
    masks: float = 0.0
    dense: bool = False
    layers: float = 0.0

    @property
    def operations(self) -> float:
        """All floating-point operations."""
        return self.trunk + self.attention + self.head

    @property
    def seconds(self) -> float:
        """Expected time on the GPU assumed."""
        return self.time(RATES)

    def time(self, rates: Mapping[str, float]) -> float:
        """Return the seconds at these shares of the peak."""
        attention = rates["dense" if self.dense else "flash"]
        products = (self.trunk + self.head) / rates["product"]
        moved = (self.masks + self.layers) / rates["memory"]
        return (products + self.attention / attention) / PEAK + moved / BANDWIDTH


def triangle(n: float) -> float:
    """Return the scores of causal attention over ``n`` tokens."""
    return n * (n + 1) / 2


def scored(method: str, row: Row) -> int:
    """Return the positions of a row that the loss needs: the answers, and for ORPO in TRL's convention the prompt once."""
    return sum(row.completions) + (row.prompt - 1 if method == "orpo" else 0)


def packed(method: str, rows: Sequence[Row]) -> Counts:
    """Count alignkit's packed scorer: no padding, a prompt once, the head where tokens are scored.

    GRPO also scores the answers without gradient, for the log-probabilities that ratios are taken to, and their entropy.
    """
    tokens = sum(row.prompt + sum(row.completions) for row in rows)
    cells = sum(triangle(row.prompt) + sum(c * row.prompt + triangle(c) for c in row.completions) for row in rows)
    again = 1.0 if method == "grpo" else 0.0
    return Counts(tokens, cells, sum(scored(method, row) for row in rows), passes_of_reference=again)


def in_rows(method: str, rows: Sequence[Row]) -> Counts:
    """Count alignkit's rows: a row a prompt with its answers, padded to the longest, with a dense mask."""
    longest = max(row.prompt + sum(row.completions) for row in rows)
    square = float(len(rows) * longest**2)
    again = 1.0 if method == "grpo" else 0.0
    return Counts(len(rows) * longest, square, packed(method, rows).scored, square, again)


def separate(method: str, rows: Sequence[Row], *, flash: bool, padding_free: bool, reference: bool = False) -> Counts:
    """Count TRL: a sequence an answer with a prompt of its own, padded to the longest unless ``padding_free``.

    With flash attention, padding is skipped in attention alone; otherwise attention has a dense mask where there is padding.
    TRL's head runs where tokens are scored, but ORPO's everywhere.
    """
    lengths = [row.prompt + c for row in rows for c in row.completions]
    longest = max(lengths)
    if method == "grpo":  # prompts and answers are padded apart
        longest = max(row.prompt for row in rows) + max(c for row in rows for c in row.completions)
    padded = len(lengths) * longest
    even = padded == sum(lengths)
    square = float(len(lengths) * longest**2)
    exact = sum(map(triangle, lengths))
    trunk = sum(lengths) if padding_free else padded
    positions = padded if method == "orpo" else sum(c for row in rows for c in row.completions)
    dense = not (flash or even)
    again = 1.0 if reference else 0.0
    return Counts(trunk, square if dense else exact, positions, square if dense else 0.0, again)


def cost(shape: Shape, counts: Counts, work: Passes) -> Cost:
    """Return the cost of a step with these counts."""
    h, layer = shape.hidden, _layer(shape)
    extra = counts.passes_of_reference
    return Cost(
        trunk=2.0 * shape.layers * layer * counts.trunk * (work.trunk + extra),
        attention=4.0 * shape.layers * h * counts.cells * (work.attention + extra),
        head=2.0 * h * shape.vocabulary * counts.scored * (work.head + extra),
        masks=2 * 2.0 * shape.layers * counts.mask * (2 + extra),
        dense=counts.mask > 0,
    )


def _layer(shape: Shape) -> int:
    """Return the weights of a layer's products."""
    h, key = shape.hidden, shape.key_value_heads * (shape.hidden // shape.heads)
    return 2 * h * h + 2 * h * key + 3 * h * shape.intermediate


def side_cost(side: str, cell: BenchCell, rows: Sequence[Row]) -> Cost:
    """Return the cost of a step of ``cell`` on one side of the benchmark; ``ours-apart``: without sharing casts, as measured."""
    method, lora = cell.method, cell.tuning == "lora"
    work = passes(lora=lora, checkpointing=cell.checkpointing, logits_kept=method == "orpo" and side.startswith("trl"))
    if side.startswith("ours") or side == "prefix-grouper":
        counts = packed(method, rows)
        if side == "prefix-grouper":  # it takes the policy's own log-probabilities; it pads to the longest row
            longest = max(row.prompt + sum(row.completions) for row in rows)
            counts = counts._replace(trunk=float(len(rows) * longest), passes_of_reference=0.0)
    elif side == "rows":
        counts = in_rows(method, rows)
    else:
        best = side != "trl-default"
        reference = method == "dpo" and side != "trl"
        counts = separate(method, rows, flash=best, padding_free=best and method == "sft", reference=reference)
    return replace(cost(cell.shape, counts, work), layers=_moved(side, cell, counts))


def _moved(side: str, cell: BenchCell, counts: Counts) -> float:
    """Return the bytes that the layers move in a step, and the optimizer (adapters have few weights: not counted)."""
    shape = cell.shape
    apart = side.startswith("trl") or side == "ours-apart"
    token = traffic(shape, cell.tuning, KERNELS.get(side, "eager"), apart=apart)
    forward = token.forward * (1 + cell.checkpointing + counts.passes_of_reference)
    weights = 0 if cell.tuning == "lora" else shape.layers * _layer(shape) + shape.vocabulary * shape.hidden
    return shape.layers * counts.trunk * (forward + token.backward) + OPTIMIZER * weights


def useful(cell: BenchCell, rows: Sequence[Row]) -> Cost:
    """Return the least that a step needs: prompts once, no padding, nothing computed twice."""
    counts = packed(cell.method, rows)._replace(passes_of_reference=0.0)
    return cost(cell.shape, counts, passes(lora=cell.tuning == "lora", checkpointing=False, logits_kept=True))


@lru_cache(maxsize=256)
def rows_of(cell: BenchCell, steps: Sequence[int] = (0,), of: int = 1) -> tuple[tuple[Row, ...], ...]:
    """Return the token counts of the rows of ``steps`` of a run of ``of`` steps, as the benchmark takes them."""
    from alignkit.data.order import RowOrder

    examples = cell.examples(of)
    order = RowOrder(len(examples), cell.seed)
    counts = [Row(len(e.prompt), tuple(map(len, e.completions))) for e in examples]
    return tuple(tuple(counts[i] for i in order.step(cell.rows, step, 0)) for step in steps)


# ------------------------------------------------------------------ the tables of docs/gpu.md

RIVALS = {
    "orpo": ("ours-liger", "ours-compiled", "trl", "trl-default"),
    "dpo": ("ours-liger", "ours-compiled", "trl", "trl-reference", "trl-default"),
    "sft": ("ours-liger", "ours-compiled", "trl", "trl-default"),
    "grpo": ("ours-liger", "ours-compiled", "trl", "trl-default"),
}
"""The sides that the table compares with alignkit."""

EXAMPLE = ("dpo", "long-both", "8b", "150k")
"""The cell whose arithmetic is shown."""


def table() -> str:
    """Return the expected ratios: a side's time of a step over alignkit's, by method, workload, side and model."""
    from bench.gpu.grid import METHODS, MODELS, VOCABULARIES, WORKLOADS, cell

    shapes = [(m, m.shape(name, size)) for m in MODELS for name, size in VOCABULARIES.items()]
    lines = [
        f"| method | rows | side | {' | '.join(shape.name for _, shape in shapes)} |",
        f"|---|---|---|{'---|' * len(shapes)}",
    ]
    for method in METHODS:
        for work in WORKLOADS:
            cells = [cell(method, work, shape, model.tuning, "cuda") for model, shape in shapes]
            for side in RIVALS[method]:
                ratios = " | ".join(f"{ratio(side, one):.2f}" for one in cells)
                lines.append(f"| {method} | {work.name} | {side} | {ratios} |")
    return "\n".join(lines)


def ratio(side: str, cell: BenchCell, rates: Mapping[str, float] = RATES) -> float:
    """Return the expected time of a step on ``side`` over alignkit's, for the rows of the cell's first step."""
    (rows,) = rows_of(cell)
    return side_cost(side, cell, rows).time(rates) / side_cost("ours", cell, rows).time(rates)


def example() -> str:
    """Return the arithmetic of one cell, for every side and for alignkit's dense masks."""
    from bench.gpu.grid import MODELS, VOCABULARIES, WORKLOADS
    from bench.gpu.grid import cell as make

    method, work_name, model_name, vocabulary = EXAMPLE
    work = next(one for one in WORKLOADS if one.name == work_name)
    model = next(one for one in MODELS if one.name == model_name)
    cell = make(method, work, model.shape(vocabulary, VOCABULARIES[vocabulary]), model.tuning, "cuda")
    (rows,) = rows_of(cell)
    lines = [
        "| side | trunk | attention | head | masks | layers | seconds | over ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side in ("ours", "rows", *RIVALS[method]):
        one = side_cost(side, cell, rows)
        teras = [f"{value / 1e12:,.0f}" for value in (one.trunk, one.attention, one.head)]
        lines.append(
            f"| {side} | {' | '.join(teras)} | {one.masks / 1e9:,.0f} | {one.layers / 1e9:,.0f} | {one.seconds:.2f} "
            f"| {ratio(side, cell):.2f} |"
        )
    return "\n".join(lines)


def moved() -> str:
    """Return what the layers move, by model and kernels."""
    from bench.gpu.grid import MODELS

    lines = [f"| model | {' | '.join(TRAFFIC)} |", f"|---|{'---|' * len(TRAFFIC)}"]
    for model in MODELS:
        found = [traffic(model.shape("", 0), model.tuning, kernels) for kernels in TRAFFIC]
        cells = " | ".join(f"{one.forward / 1e3:,.0f} + {one.backward / 1e3:,.0f}" for one in found)
        lines.append(f"| {model.name}{', LoRA' if model.tuning == 'lora' else ''} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    print(moved(), example(), table(), sep="\n\n")


if __name__ == "__main__":
    main()
