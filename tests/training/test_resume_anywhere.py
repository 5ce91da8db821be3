"""Resume from any step equals the uninterrupted run, bit for bit, whatever the method's reuse and the order of the rows."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.config import DataConfig
from alignkit.contract.types import RowKind
from alignkit.data.load import Data
from alignkit.data.order import row_order
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.data import TOKENIZER, load_all, pairs, write_jsonl
from tests.helpers.engine import Recorder, build_trainer, configuration, tiny_llama, weights

pytestmark = pytest.mark.slow

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Checkpoints are synced to disk: in memory that costs nothing."""

STEPS = 7
SAMPLED = {
    "reward": st.just("length"),
    "max_new_tokens": st.just(4),
    "epochs": st.integers(1, 2),
    "minibatches": st.integers(1, 2),
}
METHODS = {
    "orpo or dpo": st.sampled_from([{"name": "orpo"}, {"name": "dpo"}]),
    "grpo": st.fixed_dictionaries({"name": st.just("grpo"), **SAMPLED}),
    "ppo": st.fixed_dictionaries({"name": st.just("ppo"), **SAMPLED, "kl_target": st.just(0.1)}),
}
PHASES = st.tuples(st.sampled_from([0.3, 0.5]), st.sampled_from([{"a": 1}, {"b": 1}, {"a": 1, "b": 2}])).map(
    lambda drawn: [{"until": drawn[0], "weights": drawn[1]}, {"until": 1.0, "weights": {"a": 2, "b": 1}}]
)
ORDER = st.fixed_dictionaries(
    {
        "phases": st.just([]) | PHASES,
        "group_by": st.sampled_from([None, "source"]),
        "steps_per_group": st.integers(1, 2),
        "shuffle": st.booleans(),
        "interleave": st.sampled_from(["random", "even", "in_turn"]),
        "curriculum": st.sampled_from([None, {"by": "length", "epochs": 1}]),
    }
)


@cache
def data(kind: RowKind) -> tuple[DataConfig, Data]:
    """Return two small sources, 5 rows and 9."""
    with tempfile.TemporaryDirectory() as folder:
        rows = pairs(14)
        sources = [
            {"name": name, "source": str(write_jsonl(Path(folder) / f"{name}.jsonl", part))}
            for name, part in (("a", rows[:5]), ("b", rows[5:]))
        ]
        return DataConfig(sources=sources), load_all(kind, sources=sources)  # type: ignore[arg-type]


def build(method: dict[str, Any], order: dict[str, Any], output: Path, **train: Any) -> tuple[Any, Recorder]:
    section, loaded = data("prompt" if "reward" in method else "preference")
    config = configuration(
        method,
        optim="adamw_torch",
        lr_scheduler_type="cosine",
        max_steps=STEPS,
        per_device_train_batch_size=3,
        tokens_per_micro_batch=60,
        **train,
    )
    rows = row_order(DataConfig.model_validate(section.model_dump() | order), loaded.train, config.run.seed)
    model = tiny_llama(vocab_size=len(TOKENIZER), attention_dropout=0.1)
    return build_trainer(config, output, loaded.train, model=model, row_order=rows)


def losses(seen: Recorder) -> list[dict[str, float]]:
    """Return the log of every step, without what depends on the machine."""
    machine = {"tokens_per_second", "memory_gb"}
    return [{k: v for k, v in record.items() if k not in machine} for record in seen.logs if "loss" in record]


@pytest.mark.parametrize("kind", METHODS)
@given(drawn=st.data(), order=ORDER, stops=st.sets(st.integers(1, STEPS - 1), min_size=2, max_size=2))
@settings(deadline=None, max_examples=3)
def test_resume_at_any_step_equals_uninterrupted(
    kind: str, drawn: st.DataObject, order: dict[str, Any], stops: set[int]
) -> None:
    method = drawn.draw(METHODS[kind])
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": STEPS}
        whole, seen_whole = build(method, order, Path(folder), **saving)
        whole.train()
        for stop in stops:
            torch.rand(3)  # a new process has random numbers of its own
            resumed, seen = build(method, order, Path(folder))
            resumed.train(resume_from_checkpoint=str(Path(folder) / f"checkpoint-{stop}"))
            assert torch.equal(weights(resumed.model), weights(whole.model)), stop
            assert len(seen.gradients) == STEPS - stop
            assert all(map(torch.equal, seen.gradients, seen_whole.gradients[stop:]))
            assert losses(seen) == losses(seen_whole)[stop:]
            assert resumed.parts.session.method.state() == whole.parts.session.method.state()
            assert resumed.steps.spent == whole.steps.spent
