"""A training step of a side of the benchmark without a GPU and without numbers: what it launches, moves and keeps in memory.

The step runs as it is, at its real size, on tensors that have shapes and no storage (``FakeTensorMode``). Counted are

- the bytes that all operations but products and attention read and write (:class:`bench.traffic.Traffic`),
- operations that a GPU launches a kernel for (everything but views),
- the bytes of all tensors that are alive, and the most of them at a time: what ``torch.cuda.max_memory_allocated`` measures.

Flash attention returns tensors of the shapes it has; the output layer works in the chunks it has on a GPU; Liger's kernels are one pass
each and keep what Liger keeps (:func:`bench.traffic.fused`). Decisions that depend on numbers are taken as for finite ones.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from bench.cells import BenchCell
from bench.traffic import Traffic, fused, is_free

GIB = 2**30
SIDES = ("ours", "ours-liger", "trl", "trl-default")


@dataclass(frozen=True)
class Simulated:
    """What a step takes."""

    resident: int
    """Bytes of the model between steps."""
    peak: int
    """The most bytes alive during the step, the model included."""
    moved: int
    """Bytes read and written outside products and attention."""
    launches: int
    """Operations that are no views."""


class Meter(Traffic):
    """Counts traffic, launches and the bytes that are alive; reads of the device give 1."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.launches = 0
        self.known: dict[int, weakref.ref[Any]] = {}
        self.valid = 0
        """Tokens of the micro-batch that are no padding (0: there is none)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return self.valid == 0 if args[0].dtype == torch.bool else 1
        if name == "nonzero":  # of a padding mask
            return torch.empty(self.valid, 1, dtype=torch.long)
        if name == "scatter_add":  # autograd adds in place, but for tensors of a class of their own
            func = torch.ops.aten.scatter_add_.default
        found = super().__torch_dispatch__(func, types, args, kwargs)
        self.launches += self._counting and not is_free(func)
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor):
                self.keep(one)
        return found

    def keep(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage as alive until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def freed(_: Any) -> None:
            self.alive -= size
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def simulate(cell: BenchCell, side: str, parts: int = 1, steps: int = 1, numbers: Sequence[int] = (0,)) -> Simulated:
    """Return what the steps ``numbers`` of a run of ``steps`` take, each in ``parts`` micro-batches: the peak of all, the rest of the last.

    ``side`` is one of :data:`SIDES` (``trl``: flash attention, Liger, references computed before).
    """
    cell = replace(cell, device="cpu")  # of which tensors without storage say they are
    liger = side in ("ours-liger", "trl")
    meter = Meter()
    with _without_storage(), fused(meter) if liger else ExitStack(), meter:
        built = _ours(cell, parts, steps) if side.startswith("ours") else _theirs(meter, cell, side, parts, steps)
        gc.collect()
        before, meter.peak = meter.alive, 0
        for number in numbers:
            meter.bytes = meter.launches = 0
            built.step(number)
            built.model.zero_grad()
            gc.collect()
    return Simulated(before, meter.peak, meter.bytes, meter.launches)


def _ours(cell: BenchCell, parts: int, steps: int) -> Any:
    from bench.gpu.sides import budget
    from bench.sides import Ours

    return Ours(cell, steps, budget(cell, steps, parts))


def _theirs(meter: Meter, cell: BenchCell, side: str, parts: int, steps: int) -> Any:
    from bench.gpu import flash
    from bench.sides import Theirs
    from bench.trl import Settings

    if side == "trl-default":
        return Theirs(cell, steps, Settings(precomputed=False), parts)
    flash.register()
    theirs = Theirs(cell, steps, Settings(flash.NAME, padding_free=cell.method == "sft"), parts)
    whole, batch = theirs.trainer.training_step, theirs._batch
    lengths: list[int] = []

    def with_lengths(rows: list[int]) -> Any:
        examples = [theirs.examples[i] for i in rows]
        lengths.append(sum(len(one.prompt) + len(answer) for one in examples for answer in one.completions))
        return batch(rows)

    def step(*arguments: Any) -> Any:
        meter.valid = lengths.pop(0)
        return whole(*arguments)

    theirs._batch, theirs.trainer.training_step = with_lengths, step  # type: ignore[method-assign]
    return theirs


@contextmanager
def _without_storage() -> Iterator[None]:
    """Let models be built, moved and scored where there are no numbers, as on a GPU."""
    from alignkit.scoring import attention, head, probe
    from alignkit.scoring.plan import Scorer
    from alignkit_attention.varlen import Launch, Varlen, _VarlenAttention

    from bench.gpu import flash

    operators = _shapes()

    def sequences(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *given: Any) -> torch.Tensor:
        *lengths, scale = given
        launch = Launch(None, None, *lengths, causal=True)
        return _VarlenAttention.apply(query, key, value, [launch], operators, scale)

    class Kernel(Varlen):
        devices = frozenset()

    def choose(model: Any, *_: Any, **__: Any) -> Scorer:
        attention.register()
        attention.set_attention(model, attention.NAMES["sdpa"])
        return Scorer("packed", kernels={"varlen": Kernel(operators)})

    with ExitStack() as stack:
        for owner, name, value in (
            (probe, "choose", choose),
            (head, "CPU", head.ACCELERATOR),
            (head, "_product", _product),
            (torch.nn.Module, "to", lambda self, *_, **__: self),
            (flash, "_sequences", sequences),
        ):
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def _shapes() -> Any:
    """Return flash attention's operators with results of the right shapes, of which no traffic is counted."""
    from alignkit_attention.varlen import Operators

    def forward(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])

    def backward(_: torch.Tensor, query: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(one) for one in (query, *others[:2]))

    return Operators(forward, backward)


def _product(_: torch.Tensor, __: torch.Tensor, out: torch.Tensor, **___: bool) -> torch.Tensor:
    """Take the place of a product into a tensor of another type, which has a kernel on a GPU alone."""
    return out


def main(words: Sequence[str] | None = None) -> None:
    """Print what steps of the benchmark take: ``python -m bench.simulated --only orpo mixed 0.5b-32k --sides ours trl --parts 2``."""
    import argparse

    from bench.cells import select
    from bench.gpu.grid import grid

    parser = argparse.ArgumentParser(prog="bench.simulated", description="what a step takes, counted without a GPU")
    parser.add_argument("--only", nargs="*", default=["orpo", "mixed", "0.5b-32k"], help="filters of cells")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--parts", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    options = parser.parse_args(words)
    for cell in select(list(grid("cuda", tiny=options.tiny)), options.only):
        for side in options.sides:
            found = simulate(cell, side, options.parts)
            print(
                f"{cell.name} {side}: peak {found.peak / GIB:.2f} GiB ({found.resident / GIB:.2f} between steps), "
                f"{found.moved / 1e9:.1f} GB moved, {found.launches} launches",
                flush=True,
            )


if __name__ == "__main__":
    from bench.process import prepare

    prepare(1)
    main()
