"""The entropy of scored tokens and its gradient, by every backend."""

from __future__ import annotations

import pytest
import torch
from alignkit.contract.batch import Example
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import install

from tests.helpers.engine import random_pairs, tiny_llama

BACKENDS = ["packed", "rows", "padded", "plain"]


def gradient(model: torch.nn.Module, value: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def expected(model: torch.nn.Module, rows: list[Example], temperature: float) -> torch.Tensor:
    parts = []
    for row in rows:
        for completion in row.completions:
            logits = model(input_ids=torch.tensor([[*row.prompt, *completion]])).logits[0, len(row.prompt) - 1 : -1]
            logps = (logits / temperature).log_softmax(-1)
            parts.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(parts)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_the_entropy(backend: str, temperature: float) -> None:
    model, rows = tiny_llama(), random_pairs(4, longest=9)
    policy = ModelPolicy(model, install(model, backend))  # type: ignore[arg-type]
    found = policy.score(rows, entropy="grad", temperature=temperature).entropy
    assert found is not None
    mine = gradient(model, found.square().sum())
    plain = tiny_llama()
    values = expected(plain, rows, temperature)
    torch.testing.assert_close(found, values, atol=1e-5, rtol=1e-4)
    wanted = gradient(plain, values.square().sum())
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(mine, wanted, atol=1e-4 * float(wanted.norm()), rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_unless_asked(backend: str) -> None:
    model = tiny_llama()
    policy = ModelPolicy(model, install(model, backend))  # type: ignore[arg-type]
    for options in ({"entropy": True}, {"entropy": "grad", "grad": False}):
        found = policy.score(random_pairs(3, longest=6), **options).entropy  # type: ignore[arg-type]
        assert found is not None
        assert not found.requires_grad
