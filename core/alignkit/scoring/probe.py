"""Choice of the scoring backend by trying it, not by a list of model names.

Two small groups of sequences are scored by each candidate and by separate, unpadded forwards of the unchanged model; the
first candidate that agrees is chosen. This catches wrong attention masks, many of which raise no error. ``packed`` is a
candidate for each kernel of attention on the device. A kernel that does not compute in the dtype of the weights may agree
under autocast: it is kept for that, and the next one is tried for the rest.

Sliding windows and attention chunks of real models are much longer than the probe's sequences. During the probe they are
narrowed to :data:`WINDOW` tokens, in the configuration and in the attention layers, for candidates and reference alike, so
that a backend that ignores them is detected.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from alignkit.contract import AttentionKernel, Example
from alignkit.errors import ModelError, first_line
from alignkit.scoring import attention
from alignkit.scoring.attention import set_attention
from alignkit.scoring.backends import TokenLogps, text_config
from alignkit.scoring.evaluating import undisturbed
from alignkit.scoring.masks import CHUNKED, FULL, SLIDING, layer_types
from alignkit.scoring.plan import Backend, Scorer

WINDOW = 12
"""Maximum window during the probe, well below the longest sequence of :data:`_SHAPES`."""

_WINDOWS = ("sliding_window", "attention_chunk_size", "floor_scale")
_SHAPES = ((11, (9, 14)), (6, (23, 2)))
"""Number of tokens of each group's prompt and completions; they exceed the window within and across prompt and completion."""


def choose(
    model: Any,
    candidates: Sequence[Backend],
    device: torch.device,
    kernels: Mapping[str, AttentionKernel],
    own: str | None = None,
) -> Scorer:
    """Return the scorer of the innermost causal LM with the first of ``candidates`` that agrees with plain forwards.

    Random state, training mode and windows are unchanged afterwards. ``packed`` replaces the model's attention
    implementation, which runs without a plan; the other candidates run ``own`` (default: the model's).
    Raises :class:`ModelError` if no candidate agrees.
    """
    config = text_config(model)
    before = model.config._attn_implementation
    original = model.__dict__.setdefault("_alignkit_attention", before)
    original = own if own in attention.NAMES else original
    set_attention(model, original)
    dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()) or _attention_dropout(config)
    share, notes, half = not dropout, dict[str, None](), dict[str, AttentionKernel]()
    examples, pad_id = probe_rows(config)
    owners = (config, *model.modules())
    with undisturbed(model), torch.autocast(model.device.type, enabled=False), narrow_windows(owners):
        expected = _reference(model, examples)
        if bool(expected.isnan().any()):
            raise ModelError(
                f"{type(model).__name__} cannot be scored: its logits are NaN (a NaN weight, or an overflow)"
            )
        tries = [
            (b, {name: kernels[name]} if name else {})
            for b in candidates
            for name in (kernels if b == "packed" else [""])
        ]
        for scorer in (Scorer(backend, share, pad_id=pad_id, kernels=one) for backend, one in tries):
            implementation = original if scorer.kernels else own or original
            if refused := _refusal(model, config, scorer.backend, implementation):
                notes[f"{scorer.backend} scoring was not used: {refused}."] = None
                continue
            reason = _disagreement(model, scorer, examples, expected, implementation)
            if reason is None:
                kept = {**half, **scorer.kernels} if scorer.kernels else {}
                return replace(scorer, notes=(*notes, *_remarks(config, scorer)), kernels=kept)
            autocast = bool(scorer.kernels) and device.type != "cpu" and model.dtype == torch.float32
            if autocast and not _disagreement(model, scorer, examples, expected, implementation, autocast=True):
                half |= scorer.kernels
                reason += " (it is used under autocast)"
            notes[f"{scorer} scoring was not used: {reason}."] = None
            set_attention(model, original)
    set_attention(model, before)
    raise ModelError(f"{type(model).__name__} cannot be scored: " + " ".join(notes))


def _refusal(model: Any, config: Any, backend: Backend, implementation: str) -> str | None:
    """Return why a backend cannot be used (None: try it)."""
    if backend not in ("packed", "rows"):
        return None
    if getattr(model, "_is_stateful", True):  # private to transformers: if it is missing, assume a state
        return "the model carries a recurrent state, which completions cannot share"
    if other := layer_types(config) - {FULL, SLIDING, CHUNKED}:
        return f"layers of type {', '.join(sorted(other))} carry a recurrent state"
    if backend == "rows":
        return None if implementation in ("eager", "sdpa") else f"{implementation} attention does not take 4-D masks"
    if implementation not in attention.NAMES:
        return f"it replaces sdpa and eager attention, not {implementation}"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not support custom attention functions"
    return "attention dropout is on" if _attention_dropout(config) else None


