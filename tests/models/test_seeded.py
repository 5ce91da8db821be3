"""Seeded sampling: its noise is random in every direction, its tokens have the model's distribution, and nothing beside an answer changes it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from alignkit.models.generate import generate
from alignkit.models.seeded import answer_seeds, gumbel, noisy, split_mix
from scipy import stats

from tests.helpers.eval import BOS, byte_tokenizer, tiny_model

LIKELY = 1e-3
"""Lowest p-value that is accepted; all seeds are fixed."""


def noise(seeds: Any, step: int, tokens: int) -> torch.Tensor:
    """Return the Gumbel noise of every row and token, ``[B, V]``."""
    even = torch.zeros(len(seeds), tokens)
    return noisy(even, torch.tensor(seeds), step) - even.log_softmax(-1)


def check_counts(counts: Any, expected: Any) -> None:
    """Check counts of tokens against those expected, all that are expected less than five times as one."""
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    groups = [[*values[often], values[~often].sum()] for values in (counts, expected)]
    assert stats.chisquare(*([group[: len(group) - (groups[1][-1] == 0)] for group in groups])).pvalue > LIKELY


def test_the_generator_is_split_mix_64() -> None:
    """The first outputs of the published generator for the state 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = split_mix(torch.tensor([1234567]), torch.arange(5))
    assert [number % 2**64 for number in found.tolist()] == expected


@pytest.mark.parametrize("seeds", [range(300), answer_seeds((0, 0, 1, 5), 300)], ids=["successive", "derived"])
def test_the_noise_is_gumbel_and_independent_over_seeds_steps_and_tokens(seeds: Any) -> None:
    steps = torch.stack([noise([*seeds], step, 200) for step in range(5)])  # (steps, seeds, tokens)
    assert bool(steps.isfinite().all())
    assert stats.kstest(steps.flatten().numpy(), stats.gumbel_r.cdf).pvalue > LIKELY
    uniform = (-(-steps).exp()).exp().double()
    for axis in range(3):
        here, next_ = uniform.narrow(axis, 0, steps.shape[axis] - 1), uniform.narrow(axis, 1, steps.shape[axis] - 1)
        cells, *_ = np.histogram2d(here.flatten(), next_.flatten(), bins=8, range=[[0, 1], [0, 1]])
        assert stats.chisquare(cells.flatten()).pvalue > LIKELY, f"along axis {axis}"


def test_tokens_have_the_model_s_distribution() -> None:
    n = 100_000
    torch.manual_seed(0)
    logits = (torch.randn(40) * 2).expand(n, -1)
    seeds = torch.tensor(answer_seeds((1,), n))
    first, second = (noisy(logits, seeds, step).argmax(-1) for step in (0, 1))
    expected = (logits[0].double().softmax(0) * n).numpy()
    for tokens in (first, second):
        check_counts(np.bincount(tokens, minlength=40), expected)
    often = np.argsort(expected)[-6:]
    for a, b in ((first, second), (first[1:], first[:-1])):  # of one answer, and of two
        table = np.histogram2d(a, b, bins=np.arange(41))[0][np.ix_(often, often)]
        assert stats.chi2_contingency(table).pvalue > LIKELY


def test_the_noise_is_exact_at_both_ends() -> None:
    """-log(-log(1 - u)) of a uniform number of 53 bits: the likely end, where it decides about rare tokens, and never infinity."""
    numbers = np.array([1, 2, 3, 1000, 2**29, 2**40, 2**52, 2**53 - 2**29])
    bits = torch.tensor([(int(n) << 11) - (2**64 if n >= 2**52 else 0) for n in numbers])
    expected = -np.log(-np.log1p(-numbers / 2**53))
    np.testing.assert_allclose(gumbel(bits).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert bool(gumbel(torch.tensor([0, -1])).isfinite().all())


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 0.5, "top_k": 9, "top_p": 0.9}])
def test_answers_are_sampled_from_what_was_asked_for(options: dict[str, Any]) -> None:
    model, prompt, n = tiny_model(), [BOS, 65, 66], 4000
    model.generation_config.update(do_sample=True, top_k=3, min_p=0.2)  # the checkpoint's are not what is asked for
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        logits = model(torch.tensor([prompt])).logits[0, -1] / options.get("temperature", 1.0)
    kept = torch.arange(len(logits)) < options.get("top_k", len(logits))
    order = logits.argsort(descending=True)
    shares = logits[order].double().where(kept, -torch.inf).softmax(0)
    shares = shares.where(shares.cumsum(0) - shares < options.get("top_p", 1.0), 0.0)
    expected = torch.zeros_like(shares).scatter(0, order, shares / shares.sum()).numpy() * n
    answers = generate(
        model, byte_tokenizer(), [prompt] * n, **{"max_new_tokens": 1, "temperature": 1.0, "batch_size": n} | options
    )
    check_counts(np.bincount([answer.completion[0] for answer in answers], minlength=len(logits)), expected)


def test_an_answer_depends_on_its_prompt_and_seed_alone() -> None:
    """Whatever is beside it, in whatever order, in batches of whatever size; and one seed for all is one for each place."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    draw = random.Random(0)
    prompts = [[BOS, *(draw.randrange(256) for _ in range(draw.randint(0, 20)))] for _ in range(13)]
    seeds = answer_seeds((7,), 13)

    def answers(which: Any, size: int, seed: Any) -> list[Any]:
        chosen = [prompts[i] for i in which]
        return generate(model, tokenizer, chosen, max_new_tokens=6, temperature=1.0, seed=seed, batch_size=size)

    calls: list[int] = []  # rows of each forward
    model.register_forward_pre_hook(lambda _, __, given: calls.append(len(given["input_ids"])), with_kwargs=True)
    alone = [answers([i], 1, [seeds[i]])[0] for i in range(13)]
    assert len({tuple(answer.tokens) for answer in alone}) == 13
    for which, size in ((range(13), 16), (range(13), 5), (range(12, -1, -1), 4), (range(3, 9), 2)):
        calls.clear()
        assert answers(which, size, [seeds[i] for i in which]) == [alone[i] for i in which]
        assert max(calls) == min(size, len(which))
    assert answers(range(13), 4, 7) == answers(range(13), 16, 7) == alone
    assert answers(range(13), 4, 8) != alone
