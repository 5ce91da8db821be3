"""The estimate of memory: what a trace counts, and how each part follows from the settings of a run."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from alignkit import build_classifier
from alignkit.config import ModelConfig, RunConfig
from alignkit.errors import ModelError
from alignkit.models.load import build_model
from alignkit.scoring.classifier import ClassifierPolicy
from alignkit.scoring.policy import ModelPolicy
from alignkit_eval.report.heap import Heap
from alignkit_eval.report.memory import Memory, _other_models, estimate_memory
from alignkit_eval.report.planned import plan_without_weights
from alignkit_eval.report.tracing import KERNEL, Trace, policy_without_numbers, traced, without_numbers
from transformers import LlamaConfig

from bench.gpu.estimate import estimated_peak
from bench.gpu.grid import grid
from bench.gpu.sides import budget

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True}


def _estimated(train: dict[str, Any] | None = None, **more: Any) -> Memory:
    config = RunConfig(**{"method": "sft", "train": SHORT | (train or {}), "eval": {"suites": []}, **more})
    return estimate_memory(plan_without_weights(config), libraries=0)


@functools.cache
def _demo() -> int:
    return sum(p.numel() for p in plan_without_weights(RunConfig(method="sft")).loaded.model.parameters())  # type: ignore[arg-type]


def _step(model: torch.nn.Module) -> None:
    torch.nn.functional.relu(model(torch.ones(64, 32))).square().sum().backward()


def test_a_trace_without_numbers_equals_one_with_them() -> None:
    with Trace() as real:
        model = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 8))
        _step(model)
    with torch.device("meta"):
        shape = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 8))
    with traced() as trace:
        without_numbers(shape)
        weights = trace.alive["weights"]
        _step(shape)
    assert weights == 4 * sum(p.numel() for p in model.parameters())
    assert trace.peak == real.peak


@pytest.mark.parametrize(("kind", "most"), [("cpu", 64 << 20), ("cuda", 512 << 20)])
def test_the_output_layer_is_cut_as_on_the_device(kind: str, most: int) -> None:
    """A million tokens: a chunk's logits are the most that is in memory at once."""
    dry = plan_without_weights(RunConfig(method="sft", data={"limit": 8}))  # type: ignore[arg-type]
    arguments: Any = SimpleNamespace(device=torch.device(kind))
    dry = replace(dry, plan=replace(dry.plan, arguments=arguments))
    with traced() as trace, torch.no_grad():
        without_numbers(dry.loaded.model)
        head = policy_without_numbers(dry, [dry.data.train[0]]).model.get_output_embeddings()
        hidden, targets = torch.empty(1 << 20, head.in_features), torch.zeros(1 << 20, dtype=torch.long)
        before = trace.alive["weights"]
        head(hidden, targets=targets)
    assert most / 2 < trace.peak - before < most * 1.5


def test_parts_are_counted_while_they_live() -> None:
    with traced() as trace:
        kept = torch.empty(1000)
        with trace.of("activations"):
            passing = torch.empty(500)
            view = passing[:10]
        del passing, view
        with trace.of("optimizer"):
            moments = torch.empty(200)
    assert trace.at_peak == {"weights": 4000, "activations": 2000}
    assert trace.alive == {"weights": 4000, "activations": 0, "optimizer": 800}
    assert kept.numel() + moments.numel() == 1200


def test_small_blocks_stay_in_the_heap_and_large_ones_are_given_back() -> None:
    with traced() as trace:
        small = torch.empty(1 << 20)
        del small
        large = torch.empty(16 << 20)
        del large
    assert trace.peak == 64 << 20
    assert trace.heap.peak == pytest.approx((4 << 20) + (64 << 20), abs=200)


def test_a_hole_takes_smaller_blocks_but_not_one_of_the_size_that_left_it() -> None:
    heap = Heap()
    for key in range(3):
        heap.allocate(key, 1 << 20)
    heap.free(1, 1 << 20)
    before = heap.peak
    heap.allocate(3, (1 << 20) - 100)
    assert heap.peak == before
    heap.free(3, (1 << 20) - 100)
    heap.allocate(4, 1 << 20)
    assert heap.peak > before + (1 << 20)


