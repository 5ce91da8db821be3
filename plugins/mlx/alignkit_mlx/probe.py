"""Comparisons of the model when it is opened: with torch's, and of its ways of scoring with whole rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from alignkit.contract import Example, LoadedModel, Wanted
from alignkit.errors import ModelError, first_line
from alignkit.scoring.evaluating import undisturbed

from alignkit_mlx.model import MLXModel
from alignkit_mlx.scoring import batch_caches

_SHAPES, _WINDOW = ((11, (9, 14)), (6, (23, 2))), 12
"""Tokens of each prompt and of its completions, and of a narrow window."""


class Known(NamedTuple):
    """Rows, and torch's log-probabilities of their completions (rewards of a reward model)."""

    examples: list[Example]
    values: torch.Tensor
    exact: bool
    """Whether the weights are float32."""


def expected(loaded: LoadedModel) -> Known:
    """Score rows of pseudo-random tokens with torch's model, one by one."""
    model: Any = loaded.model
    config = model.config.get_text_config()
    draw = random.Random(0)
    ids = [i for i in range(min(config.vocab_size, 50_000)) if i != config.pad_token_id]
    examples = [
        Example(str(i), draw.choices(ids, k=prompt), tuple(draw.choices(ids, k=n) for n in completions))
        for i, (prompt, completions) in enumerate(_SHAPES)
    ]

    def forward(row: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=row.to(model.device), use_cache=False).logits
        return logits.float().cpu()

    with undisturbed(model):
        values = _by_rows(examples, forward, rewards=loaded.classifier)
    return Known(examples, values, all(p.dtype == torch.float32 for p in model.parameters()))


def _by_rows(
    examples: Iterable[Example], forward: Callable[[torch.Tensor], torch.Tensor], *, rewards: bool
) -> torch.Tensor:
    """Return the log-probabilities of completions, or ``rewards``, by a ``forward`` of one row at a time that returns logits."""
    found = []
    for example in examples:
        for completion in example.completions:
            row = torch.tensor([[*example.prompt, *completion]])
            logits = forward(row)
            if rewards:
                found.append(logits[:, 0])
                continue
            logps = logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None]).squeeze(1)
            found.append(logps[len(example.prompt) - 1 :])
    return torch.cat(found)


@contextmanager
def narrowed(owners: Iterable[Any], window: int) -> Iterator[None]:
    """Narrow the sliding window of a model's parts, to fewer tokens than the rows here have."""
    changed = [
        (one, name) for one in owners for name, value in vars(one).items() if "window" in name and value == window
    ]
    for one, name in changed:
        setattr(one, name, _WINDOW)
    try:
        yield
    finally:
        for one, name in changed:
            setattr(one, name, window)


def require_agreement(model: MLXModel, known: Known, near: Known | None, window: int, longest: int) -> None:
    """Raise ``ModelError`` if the model does not score as torch's does, or has no sliding window where rows need it.

    ``near``: torch's values with a narrow window; ``longest``: most tokens of a row.
    """
    name = f"mlx-lm's {type(model.model).__module__.rpartition('.')[2]} model"
    difference = (model.compute(known.examples, Wanted()).logps - known.values).abs()
    if not _agrees(difference, exact=known.exact):
        most = float(difference.max())
        raise ModelError(f"{name} scores unlike torch's (by up to {most:.2g}): set run.engine: torch")
    if near is None or longest <= window:
        return
    modules = model.model.modules()
    with narrowed([*modules, *{id(a): a for m in modules if (a := getattr(m, "args", None))}.values()], window):
        difference = (model.compute(near.examples, Wanted()).logps - near.values).abs()
    if not _agrees(difference, exact=near.exact):
        raise ModelError(
            f"{name} has no sliding window, which is {window:,} tokens here, and rows may have {longest:,}: make "
            "data.max_length (and method.max_new_tokens) smaller, or set run.engine: torch"
        )


def choose(model: MLXModel, known: Known, *, dropout: bool) -> None:
    """Choose how the model scores: shared prompts and a head for scored tokens only, if they agree with whole rows."""

    def forward(row: torch.Tensor) -> torch.Tensor:
        return model.logits(row, torch.ones_like(row))

    notes, whole = [], _by_rows(known.examples, forward, rewards=model.score is not None)
    exact = known.exact and not model.rounded
    if model.split and (why := _disagreement(model, known, whole, exact)):
        model.split = False
        notes.append(f"all logits: {why}")
    if model.score is None and not dropout:
        model.share = True
        if why := _disagreement(model, known, whole, exact):
            model.share = False
            notes.append(f"prompts are not shared: {why}")
    try:
        batch_caches(model.model, [0])
        model.caches = model.score is None
    except TypeError:
        notes.append("generation without a cache")
    how = "shared prompts" if model.share else "rows"
    model.scorer = "; ".join([how, *notes])


def _disagreement(model: MLXModel, known: Known, whole: torch.Tensor, exact: bool) -> str | None:
    try:
        difference = (model.compute(known.examples, Wanted()).logps - whole).abs()
    except Exception as error:  # of whatever kind, as models are mlx-lm's
        return first_line(error)
    return None if _agrees(difference, exact=exact) else f"they differ by {float(difference.max()):.2g}"


def _agrees(difference: torch.Tensor, *, exact: bool) -> bool:
    """Whether differences are those of rounding; false for NaN. Half precision rounds logits of size 16 to 1/8."""
    most, mean = float(difference.max()), float(difference.mean())
    return most <= (1e-3 if exact else 0.5) and mean <= (1e-4 if exact else 0.05)
