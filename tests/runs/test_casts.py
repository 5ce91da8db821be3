"""Casts to bfloat16: as few as a step needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import RunConfig
from alignkit.config import LoraConfig, ModelConfig
from alignkit.demo import model_path
from alignkit.models.adapters import add_adapter
from alignkit.models.load import build_model
from alignkit.scoring.backends import innermost
from alignkit.scoring.classifier import policy_of
from alignkit.scoring.policy import ModelPolicy
from alignkit_precision import set_precision
from alignkit_precision.casts import share_casts
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from tests.helpers.engine import build_trainer, configuration, random_pairs, tiny_llama

PAIRS = random_pairs(6, longest=30)
HALF, FULL = torch.bfloat16, torch.float32


def casts_of_a_step(tmp_path: Path, rows_per_pass: int) -> tuple[int, torch.Tensor]:
    """Return how many casts of weights to bfloat16 an optimizer step makes, and its gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    model = tiny_llama()
    weights = {p.data_ptr() for p in model.parameters()}
    count = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal count
            kwargs = kwargs or {}
            if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == HALF:
                count += args[0].data_ptr() in weights
            return func(*args, **kwargs)

    config = configuration("sft", max_steps=1, per_device_train_batch_size=rows_per_pass)
    config.train = config.train.model_copy(update={"gradient_accumulation_steps": 8 // rows_per_pass})
    trainer, seen = build_trainer(config, tmp_path, random_pairs(8), model=model)
    set_precision(innermost(model), RunConfig(method="sft", train={"bf16": True}))
    with Count():
        trainer.train()
    return count, seen.gradients[0]


def test_trained_weights_are_cast_once_a_step_however_it_is_cut(tmp_path: Path) -> None:
    (whole, gradient), (cut, same) = (casts_of_a_step(tmp_path / str(rows), rows) for rows in (8, 1))
    layers = 7 * 2  # projections of two layers
    assert whole == layers + 1  # the head casts its own weight
    assert cut == layers + 8
    torch.testing.assert_close(gradient, same, rtol=0.02, atol=2e-3)


def test_frozen_float32_weights_and_the_inputs_of_adapters_are_not_cast_in_every_pass(tmp_path: Path) -> None:
    """The same losses and gradients as when autocast casts them, from a checkpoint in float32."""
    from torch.utils._python_dispatch import TorchDispatchMode

    shutil.copytree(model_path(), tmp_path / "model")
    (model := AutoModelForCausalLM.from_pretrained(model_path(), dtype=FULL)).save_pretrained(tmp_path / "model")
    casts = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal casts
            casts += func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") in (FULL, HALF)
            return func(*args, **(kwargs or {}))

    found = []
    for dtype in ("float32", "auto"):
        own = ModelConfig(name=str(tmp_path / "model"), dtype=dtype, lora=LoraConfig(r=2, target_modules="all-linear"))
        torch.manual_seed(0)
        config = RunConfig(method="sft", model=own, train={"bf16": True})
        policy = policy_of(build_model(own), config, torch.device("cpu"))
        trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        for p in trained.values():
            torch.nn.init.normal_(p, std=0.1)
        casts = 0
        with Count():
            scores = policy.score(random_pairs(3)).logps
        scores.sum().backward()
        found.append(
            (casts, scores.detach(), torch.cat([p.grad.flatten() for p in trained.values()]), policy.precision)
        )
    (often, scores, gradient, stored), (seldom, same, again, kept) = found
    for module in policy.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = True  # as peft has it
    casts = 0
    with Count():
        as_peft = policy.score(random_pairs(3)).logps
    torch.testing.assert_close(as_peft, same, rtol=0, atol=0)
    assert casts - seldom >= 2 * model.config.num_hidden_layers  # inputs that are bfloat16 already
    torch.testing.assert_close(scores, same, rtol=0, atol=0)
    torch.testing.assert_close(gradient, again, rtol=0, atol=0)
    assert often - seldom == 7 * model.config.num_hidden_layers
    assert stored["frozen"] == "float32"
    assert kept["frozen"] == "bfloat16 and float32"  # norms and embeddings are not multiplied


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_that_multiply_the_same_states_share_their_cast(lora: bool, checkpointing: bool) -> None:
    """The same bits as with a cast for each layer, with less kept for the backward pass."""
    found = []
    for shared in (False, True):
        model: Any = tiny_llama()
        if lora:
            model = add_adapter(model, LoraConfig(r=2, target_modules="all-linear"), 0, "CAUSAL_LM")
            torch.manual_seed(0)
            for p in model.parameters():
                _ = torch.nn.init.normal_(p, std=0.1) if p.requires_grad else None
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        policy = ModelPolicy(model.train())
        set_precision(innermost(model), RunConfig(method="sft", train={"bf16": True}))
        if not shared:
            for module in model.modules():
                if type(module) is torch.nn.Linear and module is not model.get_output_embeddings():
                    module.__dict__.pop("forward", None)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = policy.score(PAIRS).logps
        scores.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((scores.detach(), gradient, sum(kept.values())))
    (scores, gradient, much), (same, again, less) = found
    torch.testing.assert_close(same, scores, rtol=0, atol=0)
    torch.testing.assert_close(again, gradient, rtol=0, atol=0)
    # Of three casts for queries, keys and values, and of two for the halves of the gated product, one each is kept.
    tokens = sum(len(row.prompt) + sum(map(len, row.completions)) for row in PAIRS)
    spared = tokens * model.config.num_hidden_layers * model.config.hidden_size * 2 * (2 + 1)
    assert much - less == (0 if checkpointing else spared)


def test_a_shared_cast_is_made_again_after_a_change_in_place() -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
    share_casts(layers)
    states = torch.ones(2, 4)
    with torch.autocast("cpu", HALF), torch.no_grad():
        first = layers[0](states)
        states.mul_(2)
        torch.testing.assert_close(layers[1](states), layers[1](2 * torch.ones(2, 4)), rtol=0, atol=0)
        assert not torch.equal(layers[0](states), first)


def test_scoring_without_gradient_inside_a_step_costs_no_gradient() -> None:
    from alignkit.scoring.evaluating import cast_once
    from alignkit.scoring.reference import StartWeights

    model = tiny_llama()
    policy = ModelPolicy(model)
    set_precision(innermost(model), RunConfig(method="sft", train={"bf16": True}))
    policy.start = StartWeights(model)
    rows = random_pairs(3)
    before = policy.score(rows, grad=False).logps
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05)
    with cast_once():
        policy.score(rows, grad=False)
        moved = policy.score(rows).logps
        reference = policy.score(rows, reference=True).logps
        moved.sum().backward()
    torch.testing.assert_close(reference, before, rtol=0, atol=0)
    assert not torch.equal(moved.detach(), before)
    assert all(p.grad is not None for p in model.parameters())
