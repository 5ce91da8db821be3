"""The sides of the comparison on a GPU, what each of them runs, and why one is missing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from bench.cells import BenchCell

NAMES = ("ours", "ours-compiled", "ours-liger", "trl", "trl-reference", "trl-default", "prefix-grouper", "unsloth")
"""In the order of their turns."""


OURS: dict[str, dict[str, bool | str]] = {
    "ours": {},
    "ours-compiled": {"torch_compile": True},
    "ours-liger": {"use_liger_kernel": True},
}
"""Settings of the section ``train`` by which alignkit's sides differ."""


@dataclass(frozen=True)
class Built:
    """A side that is ready to run steps, and what it runs."""

    side: Any
    about: dict[str, str]


def names(method: str) -> list[str]:
    """Return the sides that take part in a method's comparison."""
    found = [*OURS, "trl", "trl-default"]
    if method == "dpo":
        found.insert(-1, "trl-reference")
    if method == "grpo":
        found += ["prefix-grouper", "unsloth"]
    return found


def missing(side: str, device: str) -> str | None:
    """Return why a side cannot be measured on a device (None: it can)."""
    if side == "ours-liger" and device != "cuda":
        return "Liger's kernels need a GPU"
    if side == "ours-liger" and find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    if side == "prefix-grouper" and find_spec("prefix_grouper") is None:
        return "the package prefix-grouper is not installed"
    if side == "unsloth":
        installed = "is installed" if find_spec("unsloth") is not None else "is not installed"
        return (
            f"unsloth {installed}: it replaces TRL's trainers and samples by itself, so it has no step of given answers"
        )
    if side.startswith("trl") and find_spec("trl") is None:
        return "the package trl is not installed"
    return None


def build_side(name: str, cell: BenchCell, steps: int, parts: int) -> Built:
    """Return a side; ``parts`` is the number of micro-batches of a step."""
    if name in OURS:
        return _ours(cell, steps, parts, OURS[name])
    if name == "prefix-grouper":
        from bench.gpu.flash import NAME
        from bench.gpu.prefix import PrefixGrouper

        return Built(PrefixGrouper(cell, steps, parts), {"attention": f"prefix-grouper over {NAME}"})
    return _trl(name, cell, steps, parts)


def _ours(cell: BenchCell, steps: int, parts: int, train: dict[str, bool | str]) -> Built:
    from bench.sides import Ours

    side = Ours(cell, steps, budget(cell, steps, parts), **train)
    return Built(side, {"scorer": str(side.policy.scorer), **{key: str(value) for key, value in train.items()}})


def budget(cell: BenchCell, steps: int, parts: int) -> int:
    """Return the tokens of a micro-batch, as the engine counts them, with which every step has ``parts`` or a few more."""
    from bench.sides import rows_of_step

    examples = cell.examples(steps)
    most = max(sum(examples[i].tokens for i in rows_of_step(cell, len(examples), k)) for k in range(steps))
    return -(-most // parts)


def _trl(name: str, cell: BenchCell, steps: int, parts: int) -> Built:
    from bench.gpu import flash
    from bench.sides import Theirs
    from bench.trl import Settings

    if name == "trl-default":
        settings = Settings(precomputed=False)
    else:
        flash.register()
        notes: dict[str, str] = {}
        attention = flash.NAME if cell.bf16 else "sdpa"  # flash attention has no float32
        if cell.bf16 and cell.device == "cuda" and _version("flash-attn"):
            attention = "flash_attention_2"
        liger = cell.device == "cuda" and find_spec("liger_kernel") is not None
        if not liger:
            notes["liger"] = "needs a GPU" if cell.device != "cuda" else "the package liger-kernel is not installed"
        if cell.method != "sft":
            notes["padding_free"] = f"TRL {_version('trl')} has none for {cell.method}"
        settings = Settings(
            attention,
            liger=liger,
            padding_free=cell.method == "sft",
            precomputed=name != "trl-reference",
            notes=notes,
        )
    side = Theirs(cell, steps, settings, parts)
    about = {"attention": settings.attention, "liger": str(settings.liger), "padding_free": str(settings.padding_free)}
    if cell.method == "dpo":
        about["reference"] = "precomputed" if settings.precomputed else "in every step"
    return Built(side, about | {f"no {key}": why for key, why in settings.notes.items()})


def _version(package: str) -> str:
    """Return a package's version ("": it is not installed)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
