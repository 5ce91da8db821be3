"""Evaluation without side effects, and padding."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from alignkit.scoring.evaluating import evaluating, undisturbed
from alignkit.scoring.padding import pad_rows
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


def model_with_a_frozen_part() -> nn.Sequential:
    """Return a model in training mode with one submodule in evaluation mode."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)))
    model.train()
    model[2].eval()
    return model


def modes(*models: nn.Module) -> list[bool]:
    return [module.training for model in models for module in model.modules()]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_own_mode_back(fails: bool) -> None:
    models = model_with_a_frozen_part(), nn.Dropout(0.5).train()
    before = modes(*models)
    for evaluate in (evaluating, undisturbed):
        try:
            with evaluate(*models):
                assert not any(modes(*models))
                assert not torch.is_grad_enabled()
                x = torch.ones(2, 4)
                assert torch.equal(models[0](x), models[0](x)), "dropout is off"
                if fails:
                    raise ArithmeticError
        except ArithmeticError:
            assert fails
        assert modes(*models) == before
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_restored(fails: bool) -> None:
    model = model_with_a_frozen_part()
    seed(1)
    expected = [draws(), draws()]
    seed(1)
    found = [draws()]
    try:
        with undisturbed(model):
            seed(7)
            draws()
            if fails:
                raise ArithmeticError
    except ArithmeticError:
        assert fails
    assert [*found, draws()] == expected


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=5), st.booleans())
def test_padded_rows_read_back(rows: list[list[int]], left: bool) -> None:
    ids, mask = pad_rows(rows, 3, torch.device("cpu"), left=left)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)] == rows
    assert (ids[mask == 0] == 3).all()
    steps = mask.diff(dim=1)
    assert ((steps >= 0) if left else (steps <= 0)).all(), "all padding is on one side"
