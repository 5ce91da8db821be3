"""The cost model's arithmetic, on cases calculated by hand, and its tables in the documentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import cost_model
from bench.cells import Shape
from bench.cost_model import Cost, Counts, Passes, Row, cost, in_rows, packed, passes, rows_of, separate, side_cost
from bench.gpu.grid import MODELS, WORKLOADS, cell, grid
from bench.traffic import KERNELS, traffic

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"
ROWS = [Row(4, (2, 3)), Row(1, (1, 2))]
"""9 and 4 tokens with the prompt once; sequences of 6, 7, 2 and 3 tokens."""


def test_packed_rows_have_no_padding_and_each_prompt_once() -> None:
    found = packed("dpo", ROWS)
    assert found.trunk == 9 + 4
    # 4 prompt tokens: 10. Completions of 2 and 3: 2 x 4 + 3 and 3 x 4 + 6. Prompt of 1: 1. Completions: 1 x 1 + 1, 2 x 1 + 3.
    assert found.cells == (10 + 11 + 18) + (1 + 2 + 5)
    assert found.scored == 2 + 3 + 1 + 2
    assert found.mask == found.passes_of_reference == 0
    assert packed("orpo", ROWS).scored == found.scored + 3 + 0  # the NLL over the prompt: all of it but its first token
    assert packed("grpo", ROWS).passes_of_reference == 1


def test_dense_rows_are_padded_to_the_longest() -> None:
    found = in_rows("dpo", ROWS)
    assert (found.trunk, found.cells, found.mask) == (2 * 9, 2 * 81, 2 * 81)


def test_separate_sequences_repeat_prompts() -> None:
    flash = separate("dpo", ROWS, flash=True, padding_free=False)
    assert flash.trunk == 4 * 7  # padding passes the trunk
    assert flash.cells == 21 + 28 + 3 + 6  # but not attention
    dense = separate("dpo", ROWS, flash=False, padding_free=False)
    assert (dense.cells, dense.mask) == (4 * 49, 4 * 49)
    assert separate("dpo", ROWS, flash=True, padding_free=True).trunk == 6 + 7 + 2 + 3
    assert flash.scored == 8
    assert separate("orpo", ROWS, flash=True, padding_free=False).scored == 28  # the logits of every position
    assert separate("grpo", ROWS, flash=True, padding_free=False).trunk == 4 * (
        4 + 3
    )  # prompts and answers padded apart
    even = separate("dpo", [Row(4, (2, 2))], flash=False, padding_free=False)
    assert (even.mask, even.cells) == (0, 2 * 21)  # without padding there is no mask


@pytest.mark.parametrize(
    ("lora", "checkpointing", "kept", "expected"),
    [
        (False, False, True, (3, 3.5, 3)),
        (False, False, False, (3, 3.5, 4)),
        (True, False, False, (2, 3.5, 3)),
        (True, True, False, (3, 4.5, 3)),
    ],
)
def test_passes(*, lora: bool, checkpointing: bool, kept: bool, expected: Passes) -> None:
    assert passes(lora=lora, checkpointing=checkpointing, logits_kept=kept) == expected


def test_cost_of_a_small_model() -> None:
    shape = Shape("hand", vocabulary=10, hidden=4, intermediate=6, layers=2, heads=2, key_value_heads=1)
    found = cost(shape, Counts(trunk=5, cells=7, scored=3, mask=9, passes_of_reference=1), Passes(3, 3.5, 4))
    layer = 2 * 16 + 2 * 4 * 2 + 3 * 4 * 6  # query and output, key and value of one head of 2, the three of the MLP
    assert found.trunk == 2 * 2 * layer * 5 * (3 + 1)
    assert found.attention == 4 * 2 * 4 * 7 * (3.5 + 1)
    assert found.head == 2 * 4 * 10 * 3 * (4 + 1)
    assert found.masks == 2 * (2 * 2 * 9) * (2 + 1)  # written and read; forward, backward and the extra pass
    assert found.operations == found.trunk + found.attention + found.head


def test_seconds_are_the_sum_of_the_three_rates_and_the_traffic() -> None:
    products = 0.65 * 989e12
    assert Cost(products, 0, 2 * products).seconds == pytest.approx(3)
    assert Cost(0, 0.5 * 989e12, 0).seconds == pytest.approx(1)
    assert Cost(0, 0.2 * 989e12, 0, 0.9 * 3.35e12, dense=True).seconds == pytest.approx(2)
    assert Cost(0, 0, 0, layers=0.9 * 3.35e12).seconds == pytest.approx(1)


def test_the_case_of_four_thousand_tokens() -> None:
    """8 prompts of 2,048 with completions of 1,024: the masks take 8 GiB, and half of the score cells are needed."""
    rows = [Row(2048, (1024, 1024))] * 8
    dense, shared, apart = (
        in_rows("dpo", rows),
        packed("dpo", rows),
        separate("dpo", rows, flash=True, padding_free=True),
    )
    assert 32 * 2 * dense.mask == 8 * 2**30
    assert dense.cells / 8 == 16_777_216
    assert shared.cells / 8 == pytest.approx(7.3e6, rel=0.01)
    assert apart.trunk / shared.trunk == 1.5


def test_expected_ratios_of_the_benchmark() -> None:
    for one in grid("cuda"):
        (rows,) = rows_of(one)
        seconds = {side: side_cost(side, one, rows).seconds for side in ("ours", "trl", "trl-reference", "trl-default")}
        if one.method == "sft":  # nothing is shared, and TRL has no padding: the same work, which it has fused
            assert side_cost("trl", one, rows).operations == side_cost("ours", one, rows).operations
            assert seconds["trl"] == pytest.approx(side_cost("ours-liger", one, rows).seconds, rel=0.17)
        if one.method == "dpo":
            assert seconds["trl"] < seconds["trl-reference"] <= seconds["trl-default"]
        assert cost_model.useful(one, rows).operations <= side_cost("ours", one, rows).operations
    mixed = cell("dpo", WORKLOADS[0], MODELS[0].shape("32k", 32_000), "full", "cuda")
    assert cost_model.ratio("trl", mixed) > 1.9 > 1 > cost_model.ratio("ours-liger", mixed)
    assert cost_model.ratio("ours-liger", mixed) > cost_model.ratio("ours-compiled", mixed)


MEASURED = {("0.5b", "trl"): 1.74, ("0.5b", "trl-default"): 4.46, ("1.5b", "trl"): 1.88, ("1.5b", "trl-default"): 5.35}
"""Ratios of ORPO on an H100 (docs/gpu.md)."""


@pytest.mark.parametrize(("model", "side"), MEASURED, ids="-".join)
def test_ratios_are_near_the_measured_ones(model: str, side: str) -> None:
    shape = next(one for one in MODELS if one.name == model).shape("32k", 32_000)
    one = cell("orpo", WORKLOADS[0], shape, "full", "cuda")
    steps = rows_of(one, (2, 3, 4), 5)
    found = np.median(
        [side_cost(side, one, rows).seconds / side_cost("ours-apart", one, rows).seconds for rows in steps]
    )
    # Dense masks are what the calculation knows least about.
    assert found == pytest.approx(MEASURED[model, side], rel=0.1 if side == "trl" else 0.35)


def test_the_traffic_of_layers_is_that_of_their_operations() -> None:
    shape = Shape("hand", vocabulary=10, hidden=64, intermediate=96, layers=3, heads=4, key_value_heads=2)
    eager, liger, compiled = (traffic(shape, "full", kernels) for kernels in KERNELS)
    x, h, q, i = 4 * 64, 2 * 64, 2 * (64 + 32), 2 * 96
    assert compiled == (2 * (2 * h + 2 * x) + 2 * q + 3 * i, 5 * h + 2 * (3 * x + h) + 2 * q + 5 * i)
    # Two norms (x -> x), rotation, gate; a cast of each norm's output, 2 residuals (h + x -> x), the cast of the output of
    # attention and keys and values repeated for their queries are within the rest.
    fused = 2 * 2 * x + 2 * q + 3 * i + 2 * (x + h) + 2 * (h + 2 * x)
    assert fused <= liger.forward <= fused + 2 * x
    assert all(a > b > c for a, b, c in zip(eager, liger, compiled, strict=True))
    # Otherwise queries, keys, values and both halves of the gated product cast the norm's output: 3 times more.
    apart = traffic(shape, "full", "eager", apart=True)
    assert (apart.forward - eager.forward, apart.backward) == (3 * (x + h), eager.backward)
    twice = replace(shape, hidden=128, intermediate=192)  # heads twice as wide
    assert traffic(twice, "full", "eager") == pytest.approx((2 * eager.forward, 2 * eager.backward))


def test_adapters_move_bytes_and_more_where_their_inputs_are_cast() -> None:
    shape = Shape("hand", vocabulary=10, hidden=64, intermediate=96, layers=3, heads=4, key_value_heads=2)
    ours, peft = (traffic(shape, "lora", "liger", apart=apart) for apart in (False, True))
    inputs = 6 * 64 + 96  # numbers that pass into the seven linear layers
    assert peft.forward - ours.forward == pytest.approx(
        inputs * (2 + 4 + 4 + 2), rel=0.25
    )  # to float32, and to bfloat16


@pytest.mark.parametrize(
    "rates",
    [
        *({"product": 0.5}, {"product": 0.75}, {"flash": 0.35}, {"flash": 0.65}, {"dense": 0.1}, {"dense": 0.35}),
        *({"memory": 0.75}, {"memory": 1.0}),
    ],
    ids=str,
)
def test_ratios_to_flash_attention_hardly_depend_on_the_rates_assumed(rates: dict[str, float]) -> None:
    cells = [one for one in grid("cuda") if one.shape.name in ("0.5b-32k", "8b-150k")]
    for side, change in (("trl", 0.06), ("trl-default", 0.38)):
        for one in cells:
            assert cost_model.ratio(side, one, cost_model.RATES | rates) == pytest.approx(
                cost_model.ratio(side, one), rel=change
            )


def test_documentation_has_the_tables() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert cost_model.table() in text
    assert cost_model.example() in text
    assert cost_model.moved() in text
