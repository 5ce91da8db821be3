"""What ``--dry-run`` estimates for alignkit's side of a cell, to be compared with the measured peak of memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from alignkit.contract import LoadedModel, by_length
from alignkit.contract.batch import Example

from bench.cells import BenchCell
from bench.models import adapter, build
from bench.sides import configuration, rows_of_step
from bench.trl import tokenizer


def estimated_peak(cell: BenchCell, steps: Sequence[int], budget: int, device: torch.device) -> int:
    """Return the estimated peak in bytes of ``steps`` of a cell, as the benchmark runs them: without an optimizer.

    Args:
        steps: numbers of the steps, the last of which says how many rows the cell has.
        budget: tokens of a micro-batch.
        device: where the cell is to run. It need not be there, because nothing is computed.
    """
    from alignkit.runs.prepare import plan_run
    from alignkit_eval.report.longest import Largest
    from alignkit_eval.report.memory import estimate_memory
    from alignkit_eval.report.planned import DryRun

    count = max(steps) + 1
    examples = cell.examples(count)
    rows = max(([examples[i] for i in rows_of_step(cell, len(examples), k)] for k in steps), key=_tokens)
    first = [rows[i] for i in next(iter(by_length(rows, budget)))]
    plan = plan_run(configuration(cell, count, {"gradient_checkpointing": cell.checkpointing}))
    arguments: Any = copy.copy(plan.arguments)
    arguments.__dict__["_setup_devices"] = device  # found out once, from the devices that are there
    dry: Any = DryRun(replace(plan, arguments=arguments), _without_weights(cell), None, [])  # type: ignore[arg-type]
    found = estimate_memory(dry, 0, Largest(rows, first, []))
    return round(sum(size for part, size in found.parts.items() if part != "optimizer"))


def _tokens(rows: Sequence[Example]) -> int:
    return sum(row.tokens for row in rows)


def _without_weights(cell: BenchCell) -> LoadedModel:
    model = build(replace(cell, device="meta"))
    if cell.tuning == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, adapter())
    return LoadedModel(model, tokenizer(), "", "", is_adapter=cell.tuning == "lora")
