"""The output layer alone, against fused kernels: ``python -m bench.heads``.

Every side maps hidden states ``[N, H]``, the layer's weight ``[V, H]`` and targets to log-probabilities of the targets, and their
gradients, for token weights that differ. Products are bfloat16, weights float32, as in training. First each side is compared with
full logits in float64 (relative errors), then time and memory of a forward and backward pass are measured, in turns. The fused
kernels are those of Liger (liger-kernel) and of cut cross entropy (cut-cross-entropy): both need a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from alignkit.scoring.head import linear_logps

from bench.clock import measure
from bench.parity import relative

Side = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
HALF = torch.bfloat16


class Shape(NamedTuple):
    """Sizes of one measurement."""

    tokens: int
    hidden: int
    vocabulary: int


SHAPES = {
    "cuda": [
        Shape(8192, 896, 152_000),
        Shape(8192, 2048, 32_000),
        Shape(8192, 4096, 128_000),
        Shape(1024, 4096, 128_000),
    ],
    "cpu": [Shape(64, 16, 500)],
}
PARITY = {"cuda": Shape(1024, 1024, 32_000), "cpu": Shape(64, 16, 500)}


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """alignkit with ``model.head: fast``."""
    return linear_logps(hidden, weight, None, targets, dtype=HALF)


def exact(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """alignkit with ``model.head: exact``."""
    return linear_logps(hidden, weight, None, targets, dtype=torch.float32)


def full(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """PyTorch with all logits at once."""
    logits = hidden.to(HALF) @ weight.to(HALF).t()
    return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def liger(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Liger's fused linear cross entropy, with its gradient of the weight summed in float32."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none", accum_dtype=torch.float32)
    found: torch.Tensor = loss(weight.to(HALF), hidden.to(HALF), targets)
    return -found


def cut(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cut cross entropy, as it is installed."""
    from cut_cross_entropy import linear_cross_entropy

    found: torch.Tensor = linear_cross_entropy(hidden.to(HALF), weight.to(HALF), targets, reduction="none")
    return -found.float()


SIDES: dict[str, Side] = {"ours": ours, "ours exact": exact, "full logits": full, "liger": liger, "cut": cut}
PACKAGES = {"liger": "liger_kernel", "cut": "cut_cross_entropy"}


def skipped(side: str, device: str) -> str | None:
    """Return why a side cannot be measured here (None: it can)."""
    if side not in PACKAGES:
        return None
    if device != "cuda":
        return "its kernels need a GPU"
    return None if find_spec(PACKAGES[side]) else f"the package {PACKAGES[side].replace('_', '-')} is not installed"


def inputs(shape: Shape, device: str) -> tuple[torch.Tensor, ...]:
    """Return hidden states and weight, targets drawn from the model they make, and the weights of the tokens."""
    torch.manual_seed(0)
    hidden = torch.randn(shape.tokens, shape.hidden)
    weight = torch.randn(shape.vocabulary, shape.hidden) * 2 / shape.hidden**0.5
    targets = torch.randint(0, shape.vocabulary, (shape.tokens,))
    made = hidden, weight, targets, torch.rand(shape.tokens) - 0.3
    return tuple(x.to(device) for x in made)


def passes(side: Side, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, by: torch.Tensor) -> Any:
    """Run a forward and a backward pass; return log-probabilities and the gradients of both inputs."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logps = side(hidden, weight, targets)
    (logps * by).sum().backward()
    return logps.detach(), hidden.grad, weight.grad


def _in_double(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def errors(side: Side, device: str) -> dict[str, float]:
    """Return a side's relative errors against full logits in float64."""
    hidden, weight, targets, by = inputs(PARITY[device], device)
    expected = passes(_in_double, hidden.double(), weight.double(), targets, by.double())
    found = passes(side, hidden, weight, targets, by)
    names = ("logps", "d_hidden", "d_weight")
    return {name: relative(a, b) for name, a, b in zip(names, found, expected, strict=True)}


def spent(side: Side, shape: Shape, device: str, repeats: int) -> dict[str, float]:
    """Return the median time in milliseconds, and the peak above the inputs in MiB (on a GPU)."""
    given = inputs(shape, device)
    passes(side, *given)
    times = [measure(lambda _: passes(side, *given), k, device).total for k in range(repeats)]
    found = {"ms": 1e3 * median(times)}
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        passes(side, *given)
        found["mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Print a table and write JSON; return 2 where the wanted device is missing."""
    parser = argparse.ArgumentParser(prog="bench.heads", description="compare the output layer with fused kernels")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda", help="cpu: in miniature, without fused kernels"
    )
    parser.add_argument("--repeats", type=int, default=10, help="measured passes of a side")
    parser.add_argument("--output", type=Path, default=Path("heads.json"), help="JSON file to write")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "not measured: there is no GPU, which the fused kernels need (--device cpu: in miniature)", file=sys.stderr
        )
        return 2
    record: dict[str, Any] = {"device": options.device, "torch": torch.__version__, "errors": {}, "spent": []}
    for name, side in SIDES.items():
        if reason := skipped(name, options.device):
            print(f"{name}: not measured: {reason}")
            continue
        try:
            record["errors"][name] = found = errors(side, options.device)
        except Exception as error:  # of a package that does not fit this machine: the others are measured
            print(f"{name}: not measured: {type(error).__name__}: {error}")
            continue
        print(f"{name}: relative errors", *(f"{what} {size:.1e}" for what, size in found.items()))
    for shape in SHAPES[options.device]:
        for name in record["errors"]:
            try:
                found = spent(SIDES[name], shape, options.device, options.repeats)
            except torch.OutOfMemoryError:
                print(*shape, name, "out of memory", sep="  ")
                continue
            record["spent"].append({"side": name, **shape._asdict(), **found})
            print(*shape, name, *(f"{size:.1f} {what}" for what, size in found.items()), sep="  ", flush=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
