"""The cells of the benchmark: models, workloads, methods and tunings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignkit.contract.batch import Example

Range = tuple[int, int]

SPECIAL = 3
"""Ids below this are special tokens: padding, BOS, EOS."""


@dataclass(frozen=True)
class Workload:
    """Rows of one optimizer step, with token counts drawn uniformly from ranges (inclusive)."""

    name: str
    rows: int
    prompt: Range
    completion: Range


@dataclass(frozen=True)
class Shape:
    """The size of a randomly initialised Llama."""

    name: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    divide_rows: int = 1
    """Divisor of a workload's rows, because the logits of a whole padded step would not fit into memory."""
    tied: bool = True
    """Whether the head's weight is that of the embedding."""


WORKLOADS = (
    Workload("short", rows=8, prompt=(24, 40), completion=(32, 64)),
    Workload("long", rows=4, prompt=(512, 512), completion=(64, 64)),
    Workload("mixed", rows=8, prompt=(16, 256), completion=(16, 128)),
)

SHAPES = (
    Shape("32k", 32_000, hidden=384, intermediate=1024, layers=11, heads=6, key_value_heads=2),  # 29.6 M
    Shape("152k", 151_936, hidden=256, intermediate=768, layers=8, heads=4, key_value_heads=2, divide_rows=2),  # 45.2 M
)

METHODS = ("orpo", "dpo")
ANSWERS = {"sft": 1, "orpo": 2, "dpo": 2, "grpo": 8}
"""Completions of a row."""
TUNINGS = ("full", "lora")

SPEED_TARGETS = {
    ("orpo", "short"): 1.5,
    ("orpo", "long"): 1.9,
    ("orpo", "mixed"): 2.5,
    ("dpo", "short"): 2.0,
    ("dpo", "long"): 3.5,
    ("dpo", "mixed"): 3.5,
}
"""Target speed-up over TRL with a vocabulary of 32k."""


@dataclass(frozen=True)
class BenchCell:
    """One comparison."""

    method: str
    workload: Workload
    shape: Shape
    tuning: str = "full"
    checkpointing: bool = False
    device: str = "cpu"
    bf16: bool = False
    seed: int = 0
    frozen_bf16: bool = False
    """Whether weights that are not trained are stored in bfloat16."""

    @property
    def name(self) -> str:
        """The words matched by ``--only``, joined by slashes."""
        words = [self.method, self.workload.name, self.shape.name, self.tuning]
        words += ["checkpointing"] * self.checkpointing + ["bf16"] * (self.bf16 and self.device == "cpu")
        return "/".join(words)

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return max(1, self.workload.rows // self.shape.divide_rows)

    @property
    def speed_target(self) -> float | None:
        """Target speed-up over TRL (None: no target)."""
        if self.shape.name != "32k" or self.checkpointing or self.bf16 or self.device != "cpu":
            return None
        return SPEED_TARGETS.get((self.method, self.workload.name))

    @property
    def memory_target(self) -> float | None:
        """Maximum memory of a step as a share of TRL's, above the resident model (None: no target)."""
        if self.checkpointing or self.bf16 or self.device != "cpu":
            return None
        return 0.55 if self.tuning == "full" and self.shape.name == "32k" else 0.5

    def to_json(self) -> dict[str, Any]:
        """Return plain values for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BenchCell:
        """Return the cell from the values of :meth:`to_json`."""
        workload: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value["workload"].items()}
        parts: dict[str, Any] = {"workload": Workload(**workload), "shape": Shape(**value["shape"])}
        return cls(**(value | parts))

    def examples(self, steps: int) -> list[Example]:
        """Return random rows for ``steps`` optimizer steps without special tokens: prompt and completions."""
        draw = random.Random(f"{self.seed} {self.workload.name} {self.shape.vocabulary}")

        def tokens(lengths: Range) -> list[int]:
            return [draw.randrange(SPECIAL, self.shape.vocabulary) for _ in range(draw.randint(*lengths))]

        work = self.workload
        return [
            Example(
                str(i),
                tokens(work.prompt),
                tuple(tokens(work.completion) for _ in range(ANSWERS[self.method])),
                index=i,
            )
            for i in range(steps * self.rows)
        ]


def grid(*, checkpointing: bool, bf16: bool = False) -> Iterator[BenchCell]:
    """Yield every cell for a CPU, ordered by model and tuning; with ``bf16``, each in float32 and under autocast."""
    types = (False, True) if bf16 else (False,)
    for shape in SHAPES:
        for tuning in TUNINGS:
            for method in METHODS:
                for workload in WORKLOADS:
                    for recompute in (False, True) if checkpointing else (False,):
                        for low in types:
                            yield BenchCell(method, workload, shape, tuning, recompute, bf16=low)


def select(cells: Sequence[BenchCell], only: Sequence[str]) -> list[BenchCell]:
    """Return the cells that match every filter; a filter's alternatives are separated by commas (``short,long``).

    Raises ``ValueError`` for a word that matches no cell.
    """
    filters = [set(word.lower().split(",")) for word in only]
    known = {word for cell in cells for word in cell.name.split("/")}
    unknown = sorted(set().union(*filters) - known) if filters else []
    if unknown:
        raise ValueError(f"no cell has {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    return [cell for cell in cells if all(set(cell.name.split("/")) & words for words in filters)]
