"""The pure losses against 50-digit arithmetic, and their gradients where formulas tend to break."""

from __future__ import annotations

import doctest

import alignkit_orpo.losses
import mpmath
import pytest
import torch
from alignkit_orpo import log1mexp, log_odds_ratio, odds_ratio_loss
from hypothesis import given
from hypothesis import strategies as st

mpmath.mp.dps = 50

# mean log-prob of chosen, of rejected -> log odds ratio, L_OR = -log sigmoid(log odds ratio)
ORPO_CASES = [
    (-0.5, -1.5, 1.6802696706417346, 0.1708592171464785),
    (-2.0, -2.0, 0.0, 0.6931471805599453),
    (-0.01, -3.0, 7.5490968383821953, 0.00052644690673533),
    (-0.0001, -0.0002, 0.6931971818099453, 0.4054484413026212),
]


def tensor(x: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([x], dtype=dtype)


@pytest.mark.parametrize(("chosen", "rejected", "ratio", "loss"), ORPO_CASES)
def test_orpo_closed_form(chosen: float, rejected: float, ratio: float, loss: float) -> None:
    w, l = tensor(chosen), tensor(rejected)
    assert log_odds_ratio(w, l).item() == pytest.approx(ratio, rel=1e-6, abs=1e-12)
    assert odds_ratio_loss(w, l).item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("chosen", "rejected", "ratio", "loss"), ORPO_CASES)
def test_orpo_closed_form_in_single_precision(chosen: float, rejected: float, ratio: float, loss: float) -> None:
    """exp(x) - 1 at x = -1e-4 keeps its digits in float32 only through expm1."""
    got = odds_ratio_loss(tensor(chosen, torch.float32), tensor(rejected, torch.float32)).item()
    assert got == pytest.approx(loss, rel=2e-6 if ratio < 7 else 1e-5)


@given(st.floats(min_value=-60, max_value=-1e-12))
def test_log1mexp_against_high_precision(x: float) -> None:
    expected = float(mpmath.log(1 - mpmath.exp(mpmath.mpf(x))))
    assert log1mexp(tensor(x)).item() == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("x", [0.0, -1e-12, -1e-8, -1e-7, -0.5, -0.6931, -0.6932, -50.0, -500.0])
def test_log1mexp_gradient_is_finite(x: float) -> None:
    value = tensor(x, torch.float32).requires_grad_()
    log1mexp(value).sum().backward()
    assert torch.isfinite(log1mexp(value)).all()
    assert torch.isfinite(value.grad).all()


def test_orpo_gradient_in_double_precision() -> None:
    w, l = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([-0.3, -1.2], [-0.9, -0.4]))
    assert torch.autograd.gradcheck(odds_ratio_loss, (w, l))


@pytest.mark.parametrize("module", [alignkit_orpo.losses])
def test_doctests(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0
