r"""Exact token-level KL divergence from the start model on held-out completions.

At every position t of a completion y of a prompt x,

    KL_t = sum_v p(v | x, y_<t) (log p(v | x, y_<t) - log q(v | x, y_<t))

is summed over the whole vocabulary, with the model p and the start model (or another model) q. Unlike the ``kl`` that
on-policy methods log, it is not an estimate from sampled tokens. ``kl`` is its mean per token and ``kl_sequence`` its sum per
completion, both in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignkit import Contrast, Example, Settings, Suite, SuiteResult, Target
from alignkit.config import ModelConfig
from alignkit.contract import by_length
from alignkit.errors import ConfigError, NoRowsError, RunFailedError
from alignkit.system.together import shared, shared_limit
from pydantic import Field

from alignkit_eval.statistics import clustered_mean, clustered_ratio, nonnegative
from alignkit_eval.suites.positions import fitted
from alignkit_eval.suites.scores import cluster_of, require_rows, rows_digest, suite_result

if TYPE_CHECKING:
    import torch

CONTRASTS = (
    Contrast(
        "kl", "kl", "tokens", higher_is_better=False, one_tokenizer=True, guard=True, margin=0.05, bounds=(0, None)
    ),
    Contrast("kl_sequence", "kl", higher_is_better=False, one_tokenizer=True, bounds=(0, None)),
)

_POSITIONS = 256
"""Positions whose distributions over the vocabulary are in memory at once."""


class KLSettings(Settings):
    """Settings of the kl suite."""

    against: str | None = Field(
        None, description="reference model: run, model directory or hub id (default: the run's start model)"
    )
    tokens_per_batch: int = Field(
        2048, ge=1, description="maximum tokens, padding included, per forward pass of each model"
    )


class KLSuite(Suite[KLSettings]):
    """Exact KL divergence per token from the start model, or from another model, on held-out completions."""

    name = "kl"
    metrics = tuple(contrast.metric for contrast in CONTRASTS)
    settings_type = KLSettings
    uses_start = True

    def content(self, target: Target) -> str | None:
        """Return a digest of the completions; None where ``against`` names another model, which is known once it is loaded."""
        return rows_digest(target.rows("completion")) if self.settings.against is None else None

    def evaluate(self, target: Target) -> SuiteResult:
        """Compare the two models' distributions; ``NoRowsError`` is also raised where there is no start model."""
        other, weights = self._other_model(target)
        first = [example.narrow(0) for example in target.examples("completion")]
        examples, left_out = fitted(other, first)
        require_rows(self.name, "completion", examples)
        divergences = kl_of(target.policy.model, other, examples, self.settings.tokens_per_batch)
        broken = [e.id for e, kl in zip(examples, divergences, strict=True) if not math.isfinite(kl)]
        if broken:
            raise RunFailedError(f"suite kl: the divergence is not finite on {len(broken)} rows (first: {broken[0]})")
        clusters = [cluster_of(example) for example in examples]
        tokens = [example.scored_tokens(0) for example in examples]
        metrics = {
            "kl": nonnegative(clustered_ratio(divergences, tokens, clusters)),
            "kl_sequence": nonnegative(clustered_mean(divergences, clusters)),
        }
        items = [
            {"id": e.id, "cluster": c, "kl": kl, "tokens": n}
            for e, c, kl, n in zip(examples, clusters, divergences, tokens, strict=True)
        ]
        result = suite_result(self, items, metrics, self.contrasts())
        # One name can stand for other weights in every result: results of different settings are not compared.
        known = {} if weights is None else {"against_weights": weights}
        return replace(result, settings={**result.settings, **known}, left_out=left_out)

    def contrasts(self) -> list[Contrast]:
        """Return the contrasts: between runs of different start models only where ``against`` names the reference."""
        return [replace(contrast, against_start=self.settings.against is None) for contrast in CONTRASTS]

    def _other_model(self, target: Target) -> tuple[Any, str | None]:
        """Return the model that the target is compared with, on the target's device, and its fingerprint if it is a named one.

        The fingerprint is that of the model as it was saved, whatever the target's type.
        """
        import torch
        from alignkit.data.table.cache import tokenizer_content
        from alignkit.models.load import build_model
        from alignkit.scoring.backends import innermost, install_forward
        from alignkit.scoring.head import install_head

        name = self.settings.against
        if name is None:
            if target.start_policy is None:
                raise NoRowsError(
                    f"{target.name} is not a run, so it has no start model: name one with eval.settings.kl.against"
                )
            return target.start_policy().model, None
        own = innermost(target.policy.model)
        halves = any(p.dtype in (torch.bfloat16, torch.float16) for p in own.parameters())
        loaded = build_model(ModelConfig(name=name, dtype="checkpoint"))
        if tokenizer_content(loaded.tokenizer) != tokenizer_content(target.tokenizer):
            raise ConfigError(f"eval.settings.kl.against: the tokenizers of {name} and {target.name} differ")
        base = innermost(loaded.model)
        if not halves and any(p.dtype in (torch.bfloat16, torch.float16) for p in base.parameters()):
            loaded.model.float()
        install_forward(base)
        if (context := vars(own).get("forward_context")) is not None:  # products of one type on both sides
            vars(base)["forward_context"] = context
        exact = any(vars(layer).get("exact") for layer in own.get_output_embeddings().modules())
        install_head(base.get_output_embeddings(), exact=exact)
        return loaded.model.to(next(target.policy.model.parameters()).device), loaded.fingerprint


def kl_of(
    model: torch.nn.Module, other: torch.nn.Module, examples: Sequence[Example], tokens_per_batch: int
) -> list[float]:
    """Return KL(model || other) summed over the scored tokens of each row's completion, in nats.

    Distributions are computed in float32 and summed in float64. Both models must be on the same device.
    """
    from alignkit.scoring.evaluating import evaluating

    divergences = [0.0] * len(examples)
    with evaluating(model, other):
        sizes = [example.tokens for example in examples]
        for rows in by_length(examples, shared_limit(sizes, tokens_per_batch), padded=True):

            def work(which: list[int], rows: Sequence[int] = rows) -> Iterator[float]:
                return _batch_kl(model, other, [examples[rows[i]] for i in which])

            for i, value in zip(rows, shared("divergences", [sizes[i] for i in rows], work), strict=True):
                divergences[i] = value
    return divergences


def _batch_kl(model: Any, other: Any, examples: Sequence[Example]) -> Iterator[float]:
    import torch
    from alignkit.scoring.padding import pad_rows

    rows = [[*example.prompt, *example.completions[0]] for example in examples]
    ids, mask = pad_rows(rows, 0, next(model.parameters()).device)  # (B, T)
    ours = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
    theirs = other(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for row, example in enumerate(examples):
        first, own = len(example.prompt) - 1, example.masks[0] if example.masks else None
        # Positions of the logits that predict the scored tokens.
        scored = [first + t for t in range(len(example.completions[0])) if own is None or own[t]]
        chunks = [scored[i : i + _POSITIONS] for i in range(0, len(scored), _POSITIONS)]
        parts = [_positions_kl(ours[row, chunk], theirs[row, chunk]) for chunk in chunks]
        yield float(torch.stack(parts).sum())


def _positions_kl(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the divergence summed over positions, from logits ``[t, V]``.

    With r = log p - log q, sum p r = sum p (r + e^-r - 1), because sum (q - p) = 0. No term is negative, so a small
    divergence is not lost in rounding.
    """
    p, q = ours.float().log_softmax(-1), theirs.float().log_softmax(-1)
    ratio = p - q
    return (p.exp() * (ratio + (-ratio).expm1())).double().sum()
