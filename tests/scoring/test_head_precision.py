"""The chunked head in half precision: sums in float32, memory, and products in float32 where ``model.head`` is exact."""

from __future__ import annotations

import pytest
import torch
from alignkit.scoring.distributions import HeadDistributions, entropy
from alignkit.scoring.head import LogitTransform, head_logps, install_head, linear_logps
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.engine import tiny_llama

N, H, V = 512, 8, 24
PLAIN, CAPPED = LogitTransform(), LogitTransform(1.0, 20.0, 0.7)
HALVES = [torch.bfloat16, torch.float16]


def one_sided(device="cpu"):
    """Return hidden states, a weight, targets and gradients for which all chunks add to the weight's gradient with one sign."""
    torch.manual_seed(0)
    hidden, weight = 1 + torch.rand(N, H), torch.randn(V, H) / 4
    return hidden.to(device), weight.to(device), torch.zeros(N, dtype=torch.long, device=device)


def gradients(hidden, weight, targets, transform, dtype, chunk, **types):
    hidden, weight = (x.detach().to(types.get("stored", x.dtype)).requires_grad_() for x in (hidden, weight))
    linear_logps(hidden, weight, None, targets, transform, dtype=dtype, chunks=(0, chunk, 1 << 28)).sum().backward()
    return hidden.grad.double(), weight.grad.double()


def errors(got, expected):
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


@pytest.mark.parametrize("transform", [PLAIN, CAPPED], ids=["plain", "capped"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("stored", [torch.float32, None], ids=["weights in float32", "weights in half"])
def test_the_error_of_gradients_does_not_grow_with_the_number_of_chunks(device, dtype, stored, transform):
    hidden, weight, targets = (x.to(dtype) if x.is_floating_point() else x for x in one_sided(device))
    expected = gradients(hidden.double(), weight.double(), targets, transform, torch.float64, N)
    whole = errors(gradients(hidden, weight, targets, transform, dtype, N, stored=stored or dtype), expected)
    for chunk in (128, 16, 2, 1):
        got = gradients(hidden, weight, targets, transform, dtype, chunk, stored=stored or dtype)
        for error, least in zip(errors(got, expected), whole, strict=True):
            assert error <= 1.5 * least + torch.finfo(dtype).eps / 2, chunk


def test_in_float32_the_cut_into_chunks_is_rounding_only(device):
    hidden, weight, targets = one_sided(device)
    whole = gradients(hidden, weight, targets, PLAIN, torch.float32, N)
    for chunk in (100, 16, 1):
        got = gradients(hidden, weight, targets, PLAIN, torch.float32, chunk)
        assert max(errors(got, whole)) < 1e-6, chunk


class Made(TorchDispatchMode):
    """The numbers of elements of all tensors that operations make."""

    def __init__(self):
        super().__init__()
        self.storages, self.sizes = {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in given:
                self.sizes.append(x.numel())
        return out


def made(chunks, dtype, device, vocabulary=5000, tokens=200, width=64):
    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=device, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long, device=device)
    with Made() as seen:
        linear_logps(hidden, weight, None, targets, dtype=dtype, chunks=chunks).sum().backward()
    assert weight.grad.dtype == torch.float32
    return seen.sizes


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_there_is_one_gradient_of_the_weight_however_many_chunks_there_are(dtype, place):
    """No tensor of the size of all logits, and of the weight's size its gradient and its cast alone."""
    sizes = made((0, 20, 0), dtype, place)
    assert max(sizes) <= 5000 * 64
    assert sizes.count(5000 * 64) == (1 if dtype == torch.float32 else 2)


def test_chunks_on_other_devices_are_larger():
    with FakeTensorMode():
        largest = {place: max(made(None, torch.bfloat16, place, 32_000, 9000)) for place in ("cpu", "meta")}
    assert largest == {"cpu": 32_000 * 1048, "meta": 32_000 * 8388}


def adapted(kind):
    """Return a tiny model whose output layer is plain, has an adapter, or is trained beside one, and that layer."""
    model = tiny_llama()
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    if kind == "copy":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    return model.get_output_embeddings()


@pytest.mark.parametrize("transform", [PLAIN, CAPPED], ids=["plain", "capped"])
@pytest.mark.parametrize("kind", ["plain", "adapter", "copy"])
def test_an_exact_head_has_the_numbers_of_float32_under_autocast(device, kind, transform):
    head = adapted(kind).to(device)
    assert install_head(head)
    hidden = 8 * torch.randn(40, head.weight.shape[1], device=device)
    targets = torch.arange(40, device=device)

    def numbers(*, autocast):
        states = hidden.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logps = head_logps(head, states, targets, transform)
            others = HeadDistributions.of(head, hidden, transform).map(entropy), head(hidden).detach()
        logps.sum().backward()
        return logps.detach(), states.grad, *others

    expected = numbers(autocast=False)
    found = {}
    for exact in (False, True):
        install_head(head, exact=exact)
        found[exact] = numbers(autocast=True)
    for got, fast, want in zip(found[True], found[False], expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert float((fast.float() - want).abs().max()) > 1e-4


@pytest.mark.parametrize("trained", [False, True])
def test_an_exact_head_whose_weights_are_half_precision_multiplies_in_float32(device, trained):
    torch.manual_seed(0)
    head = nn.Linear(H, V, dtype=torch.bfloat16).to(device).requires_grad_(trained)
    hidden, targets = torch.randn(N, H, device=device), torch.randint(0, V, (N,), device=device)
    install_head(head, exact=True)
    states = hidden.to(torch.bfloat16).requires_grad_()
    got = head_logps(head, states, targets, PLAIN)
    want = (states.double() @ head.weight.double().t() + head.bias.double()).log_softmax(-1).gather(1, targets[:, None])
    torch.testing.assert_close(got.double(), want.squeeze(1), atol=1e-5, rtol=1e-5)
    assert head(states).dtype == torch.float32
    got.sum().backward()
    assert states.grad.dtype == torch.bfloat16
    assert (head.weight.grad is not None) == trained
