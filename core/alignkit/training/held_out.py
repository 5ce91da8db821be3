"""The method's loss and metrics over held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from alignkit.contract import Example, by_length
from alignkit.scoring.evaluating import undisturbed
from alignkit.scoring.in_step import in_step
from alignkit.system.together import from_first
from alignkit.training.metrics import MetricSums

if TYPE_CHECKING:
    from alignkit.training.steps import Steps


def held_out_loss(
    steps: Steps,
    model: torch.nn.Module,
    examples: Sequence[Example],
    progress: float,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, float]:
    """Return ``loss``, ``loss/TERM`` and the method's metrics, each divided by its count over all rows and ranks, to all of them.

    Random states and the model's mode are restored, so that a run resumes to the same weights whether or not it
    evaluated. ``model`` is the model itself, not DDP's wrapper, whose forward waits for ranks with more batches;
    ``examples`` are the held-out rows of all ranks; ``progress`` is the share of training done, 0 to 1.
    """
    parts, device = steps.parts, steps.parts.arguments.device
    parts.policy.model = model
    sums, weights = MetricSums(device), dict[str, float]()
    mine = range(steps.rank, len(examples), steps.world_size)
    own = [examples[i] for i in mine]
    # Where statistics are over the rows of all ranks, these are prepared as a whole.
    whole = parts.rollouts or steps.method.whole_step
    batches = [list(range(len(own)))] if whole else list(by_length(own, parts.tokens_per_micro_batch))
    with undisturbed(model), in_step(parts.policy, steps.filler):
        for which in batches:
            rows = steps.rows("eval", examples, [mine[i] for i in which])
            with autocast():
                for batch in parts.cut(steps.prepare(rows, 0, progress, training=False)):
                    output, counts = parts.session.compute_loss(parts.policy, batch, progress), batch.counts
                    for term in output.terms:
                        sums.add(f"loss/{term.name}", term.sum, counts[term.per])
                        weights[f"loss/{term.name}"] = term.weight
                    for name, metric in output.metrics.items():
                        sums.add(name, metric.sum, counts[metric.per])
    values = {name: total / max(count, 1) for name, (total, count) in sums.drain().items()}
    return from_first({"loss": sum(values[name] * weight for name, weight in weights.items()), **values})
