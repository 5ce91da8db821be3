"""The launches of varlen: their number, and what each computes."""

from __future__ import annotations

import pytest
import torch
from alignkit.contract import Layout
from alignkit_attention.varlen import FLASH, VARLEN, launches

from tests.helpers.attention import layer_of, layout_of, tokens_of

CPU = torch.device("cpu")
PAIRS = layout_of([(5, (4, 3)), (2, (6, 1)), (7, (2, 2))])


def layouts() -> list[Layout]:
    return [
        layout_of([(5 + i, (4,) * completions) for i in range(rows)]) for rows in (1, 40) for completions in (1, 2, 9)
    ]


def test_a_packed_row_takes_at_most_two_launches_whatever_the_number_of_rows():
    assert [len(launches(layout, None, None, CPU)) for layout in layouts()] == [1, 2, 2] * 2
    assert [len(launches(layout, 6, None, CPU)) for layout in layouts()] == [1] * 6
    assert [len(launches(layout, 1000, None, CPU)) for layout in layouts()] == [1, 2, 2] * 2


def test_prompts_and_first_completions_are_one_sequence_and_the_others_attend_to_their_prompt():
    own, prompts = launches(PAIRS, None, None, CPU)
    assert own.rows is None
    assert own.columns is None
    assert own.row_starts.tolist() == own.column_starts.tolist() == [0, 9, 12, 20, 21, 30, 32]
    assert own.causal
    assert (own.most_rows, own.most_columns) == (9, 9)
    assert prompts.rows is not None
    assert prompts.rows.tolist() == [9, 10, 11, 20, 30, 31]
    assert prompts.row_starts.tolist() == [0, 3, 4, 6]
    assert prompts.columns is not None
    assert prompts.columns.tolist() == [0, 1, 2, 3, 4, 12, 13, 21, 22, 23, 24, 25, 26, 27]
    assert not prompts.causal


def test_under_a_window_completions_have_the_last_tokens_of_their_prompt_as_keys():
    (launch,) = launches(PAIRS, 4, None, CPU)
    assert launch.window == 4
    assert launch.rows is None
    assert launch.columns is not None
    assert launch.columns.tolist()[:15] == [*range(9), 2, 3, 4, 9, 10, 11]
    assert launch.row_starts.dtype == torch.int32
    assert launch.row_starts[-1] == tokens_of(PAIRS)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layer_of((4, 2), dtype=torch.float32), "computes in bfloat16 and float16, not in float32"),
        (layer_of((4, 2), dtype=torch.bfloat16, size=12), "takes heads of a multiple of 8 numbers up to 256, not 12"),
        (layer_of((4, 2), dtype=torch.bfloat16, size=512), "takes heads of a multiple of 8 numbers up to 256, not 512"),
        (layer_of((4, 2), dtype=torch.bfloat16, softcap=30.0), "does not support softcap"),
    ],
)
def test_what_flash_attention_cannot_compute_is_refused(layer, reason):
    assert VARLEN.operators is FLASH
    assert VARLEN.refusal(layer) == reason
