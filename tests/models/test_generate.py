"""Sample answers: greedy, ended by the end token, and without effect on training."""

import random

import numpy as np
import pytest
import torch
from alignkit.models.generate import GeneratedAnswer, generate
from alignkit.scoring.scorer import install

from tests.helpers.eval import BOS, EOS, byte_tokenizer, tiny_model


def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax())
        if token == EOS:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("scored", [False, True], ids=["plain", "with the scorer's forward"])
def test_samples_are_the_greedy_answers_whatever_stands_beside_them(scored: bool) -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.config.use_cache = False
    if scored:
        install(model)
    rng = random.Random(0)
    prompts = [[BOS, *(rng.randrange(256) for _ in range(rng.randint(0, 20)))] for _ in range(19)]
    answers = generate(model, tokenizer, prompts, max_new_tokens=8)
    assert [answer.tokens for answer in answers] == [greedy(model, prompt, 8) for prompt in prompts]
    assert generate(model, tokenizer, [], max_new_tokens=8) == []


def test_samples_end_at_the_end_token() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    prompt = [BOS, 65, 66]
    first, second, *_ = greedy(model, prompt, 8)
    assert first != second
    model.generation_config.eos_token_id = [EOS, second]
    assert generate(model, tokenizer, [prompt], max_new_tokens=8) == [GeneratedAnswer([first], second)]


def test_sampling_leaves_training_undisturbed() -> None:
    model, tokenizer = tiny_model().train(), byte_tokenizer()
    model.model.layers[0].eval()  # one frozen part in evaluation mode
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=5)
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    generate(model, tokenizer, [[BOS, 1]], max_new_tokens=4, seed=3)
    assert [module.training for module in model.modules()] == modes
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.generation_config.do_sample is True


def test_the_modes_come_back_after_a_failure() -> None:
    model = tiny_model().train()
    with pytest.raises(IndexError):
        generate(model, byte_tokenizer(), [[BOS, 100_000]], max_new_tokens=4)
    assert model.training