def _disagreement(
    model: Any,
    scorer: Scorer,
    examples: Sequence[Example],
    expected: torch.Tensor,
    implementation: str,
    *,
    autocast: bool = False,
) -> str | None:
    """Try a backend and return why it cannot be used (None: it agrees). Any exception is such a reason."""
    try:
        if scorer.backend == "packed":
            attention.register()
            implementation = attention.NAMES[implementation]
        set_attention(model, implementation)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            scored: TokenLogps = model(plan=scorer.plan(examples, prompt=True).to(model.device))
        logps = torch.cat([scored.completions, scored.prompts])
    except ModelError as error:
        return str(error)
    except Exception as error:  # models raise all kinds of errors
        return f"{type(error).__name__}: {first_line(error)}"
    difference = (logps - expected).abs()
    if agree(model, difference, exact=not autocast):
        return None
    return f"its log-probabilities differ from plain forwards by up to {float(difference.max()):.2g} nats"


def agree(model: Any, difference: torch.Tensor, *, exact: bool = True) -> bool:
    """Whether differences of log-probabilities are those of rounding; false for NaN."""
    most, mean = float(difference.max()), float(difference.mean())
    # float32 agrees up to rounding. Half precision and quantised layers round logits of size 16 to 1/8 and depend on the
    # shape of a product, so the bound is loose; a wrong mask causes larger differences on average.
    exact = exact and model.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    return most <= (1e-4 if exact else 0.5) and mean <= (1e-4 if exact else 0.05)


def _remarks(config: Any, scorer: Scorer) -> Iterator[str]:
    """Yield notes for the user about the chosen backend."""
    if not scorer.share and scorer.backend in ("packed", "rows"):
        yield "Completions do not share their prompt, because dropout is on and its noise would be shared as well."
    if getattr(config, "router_aux_loss_coef", None):
        yield "The router's auxiliary loss is not part of the loss."


def _attention_dropout(config: Any) -> bool:
    return any(
        getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    )


def probe_rows(config: Any) -> tuple[list[Example], int]:
    """Return the probe's rows of pseudo-random ids without special tokens, and an id for padding."""
    named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    special = {i for value in named for i in (value if isinstance(value, list | tuple) else [value])}
    ordinary = [i for i in range(min(config.vocab_size, 50_000)) if i not in special] or [0]
    draw = random.Random(0)
    rows = [
        Example(str(i), draw.choices(ordinary, k=prompt), tuple(draw.choices(ordinary, k=n) for n in completions))
        for i, (prompt, completions) in enumerate(_SHAPES)
    ]
    pad = named[2]
    return rows, pad if isinstance(pad, int) and 0 <= pad < config.vocab_size else ordinary[0]


def _reference(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Return the log-probabilities of completions, then of prompts, by one unpadded forward per sequence.

    Raises :class:`ModelError` if those of a prompt depend on the completion that follows it.
    """
    completions, prompts = [], []
    for example in examples:
        for k, completion in enumerate(example.completions):
            ids = torch.tensor([[*example.prompt, *completion]], device=model.device)
            logits = model(input_ids=ids, use_cache=False, return_dict=True).logits
            logps = logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
            first = len(example.prompt) - 1
            completions.append(logps[first:])
            if k == 0:
                prompts.append(logps[:first])
            elif not agree(model, (logps[:first] - prompts[-1]).abs().nan_to_num(0)):
                raise ModelError(
                    f"{type(model).__name__} is not causal: what follows a prompt changes the prompt's scores"
                )
    return torch.cat(completions + prompts)


@contextmanager
def narrow_windows(owners: Iterable[Any], size: int | None = None) -> Iterator[None]:
    """Narrow sliding windows (or whatever is called a window and has ``size``) and attention chunks to the probe's size."""
    changed: list[tuple[Any, str, int]] = []
    for owner in owners:
        for name, value in vars(owner).items():
            own = name in _WINDOWS or ("window" in name and value == size)
            if own and isinstance(value, int) and value > WINDOW:
                changed.append((owner, name, value))
                setattr(owner, name, WINDOW)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
