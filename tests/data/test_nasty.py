"""Malformed data with the exact error messages; random rows either load or raise an error that names the reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import RunConfig
from alignkit.contract.types import RowKind
from alignkit.data.load import load_data
from alignkit.data.order import row_order
from alignkit.errors import AlignError
from alignkit.testing.engine import build_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.cases import Case
from tests.data.cases.files import FILES
from tests.data.cases.rows import ROWS
from tests.helpers.data import TOKENIZER, pairs
from tests.helpers.engine import tiny_llama

CASES: dict[str, Case] = FILES | ROWS


@pytest.mark.parametrize("name", CASES)
def test_one_exact_sentence_and_nothing_lost(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = tmp_path / case.name
    path.write_bytes(case.content)
    section = {"source": str(path), "eval_split": 0.3, **case.section}
    with pytest.raises(AlignError) as caught:
        load_data(RunConfig(method="m", data=section), case.kind, case.tokenizer())
    assert caught.value.exit_code == 2
    assert str(caught.value).replace(str(path), "{file}") == case.expected
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(case.content).digest()
    left = [file.name for file in (tmp_path / "cache").rglob("*") if file.suffix in (".partial", ".lock")]
    assert not left, "half-made files in the cache"


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    assert len({case.expected for case in CASES.values()}) >= 60


# ------------------------------------------------------------------------------------------------ random rows

WORD = st.sampled_from(
    ["", " ", "sky?", "It is blue.", "It is", "</s>", "<|end|>", "\u00e9\u0301", "\x00", "four " * 9]
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": WORD})
TALK = st.lists(TURN, max_size=4)
VALUE = st.one_of(WORD, TALK, st.none(), st.integers(-2, 2), st.booleans(), st.lists(WORD, max_size=3))
FINE = st.fixed_dictionaries({"prompt": WORD, "chosen": WORD, "rejected": WORD})
ROW = st.one_of(
    FINE,
    st.fixed_dictionaries({"prompt": VALUE, "chosen": VALUE, "rejected": VALUE}),
    st.fixed_dictionaries({"messages": TALK}),
    st.fixed_dictionaries(
        {"prompt": WORD, "answers": st.lists(WORD, max_size=3), "ratings": st.lists(st.integers(0, 3), max_size=3)}
    ),
    st.fixed_dictionaries({"prompt": WORD, "completion": WORD, "label": st.booleans()}),
)
TEXT = st.sampled_from(["sky?", "It is blue.", "four", "It is <|end|>", "I do not know.", " ", "</s>"])
PAIR = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}, optional={"category": TEXT})
RATED = st.lists(st.tuples(TEXT, st.integers(0, 3)), min_size=1, max_size=4).map(
    lambda answers: {"prompt": "sky?", "answers": [a for a, _ in answers], "ratings": [r for _, r in answers]}
)
LABELLED = st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT, "label": st.booleans()})
CHAT = st.lists(TEXT, min_size=1, max_size=5).map(
    lambda texts: {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    }
)


def some(row: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(row, min_size=1, max_size=8)


MIXED = st.tuples(st.integers(0, 6), some(ROW)).map(lambda drawn: [*pairs(drawn[0]), *drawn[1]])
FILE = st.one_of(some(PAIR), some(RATED), some(LABELLED), some(CHAT), MIXED)
SECTION = st.fixed_dictionaries(
    {
        "max_length": st.integers(4, 40),
        "append_eos": st.booleans(),
        "train_on": st.sampled_from(["last", "all"]),
        "pairs": st.sampled_from(["all", "best_worst", None]),
        "eval_split": st.sampled_from([0.0, 0.3]),
        "curriculum": st.sampled_from([None, {"by": "length"}]),
        "group_by": st.sampled_from([None, "category", "cluster"]),
    }
)
METHODS: dict[str, RowKind] = {"orpo": "preference", "sft": "completion"}


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=FILE, section=SECTION, method=st.sampled_from(["orpo", "sft"]))
def test_a_run_trains_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], section: dict[str, Any], method: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(
        method=method,
        data={"source": str(path), "max_dropped": 1.0, "cache": False, **section},
        train={"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
        eval={"suites": []},
    )
    refused = None
    try:
        data = load_data(config, METHODS[method], TOKENIZER)
        order = row_order(config.data, data.train, 0)
    except AlignError as error:
        refused = error
    if refused is not None:
        assert refused.exit_code == 2
        assert str(refused).strip()
        assert "\n" not in str(refused)
        return
    (report,) = data.report.sources
    assert report.read == report.kept + report.unusable
    assert report.kept == len(data.train) + len(data.eval)
    assert sorted(order.epoch(0).tolist()) == list(range(len(data.train)))
    trainer = build_trainer(config, folder / "out", data.train, model=tiny_llama(vocab_size=len(TOKENIZER)))
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())
