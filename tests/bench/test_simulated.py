"""Steps without a GPU and without numbers: bytes that are alive, moved and launched, on cases counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.cost_model import rows_of
from bench.gpu.grid import TINY_MODELS, TINY_WORKLOADS, cell
from bench.simulated import Meter, simulate


def test_the_meter_counts_what_is_alive_moved_and_launched() -> None:
    meter = Meter()
    with FakeTensorMode(), meter:
        a = torch.empty(1000)
        b = a + 1  # reads and writes 4,000 bytes each
        view = b.view(10, 100)
        del b
        assert (meter.alive, meter.bytes, meter.launches) == (8000, 8000, 1)
        del view
        weight = torch.nn.Parameter(torch.empty(10, 100))
        assert meter.alive == 8000
        loss = (weight * 2).exp().sum()  # of which the exponentials are kept
        assert meter.alive == 4000 + 4000 + 4000 + 4
        loss.backward()
        assert bool(loss.isfinite())
        del loss
    assert meter.alive == 3 * 4000  # a, the weight, its gradient


def test_a_layer_more_takes_its_weights_and_what_it_keeps_for_the_backward_pass() -> None:
    model = TINY_MODELS[0]
    cells = [cell("orpo", TINY_WORKLOADS[1], model._replace(layers=n).shape("1k", 1000), "full", "cpu") for n in (1, 2)]
    one, two = (simulate(each, "ours") for each in cells)
    h, k, i = model.hidden, model.hidden // model.heads * model.key_value_heads, model.intermediate
    products = 2 * h * h + 2 * h * k + 3 * h * i
    assert two.resident - one.resident == pytest.approx(4 * (products + 2 * h), rel=0.001)
    # Two norms keep their input and the normalised states in float32 and a number of the row, and the cast of what they return;
    # attention its queries, keys, values, output and log-sum-exps; the gated product four times its size.
    kept = 2 * (4 * h + 4 * h + 4 + 2 * h) + 2 * (h + 2 * k + h) + 4 * model.heads + 4 * 2 * i
    (rows,) = rows_of(cells[0])
    tokens = sum(row.prompt + sum(row.completions) for row in rows)
    assert two.peak - one.peak == pytest.approx(4 * (products + 2 * h) + 2 * products + tokens * kept, rel=0.02)
    assert two.moved - one.moved > tokens * kept
    assert 50 < two.launches - one.launches < 300


def test_trls_padding_is_kept_too() -> None:
    model = TINY_MODELS[0]._replace(layers=1)
    each = cell("orpo", TINY_WORKLOADS[0], model.shape("1k", 1000), "full", "cpu")
    ours, trl = (simulate(each, side) for side in ("ours", "trl"))
    assert ours.resident == pytest.approx(trl.resident, rel=0.001)
    assert ours.peak < trl.peak
    assert ours.moved < trl.moved
