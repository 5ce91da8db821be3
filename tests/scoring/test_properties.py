"""For any rows, all scoring backends give the same scores and gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from alignkit.contract.batch import Example, Scores
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import BACKENDS, install
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.scoring import TOLERANCE, V, assert_same_gradients, build, gradients, plain_scores, weigh

TOKENS = st.lists(st.integers(3, V - 1), min_size=1, max_size=14)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Draw a prompt, 0 to 3 completions (some with a common start), and masks with at least one scored token each."""
    prompt, completions = draw(TOKENS), draw(st.lists(TOKENS, max_size=3))
    shared = draw(st.sampled_from([[], completions[0] if completions else []]))
    completions = [completions[0], *([*shared, *c] for c in completions[1:])] if completions else []
    masks = tuple(
        draw(st.none() | st.lists(st.booleans(), min_size=len(c), max_size=len(c)).filter(any)) for c in completions
    )
    return Example("row", prompt, tuple(completions), masks=draw(st.sampled_from([masks, masks, None])))


@cache
def policies(architecture: str, device: str) -> dict[str, ModelPolicy]:
    """Return one model per backend, all with the same weights."""
    return {b: ModelPolicy(model := build(architecture, device=device), install(model, b)) for b in BACKENDS}


def scored(policy: ModelPolicy, rows: list[Example], **wanted: Any) -> tuple[Scores, dict[str, torch.Tensor]]:
    """Return the scores, and the gradients of a loss with a different weight for every token."""
    scores = policy.score(rows, prompt=True, **wanted)
    (weigh(scores.logps) + weigh(scores.prompt_logps, 2)).backward()
    return scores, gradients(policy.model)


def assert_close(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    tol = 1.5 * TOLERANCE[expected.device.type]
    torch.testing.assert_close(got, expected, atol=tol, rtol=2e-5, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("architecture", ["llama", "mistral-window", "gpt2"])
@given(rows=st.lists(examples(), min_size=1, max_size=5), temperature=st.sampled_from([1.0, 0.7]))
@settings(deadline=None, max_examples=20)
def test_backends_agree_on_any_prompts_completions_and_masks(
    device: str, architecture: str, rows: list[Example], temperature: float
) -> None:
    wanted = {"entropy": True, "temperature": temperature}
    (plain, reference), *others = (
        scored(policies(architecture, device)[b], rows, **wanted) for b in reversed(BACKENDS)
    )
    assert len(plain.logps) == sum(e.scored_tokens(i) for e in rows for i in range(len(e.completions)))
    for backend, (scores, found) in zip(BACKENDS[-2::-1], others, strict=True):
        for name in ("logps", "prompt_logps", "entropy"):
            assert_close(getattr(scores, name), getattr(plain, name), f"{backend} {name}")
        for name in ("sequence", "lengths", "prompt_row"):
            assert torch.equal(getattr(scores, name), getattr(plain, name)), (backend, name)
        if len(plain.logps) + len(plain.prompt_logps):
            assert_same_gradients(found, reference, tol=TOLERANCE[device])


@given(rows=st.lists(examples().filter(lambda e: e.completions), min_size=1, max_size=4))
@settings(deadline=None, max_examples=20)
def test_the_plain_backend_has_the_numbers_of_unpadded_forwards(device: str, rows: list[Example]) -> None:
    """The reference of the comparison is correct: one unpadded forward per completion."""
    policy = policies("llama", device)["plain"]
    expected, expected_prompt = plain_scores(policy.model, rows)
    scores = policy.score(rows, prompt=True)
    assert_close(scores.logps, expected, "logps")
    assert_close(scores.prompt_logps, expected_prompt, "prompt_logps")
