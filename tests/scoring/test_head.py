"""The chunked head gives the values and gradients of a full softmax, for all combinations of kept, trained and capped parts."""

from __future__ import annotations

import pytest
import torch
from alignkit.scoring.head import LogitTransform, head_logps, install_head, linear_logps
from torch import nn

N, H, V = 37, 16, 50


PLAIN, CAPPED = LogitTransform(), LogitTransform(2.0, 1.5, 0.7)


def problem(bias, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=bias, dtype=dtype).to(device)
    hidden, targets, weights = torch.randn(N, H, dtype=dtype), torch.randint(0, V, (N,)), torch.randn(N)
    return head, hidden.to(device).requires_grad_(), targets.to(device), weights.to(device)


def full(head, hidden, targets, transform=PLAIN):
    return transform(head(hidden)).double().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keep_bytes", [0, 8 * V * 20, 1 << 30], ids=["recomputed", "some kept", "all kept"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("transform", [PLAIN, CAPPED], ids=["plain", "capped"])
def test_values_and_gradients(device, bias, keep_bytes, frozen, transform):
    head, hidden, targets, weights = problem(bias, device=device)
    head.requires_grad_(not frozen)
    got = linear_logps(hidden, head.weight, head.bias, targets, transform, chunks=(0, 10, keep_bytes))
    want = full(head, hidden, targets, transform)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-6)
    inputs = [hidden] if frozen else [hidden, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((want * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_only_part_of_the_head_is_trained(device, trained):
    head, hidden, targets, weights = problem(bias=True, device=device)
    head.requires_grad_(False)
    parameter = getattr(head, trained).requires_grad_()
    got, want = (
        linear_logps(hidden, head.weight, head.bias, targets, chunks=(0, 10, 1 << 30)),
        full(head, hidden, targets),
    )
    torch.testing.assert_close(
        *(torch.autograd.grad((x * weights).sum(), parameter)[0] for x in (got, want)), atol=2e-6, rtol=2e-6
    )


def test_nothing_is_kept_without_gradients():
    head, hidden, targets, _ = problem(bias=False)
    with torch.no_grad():
        assert linear_logps(hidden, head.weight, None, targets).grad_fn is None


def test_logits_far_apart_stay_finite():
    """A target 2000 nats below the best token has log-probability -2000, not minus infinity."""
    weight = torch.zeros(V, H)
    weight[0, 0] = 2000.0
    hidden = torch.zeros(2, H)
    hidden[:, 0] = 1.0
    got = linear_logps(hidden, weight, None, torch.tensor([0, 1]))
    assert got.tolist() == [0.0, -2000.0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transform", [PLAIN, LogitTransform(0.3), LogitTransform(2.0, 1.5), CAPPED])
def test_transformed_logits(device, bias, transform):
    head, hidden, targets, weights = problem(bias, torch.float32, device)
    want = full(head, hidden, targets, transform)
    inputs = [hidden, *head.parameters()]
    expected = torch.autograd.grad((want * weights).sum(), inputs)
    install_head(head)
    got = head_logps(head, hidden, targets, transform)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    for a, b in zip(torch.autograd.grad((got * weights).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_an_installed_head_is_still_a_linear_layer():
    head, hidden, *_ = problem(bias=True)
    want = head(hidden)
    install_head(head)
    assert torch.equal(head(hidden), want)


def test_autocast_computes_in_its_dtype_and_gives_float32(device):
    head, hidden, targets, weights = problem(True, torch.float32, device)
    install_head(head)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = head_logps(head, hidden, targets, PLAIN)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), full(head, hidden, targets), atol=0.05, rtol=0.02)
    (got * weights).sum().backward()
    assert head.weight.grad.dtype == torch.float32