def test_neighbouring_holes_are_merged() -> None:
    heap = Heap()
    for key in range(4):
        heap.allocate(key, 1 << 20)
    heap.free(1, 1 << 20)
    heap.free(2, 1 << 20)
    before = heap.peak
    heap.allocate(4, 1 << 20)
    assert heap.peak == before


def test_kernels_of_half_precision_are_part_of_the_estimate_up_to_the_number_that_is_kept(monkeypatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4")
    with traced() as trace:
        for kind in (torch.float32, torch.bfloat16):
            for rows in (5, 6, 6):
                torch.empty(rows, 8, dtype=kind) @ torch.empty(8, 8, dtype=kind)
    assert [trace.kernels(batches) for batches in (0, 1, 3)] == [0, 2 * KERNEL, 4 * KERNEL]


def test_weights_and_states_of_full_training() -> None:
    found = _estimated()
    parts = found.parts
    assert found.traced
    assert parts["optimizer"] == pytest.approx(8 * _demo(), rel=0.01)
    assert parts["weights"] == pytest.approx(4 * _demo(), rel=0.01)


@pytest.mark.parametrize(("name", "bytes_a_weight"), [("sgd", 0), ("adafactor", 0.1), ("rmsprop", 4)])
def test_states_of_other_optimizers(name: str, bytes_a_weight: float) -> None:
    states = _estimated({"optim": name}).parts.get("optimizer", 0)
    assert states == pytest.approx(bytes_a_weight * _demo(), abs=0.1 * _demo())


def test_checkpointing_and_adapters_need_less() -> None:
    whole = _estimated()
    kept = lambda found: found.parts["activations"] + found.parts["attention"]
    assert kept(_estimated({"gradient_checkpointing": True})) < 0.5 * kept(whole)
    adapter = _estimated(model={"lora": {"r": 4}})
    assert adapter.parts["optimizer"] < 0.2 * whole.parts["optimizer"]


def test_a_step_of_several_micro_batches_keeps_its_gradients() -> None:
    one, several = (_estimated({"gradient_accumulation_steps": steps}) for steps in (1, 4))
    assert several.parts["gradients"] == pytest.approx(4 * _demo(), rel=0.01)
    assert several.gib > one.gib


@pytest.mark.parametrize("method", ["dpo", "grpo", "reward"])
def test_other_methods_are_traced(method: str) -> None:
    settings = {"name": method} | ({"reward": "length", "max_new_tokens": 8, "beta": 0.1} if method == "grpo" else {})
    found = _estimated(method=settings)
    assert found.traced
    assert found.parts["activations"] > 0
    assert ("start weights" in found.parts) == (method == "grpo")


def test_a_teacher_and_reward_models_are_counted(tmp_path: Path) -> None:
    """With the teacher's weights in its own type."""
    answers = {"max_new_tokens": 8}
    found = _estimated(method={"name": "distill", "teacher": "demo", **answers}).parts
    assert 1 < found["other models"] / (2 * _demo()) < 1.2  # bfloat16 with an adapter, as the checkpoint
    wide = _estimated(method={"name": "distill", "teacher": "demo", "teacher_dtype": "float32", **answers})
    assert 1 < wide.parts["other models"] / (4 * _demo()) < 1.2
    stored = {"name": "distill", "teacher_logps": "t.parquet", **answers}
    assert "other models" not in _estimated(method=stored).parts
    made = build_classifier(ModelConfig(name="demo"))
    made.model.save_pretrained(tmp_path / "rm")
    made.tokenizer.save_pretrained(tmp_path / "rm")
    rewarded = _estimated(method={"name": "grpo", "reward": ["length", str(tmp_path / "rm")], **answers})
    assert rewarded.parts["other models"] == pytest.approx(
        4 * sum(p.numel() for p in made.model.parameters()), rel=0.01
    )
    with pytest.raises(ModelError, match=r"method\.teacher: there is no model or run at no/such/teacher"):
        _estimated(method={"name": "distill", "teacher": "no/such/teacher"})


@pytest.mark.parametrize(
    ("sections", "models"),
    [
        ({"method": {"name": "grpo", "reward": {"name": "judge", "model": "demo"}, "max_new_tokens": 8}}, 1),
        ({"method": {"name": "grpo", "reward": {"name": "judge", "model": "m", "url": "http://localhost:1"}}}, 0),
        ({"eval": {"suites": ["judge"], "settings": {"judge": {"model": "demo"}}}}, 1),
        ({"eval": {"suites": ["judge"], "settings": {"judge": {"model": "demo", "baseline": "demo"}}}}, 2),
        ({"eval": {"suites": [], "during": {"judge": 1}, "settings": {"judge": {"model": "demo"}}}}, 1),
        (
            {
                "eval": {
                    "suites": "generate",
                    "settings": {"generate": {"rewards": [{"name": "judge", "model": "demo"}]}},
                }
            },
            1,
        ),
    ],
)
def test_judges_of_rewards_and_suites_are_counted(sections: dict[str, Any], models: int) -> None:
    config = RunConfig(**{"method": "sft", "eval": {"suites": []}, "data": {"limit": 8, "eval_limit": 4}, **sections})
    found = _other_models(plan_without_weights(config))
    assert [sum(p.numel() for p in one.model.parameters()) for one in found] == models * [_demo()]
    assert not any(p.numel() for one in found for p in one.model.parameters() if p.device.type != "meta")


@pytest.mark.parametrize(("method", "kind"), [("distill", ModelPolicy), ("reward", ClassifierPolicy)])
def test_a_student_is_traced_as_a_language_model(method: str, kind: type) -> None:
    settings = {"name": method} | ({"teacher": "demo"} if method == "distill" else {})
    dry = plan_without_weights(RunConfig(method=settings, data={"limit": 8}))  # type: ignore[arg-type]
    with traced():
        without_numbers(dry.loaded.model)
        assert isinstance(policy_without_numbers(dry, [dry.data.train[0]]), kind)


def test_what_processes_share() -> None:
    one, ddp, fsdp = (_estimated(run=run) for run in ({}, {"processes": 2}, {"processes": 2, "strategy": "fsdp"}))
    assert ddp.parts["buffers of reduction"] == 4 * _demo()
    assert ddp.parts["weights"] == one.parts["weights"]
    for part in ("weights", "optimizer"):
        assert fsdp.parts[part] == pytest.approx(one.parts[part] / 2, abs=1)
    assert 0 < fsdp.parts["whole layers"] < one.parts["weights"]


def test_a_model_that_is_sharded_as_it_is_read_is_never_whole(tmp_path: Path) -> None:
    """64 processes hold less after reading than the whole model, which is what one of them would take to read it."""
    tokenizer = build_model(ModelConfig()).tokenizer
    shape = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
    LlamaConfig(**shape, vocab_size=len(tokenizer), architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run = {"processes": 64, "strategy": "fsdp"}
    config = RunConfig(method="sft", model=str(tmp_path), data="demo", train=SHORT, eval={"suites": []}, run=run)
    dry = plan_without_weights(config)
    weights = 4 * sum(p.numel() for p in dry.loaded.model.parameters())
    found = estimate_memory(dry, libraries=1)
    assert found.parts["weights"] == pytest.approx(weights / 64, rel=1e-3)
    assert sum(found.parts.values()) < weights


@pytest.mark.parametrize(
    ("name", "method", "parts", "measured"),
    [("0.5b-32k", "orpo", 1, 52.1), ("1.5b-32k", "dpo", 2, 63.6)],
)
def test_of_a_gpu(name: str, method: str, parts: int, measured: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks in GiB of steps measured on an H100 (docs/gpu.md), when each linear layer cast its input by itself."""
    monkeypatch.setattr("alignkit_precision.forward.share_casts", lambda model: None)
    cell = next(c for c in grid("cuda") if (c.method, c.workload.name, c.shape.name) == (method, "mixed", name))
    found = estimated_peak(cell, range(2, 5), budget(cell, 5, parts), torch.device("cuda"))
    assert found / 2**30 == pytest.approx(measured, rel=0.02)
