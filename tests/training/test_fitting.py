"""Micro-batches and memory: a step that runs out of it is repeated in smaller ones, and ``auto`` measures what fits."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.errors import RunFailedError
from alignkit.training.trainer import AlignTrainer
from alignkit_checks.memory import FitMicroBatches, MemoryModel, _cgroup_rooms, available_memory
from transformers import TrainerCallback

from tests.helpers.engine import (
    Recorder,
    StopAt,
    build_trainer,
    configuration,
    random_pairs,
    random_prompts,
    tiny_llama,
)
from tests.helpers.engine import weights as weights_of
from tests.helpers.forked import run_ranks
from tests.helpers.onpolicy import GRPO, PPO, lora

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."
)
FAULTS = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError(ALLOCATOR)]
CHANGING = ("runtime", "_per_second", "memory_gb")


class Kept:
    """run.json and the console of a run."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self.said: list[str] = []
        self.info = self.warn = self.said.append

    def update(self, **changes: Any) -> dict[str, Any]:
        self.record |= json.loads(json.dumps(changes))
        return self.record

    def attach(self, trainer: AlignTrainer) -> None:
        trainer.add_callback(FitMicroBatches(trainer, self.update, self))

    @property
    def budgets(self) -> dict[str, int]:
        found: dict[str, int] = self.record["micro_batches"]["tokens"]
        return found


def trainer_with(
    directory: Path, kept: Kept, tokens: Any = 8192, *callbacks: TrainerCallback
) -> tuple[AlignTrainer, Recorder]:
    """Return a trainer whose adapter draws random numbers in every micro-batch."""
    model = lora(tiny_llama(), lora_dropout=0.3)
    config = configuration("orpo", max_steps=4, optim="adamw_torch", save_strategy="no", tokens_per_micro_batch=tokens)
    torch.manual_seed(5)
    trainer, seen = build_trainer(config, directory, random_pairs(32), model=model, callbacks=callbacks)
    kept.attach(trainer)
    return trainer, seen


def limit(trainer: AlignTrainer, tokens: int, fault: BaseException, step: int = 0) -> None:
    """Let micro-batches of more tokens fail from a step on: in the forward pass, or in the backward pass of the second one."""
    compute, calls = trainer.parts.session.compute_loss, []

    def limited(policy: Any, batch: Any, progress: float) -> Any:
        output = compute(policy, batch, progress)
        calls.append(1)
        if trainer.state.global_step >= step and sum(e.tokens for e in batch.examples) > tokens:
            if len(calls) % 2:
                raise fault
            output.terms[0].sum.register_hook(lambda gradient: (_ for _ in ()).throw(fault))
        return output

    object.__setattr__(trainer.parts.session, "compute_loss", limited)


def logged(seen: Recorder) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if not any(c in k for c in CHANGING)} for record in seen.logs]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_step_without_memory_is_repeated_in_smaller_micro_batches(tmp_path: Path, fault: BaseException) -> None:
    """Weights, gradients and logs are those of a run that cuts its steps like that from the start."""
    kept = Kept()
    trainer, seen = trainer_with(tmp_path / "a", kept)
    limit(trainer, 150, fault)
    trainer.train()
    halved = trainer.parts.tokens_per_micro_batch
    assert halved <= 150
    assert kept.said[0].startswith("out of memory: a micro-batch has up to ")
    assert kept.said[-1].endswith(f"; the step is repeated, and train.tokens_per_micro_batch is {halved} from here on")
    assert kept.budgets == {"0": halved}
    small, expected = trainer_with(tmp_path / "b", Kept(), halved)
    small.train()
    assert torch.equal(weights_of(trainer.model), weights_of(small.model))
    assert logged(seen) == logged(expected)
    assert len(seen.gradients) == 4


