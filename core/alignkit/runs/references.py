"""Reference log-probabilities of a run's rows: computed once at step 0, cached, and used for the order of rows as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.config import RunConfig
from alignkit.contract import Need, RunPolicy
from alignkit.data.load import Data
from alignkit.data.order import RowOrder, row_order
from alignkit.scoring.ranks import share
from alignkit.scoring.reference import reference_logps
from alignkit.settings.training_arguments import tokens_at_once
from alignkit.system.environment import versions
from alignkit.system.together import together

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import TrainingArguments

    from alignkit.data.table.tokenised_rows import TokenisedRows

References = dict[str, Sequence[Any]]
"""Log-probabilities by split (``train``, ``eval``), one array a row."""


def scored_splits(
    config: RunConfig, needs: Set[Need], arguments: TrainingArguments, data: Data
) -> dict[str, TokenisedRows]:
    """Return the splits whose rows the start model scores: for the method's reference, or for an order by margin."""
    if "reference" in needs and "reward" not in needs:  # an on-policy method's answers do not exist yet
        evaluates = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) != "no"
        return {"train": data.train} | ({"eval": data.eval} if evaluates else {})
    return {"train": data.train} if _by_margin(config) and data.kind == "preference" else {}


def _by_margin(config: RunConfig) -> bool:
    return config.data.curriculum is not None and config.data.curriculum.by == "margin"


def references(
    splits: Mapping[str, TokenisedRows],
    policy: RunPolicy,
    weights: str,
    config: RunConfig,
    arguments: TrainingArguments,
    tick: Callable[[int], None] = lambda rows: None,
) -> tuple[References, bool]:
    """Return the step-0 log-probabilities of every split, and whether all of them came from the cache.

    They are computed in the precision of training, so that a preference loss starts at its exact start value.
    ``weights`` is the fingerprint of the start model ``policy``; ``tick`` is called with the number of rows of each
    finished batch.
    """
    model = config.model
    software = " ".join(f"{name} {version}" for name, version in versions().items())

    def score() -> tuple[References, bool]:
        found: References = {}
        cached = True
        for split, rows in splits.items():
            found[split], hit = reference_logps(
                share(policy),
                rows,
                rows_fingerprint=rows.fingerprint,
                weights_fingerprint=weights,
                computed=f"{config.run.engine} {policy.precision} {model.quantization} {model.scorer} {model.attention} {arguments.device.type} {software}",
                max_tokens=tokens_at_once(config),
                tick=tick,
            )
            cached = cached and hit
        return found, cached

    return together("the reference log-probabilities", score)


def order_by_margin(config: RunConfig, train: TokenisedRows, order: RowOrder, references: References) -> RowOrder:
    """Return the order of the training rows: ``order``, or one by the start model's margin if the curriculum is by margin."""
    if not _by_margin(config):
        return order

    def margins() -> NDArray[np.float64]:
        lengths = train.segment_lengths()[:, 1].tolist()
        pairs = zip(references["train"], lengths, strict=True)
        return np.array([float(logps[:chosen].sum() - logps[chosen:].sum()) for logps, chosen in pairs])

    return row_order(config.data, train, config.run.seed, margins)
