"""Part of prepare: references, order_of, precision, autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import TrainingArguments

    from alignkit.data.order.row_order import RowOrder
    from alignkit.data.table.tokenised_rows import TokenisedRows
from alignkit.runs.prepare import PreparedRun


def references(
    prepared: PreparedRun, arguments: TrainingArguments, tick: Callable[[int], None] = lambda rows: None
) -> tuple[dict[str, Sequence[Any]], bool]:
    """Return the step-0 log-probabilities of the training and held-out rows, and whether all came from the cache.

    They are computed in the precision training will use, so that a preference loss starts at its exact start value, and
    where the method needs them, or the order of the rows goes by the start model's margin.
    With several processes the first one computes, the others read what it cached.
    """
    from alignkit.data.table.cache import cache_directory
    from alignkit.scoring.reference import reference_logps
    from alignkit.system.distributed import rank, wait_for_all

    needs = prepared.session.method.needs
    evaluates = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) != "no"
    curriculum = prepared.config.data.curriculum
    wanted: dict[str, TokenisedRows] = {}
    if "reference" in needs and "reward" not in needs:  # what an on-policy method scores is not there yet
        wanted = {"train": prepared.data.train} | ({"eval": prepared.data.eval} if evaluates else {})
    elif curriculum is not None and curriculum.by == "margin" and prepared.data.kind == "preference":
        wanted = {"train": prepared.data.train}
    found: dict[str, Sequence[Any]] = {}
    cached = True
    for turn in ("first", "others") if wanted else ():
        if (rank() == 0) == (turn == "first"):
            for split, rows in wanted.items():
                with autocast(arguments):
                    found[split], hit = reference_logps(
                        prepared.policy,
                        rows,
                        rows_fingerprint=rows.fingerprint,
                        weights_fingerprint=prepared.loaded.fingerprint,
                        dtype=f"{prepared.config.model.dtype} {precision(arguments)} {prepared.config.model.quantization}",
                        cache=cache_directory(),
                        max_tokens=prepared.config.train.tokens_per_micro_batch,
                        tick=tick,
                    )
                cached = cached and hit
        wait_for_all()
    return found, cached


def order_of(prepared: PreparedRun, references: dict[str, Sequence[Any]]) -> RowOrder:
    """Return the order of the training rows, by the start model's margin where that is asked for."""
    from alignkit.data.order.mixing import row_order

    config, train = prepared.config, prepared.data.train
    if config.data.curriculum is None or config.data.curriculum.by != "margin":
        return prepared.order

    def margins() -> NDArray[np.float64]:
        lengths = train.segment_lengths()[:, 1].tolist()
        pairs = zip(references["train"], lengths, strict=True)
        return np.array([float(logps[:chosen].sum() - logps[chosen:].sum()) for logps, chosen in pairs])

    return row_order(config.data, train, config.run.seed, margins)


def precision(arguments: TrainingArguments) -> str:
    """Return the precision of the forward pass: bf16, fp16 or fp32."""
    return "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"


def autocast(arguments: TrainingArguments) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast the trainer will use."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(arguments))
    return contextlib.nullcontext() if dtype is None else torch.autocast(arguments.device.type, dtype=dtype)