def test_a_row_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    kept = Kept()
    trainer, _ = trainer_with(tmp_path, kept)
    before = weights_of(trainer.model)
    limit(trainer, 5, MemoryError())
    with pytest.raises(
        RunFailedError, match=r"^out of memory: lower train.tokens_per_micro_batch or data.max_length, or"
    ):
        trainer.train()
    assert torch.equal(weights_of(trainer.model), before)
    assert len(kept.said) > 1
    assert kept.budgets == {"0": 8192}  # for a resumed run with less to keep


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    trainer, _ = trainer_with(tmp_path, Kept())
    limit(trainer, 5, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer.train()


def test_a_resumed_run_cuts_as_the_whole_one(tmp_path: Path) -> None:
    """Interrupted before or after memory ran out: the budgets of run.json hold from the steps they name."""
    whole = Kept()
    trainer, _ = trainer_with(tmp_path / "whole", whole)
    limit(trainer, 150, MemoryError(), step=2)
    trainer.train()
    assert list(whole.budgets) == ["0", "2"]
    for stop in (1, 3):
        kept = Kept()
        half, _ = trainer_with(tmp_path / f"half-{stop}", kept, 8192, StopAt(stop))
        limit(half, 150, MemoryError(), step=2)
        half.train()
        kept = Kept()
        kept.update(**whole.record)  # it went on for a while after the checkpoint
        resumed, _ = trainer_with(tmp_path / f"half-{stop}", kept)
        limit(resumed, 150, MemoryError(), step=2)
        resumed.train(resume_from_checkpoint=True)
        assert torch.equal(weights_of(resumed.model), weights_of(trainer.model))
        assert kept.said == (whole.said if stop == 1 else [])
    other, _ = trainer_with(tmp_path / "half-3", kept, 7000)  # another setting holds
    other.train(resume_from_checkpoint=True)
    assert other.parts.tokens_per_micro_batch == 7000


def train_in_little_space(directory: Path) -> None:
    """Train one step with address space for a part of its activations, and print what was said and the losses."""
    torch.set_num_threads(1)
    model = tiny_llama(hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    config, kept = configuration("orpo", max_steps=1, per_device_train_batch_size=64), Kept()
    trainer, seen = build_trainer(config, directory, random_pairs(64, longest=80), model=model)
    kept.attach(trainer)
    used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, ((int(used.split()[1]) << 10) + (130 << 20), resource.RLIM_INFINITY))
    trainer.train()
    print(json.dumps([kept.said, seen.losses()]))


def test_a_real_limit_is_survived(tmp_path: Path) -> None:
    ((printed, _),) = run_ranks(1, train_in_little_space, tmp_path, cwd=tmp_path)
    said, losses = json.loads(printed.splitlines()[-1])
    assert [text for text in said if text.startswith("out of memory: a micro-batch has up to ")] == said != []
    assert len(losses) == 1


# ------------------------------------------------------------------ auto


@pytest.mark.parametrize("method", ["orpo", "dpo", "sft", PPO, GRPO], ids=str)
def test_auto_measures_without_a_trace(tmp_path: Path, method: Any) -> None:
    sampled = not isinstance(method, str)
    rows = random_prompts(64) if sampled else random_pairs(64)
    rows = [row.narrow(0) for row in rows] if method == "sft" else rows
    config = configuration(method, max_steps=1, tokens_per_micro_batch="auto")
    trainer, _ = build_trainer(config, tmp_path, rows)
    kept = Kept()
    kept.attach(trainer)
    before, state = weights_of(trainer.model), torch.get_rng_state()
    begin(trainer)
    chosen = trainer.parts.tokens_per_micro_batch
    assert kept.said[0].startswith(f"micro-batches of at most {chosen:,} tokens: ")
    assert "measured" in kept.said[0]
    assert kept.record == {"micro_batches": {"asked": "auto", "tokens": {"0": chosen}}}
    assert torch.equal(weights_of(trainer.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in trainer.model.parameters())
    trainer.train()
    kept.budgets["0"] = 77
    again, _ = build_trainer(config, tmp_path, rows)  # a resumed run does not measure again
    kept.attach(again)
    begin(again)
    assert again.parts.tokens_per_micro_batch == 77
    assert len(kept.said) == 1


def begin(trainer: AlignTrainer) -> None:
    trainer.callback_handler.callbacks[-1].on_train_begin(trainer.args, trainer.state, trainer.control)


@pytest.mark.parametrize(("a_token", "rows"), [(1e12, 1), (1e-3, 8)])
def test_a_budget_is_between_the_longest_row_and_a_micro_batch_of_such_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_token: float, rows: int
) -> None:
    trainer, _ = trainer_with(tmp_path, Kept(), "auto")
    monkeypatch.setattr("alignkit_checks.memory.measured", lambda *_: MemoryModel(0.0, a_token))
    begin(trainer)
    assert trainer.parts.tokens_per_micro_batch == rows * max(row.tokens for row in trainer.parts.train)


def test_one_row_cannot_be_measured(tmp_path: Path) -> None:
    config, kept = configuration("orpo", max_steps=1, tokens_per_micro_batch="auto"), Kept()
    trainer, _ = build_trainer(config, tmp_path, random_pairs(1))
    kept.attach(trainer)
    begin(trainer)
    assert kept.said == [
        "micro-batches of at most 8,192 tokens: too few rows, or too little memory, to measure two sizes"
    ]


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    group = tmp_path / "slice" / "job"
    group.mkdir(parents=True)
    for place, most, used in ((group, "max", 10), (group.parent, "1000", 300), (tmp_path, "5000", 400)):
        (place / "memory.max").write_text(most)
        (place / "memory.current").write_text(str(used))
        (place / "memory.stat").write_text("anon 1\ninactive_file 100\n")
    own = tmp_path / "own"
    own.write_text("0::/slice/job\n")
    assert _cgroup_rooms(own, tmp_path) == [800, 4700]
    assert _cgroup_rooms(tmp_path / "missing", tmp_path) == []


def test_memory_is_shared_by_the_processes_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = available_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.3)
