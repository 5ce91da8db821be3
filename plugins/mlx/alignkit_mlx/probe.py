"""Comparisons of the model when it is opened: with torch's, and of its ways of scoring with whole rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from alignkit.contract import Example, LoadedModel, Wanted
from alignkit.errors import ModelError, first_line
from alignkit.scoring.evaluating import undisturbed
from alignkit.scoring.probe import narrow_windows, probe_rows

from alignkit_mlx.model import MLXModel
from alignkit_mlx.shared import batch_caches


@dataclass(frozen=True)
class Known:
    """Rows, and torch's log-probabilities of their completions (rewards of a reward model)."""

    examples: Sequence[Example]
    values: torch.Tensor
    window: int
    """Tokens of the model's sliding window; 0: it has none."""
    narrow: torch.Tensor
    """The values with a window that is narrower than the rows; those without where the model has none."""
    exact: bool
    """Whether the weights are float32."""

    @classmethod
    def of(cls, loaded: LoadedModel) -> Known:
        """Score rows of pseudo-random tokens with torch's model, one by one."""
        model: Any = loaded.model
        config = model.config.get_text_config()
        examples, _ = probe_rows(config)
        window = getattr(config, "sliding_window", None) or 0

        def forward(row: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(input_ids=row.to(model.device), use_cache=False).logits
            return logits.float().cpu()

        with undisturbed(model):
            values = narrow = _by_rows(examples, forward, rewards=loaded.classifier)
            if window:
                with narrow_windows([config, *model.modules()], window):
                    narrow = _by_rows(examples, forward, rewards=loaded.classifier)
        return cls(examples, values, window, narrow, all(p.dtype == torch.float32 for p in model.parameters()))


def _by_rows(
    examples: Sequence[Example], forward: Callable[[torch.Tensor], torch.Tensor], *, rewards: bool
) -> torch.Tensor:
    """Return the log-probabilities of completions, or ``rewards``, by a ``forward`` of one row at a time that returns logits."""
    found = []
    for prompt, completion in ((e.prompt, completion) for e in examples for completion in e.completions):
        row = torch.tensor([[*prompt, *completion]])
        logits = forward(row)
        if rewards:
            found.append(logits[:, 0])
        else:
            logps = logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None]).squeeze(1)
            found.append(logps[len(prompt) - 1 :])
    return torch.cat(found)


def require_agreement(model: MLXModel, known: Known, longest: int) -> None:
    """Raise ``ModelError`` if the model does not score as torch's does, or has no sliding window where rows need it.

    ``longest``: most tokens of a row.
    """
    name = f"mlx-lm's {type(model.model).__module__.rpartition('.')[2]} model"
    difference = (model.compute(known.examples, Wanted()).logps - known.values).abs()
    if not _agrees(difference, exact=known.exact):
        most = float(difference.max())
        raise ModelError(f"{name} scores unlike torch's (by up to {most:.2g}): set run.engine: torch")
    if longest <= known.window or not known.window:
        return
    modules = model.model.modules()
    settings = {id(a): a for m in modules if (a := getattr(m, "args", None))}
    with narrow_windows([*modules, *settings.values()], known.window):
        difference = (model.compute(known.examples, Wanted()).logps - known.narrow).abs()
    if not _agrees(difference, exact=known.exact):
        raise ModelError(
            f"{name} has no sliding window, which is {known.window:,} tokens here, and rows may have {longest:,}: make "
            "data.max_length (and method.max_new_tokens) smaller, or set run.engine: torch"
        )


def choose(model: MLXModel, known: Known) -> None:
    """Choose how the model scores: shared prompts and a head for scored tokens only, if they agree with whole rows."""

    def forward(row: torch.Tensor) -> torch.Tensor:
        return model.logits(row, torch.ones_like(row))

    whole = _by_rows(known.examples, forward, rewards=model.classifier)
    notes, exact = [], known.exact and not model.rounded

    def disagreement() -> str | None:
        try:
            difference = (model.compute(known.examples, Wanted()).logps - whole).abs()
        except Exception as error:  # of whatever kind, as models are mlx-lm's
            return first_line(error)
        return None if _agrees(difference, exact=exact) else f"they differ by {float(difference.max()):.2g}"

    if model.split and (why := disagreement()):
        model.split = False
        notes.append(f"all logits: {why}")
    model.share = not model.classifier and not model.dropout
    if model.share and (why := disagreement()):
        model.share = False
        notes.append(f"prompts are not shared: {why}")
    try:
        batch_caches(model.model, [0])
        model.caches = not model.classifier
    except TypeError:
        notes.append("generation without a cache")
    model.scorer = "; ".join(["shared prompts" if model.share else "rows", *notes])


def _agrees(difference: torch.Tensor, *, exact: bool) -> bool:
    """Whether differences are those of rounding; false for NaN. Half precision rounds logits of size 16 to 1/8."""
    most, mean = float(difference.max()), float(difference.mean())
    return most <= (1e-3 if exact else 0.5) and mean <= (1e-4 if exact else 0.05)
