"""TR-DPO: a reference that is moved towards the policy in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import settings
from alignkit.errors import AlignError
from alignkit.training.checkpoints import last_checkpoint
from transformers import TrainerCallback

from tests.helpers.engine import StopAt, build_trainer, configuration, random_pairs, tiny_llama, weights
from tests.helpers.onpolicy import lora

EVERY_TWO = {"name": "dpo", "beta": 0.5, "reference_update_every": 2, "reference_mix": 0.3}


class Watch(TrainerCallback):
    """Copies of the trained weights after every step."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(trained(model))


def trained(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def trainer(folder: Path, method: Any = EVERY_TWO, *callbacks: Any, adapter: bool = False, **train: Any) -> Any:
    config = configuration(method, **{"max_steps": 5, "optim": "adamw_torch", "learning_rate": 1e-2, **train})
    model = lora(tiny_llama()) if adapter else tiny_llama()
    made, _ = build_trainer(config, folder, random_pairs(16, longest=8), model=model, held_out=random_pairs(4, seed=1))
    for callback in callbacks:
        made.add_callback(callback)
    return made


@pytest.mark.parametrize("adapter", [False, True])
def test_the_reference_follows_the_formula(adapter: bool, tmp_path: Path) -> None:
    """As TRL's SyncRefModelCallback: reference = (1 - alpha) reference + alpha policy, after steps 2 and 4."""
    watch = Watch()
    made = trainer(tmp_path, EVERY_TWO, watch, adapter=adapter)
    expected = trained(made.model)
    made.train()
    for step in (2, 4):
        for kept, policy in zip(expected, watch.seen[step - 1], strict=True):
            kept.mul_(0.7).add_(policy, alpha=0.3)
    found = [kept for _, kept in made.parts.policy.start.weights()]
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    policy = made.parts.policy
    with policy.start.in_place():
        assert all(torch.equal(a, b) for a, b in zip(trained(made.model), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trained(made.model), watch.seen[-1], strict=True))


def test_a_hard_update_makes_the_reference_the_policy(tmp_path: Path) -> None:
    """The loss of the next step is that of equal models, also on held-out rows, which are evaluated after the update."""
    made = trainer(tmp_path, {"name": "dpo", "reference_update_every": 3, "reference_mix": 1.0}, max_steps=4)
    made.train()
    losses = {record["step"]: record["loss"] for record in made.state.log_history if "loss" in record}
    ln2 = torch.log(torch.tensor(2.0)).item()
    assert losses[1] == losses[4] == pytest.approx(ln2, abs=1e-6)
    assert abs(losses[2] - ln2) > 1e-4
    other = trainer(tmp_path, {"name": "dpo", "reference_update_every": 3, "reference_mix": 1.0}, max_steps=3)
    other.train()
    assert other.evaluate()["eval_loss"] == pytest.approx(ln2, abs=1e-6)


def test_a_reference_that_is_not_reached_by_an_update_is_the_start(tmp_path: Path) -> None:
    """The losses are those of dpo with its precomputed reference, and the weights those of its training."""
    made = [trainer(tmp_path, {"name": "dpo", "beta": 0.5, **more}) for more in ({}, {"reference_update_every": 9})]
    for one in made:
        one.train()
    first, second = ([r["loss"] for r in one.state.log_history if "loss" in r] for one in made)
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize(("adapter", "stop"), [(False, 3), (True, 2)])
def test_a_resumed_run_has_the_weights_of_a_whole_one(adapter: bool, stop: int, tmp_path: Path) -> None:
    """Of policy and reference, also where the checkpoint is of a step after which the reference is moved."""
    whole = trainer(tmp_path / "whole", adapter=adapter)
    whole.train()
    trainer(tmp_path / "cut", EVERY_TWO, StopAt(stop), adapter=adapter).train()
    second = trainer(tmp_path / "cut", adapter=adapter)
    second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    assert torch.equal(weights(second.model), weights(whole.model))
    references = ([kept for _, kept in made.parts.policy.start.weights()] for made in (whole, second))
    assert all(torch.equal(a, b) for a, b in zip(*references, strict=True))


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        (
            "dpo",
            ["loss=simpo", "reference_update_every=2"],
            "--set reference_update_every=2: method.reference_update_every: it has no effect: the chosen loss uses no reference",
        ),
        ("dpo", ["loss={simpo: 1, nll: 1}", "reference_update_every=2"], "the chosen loss uses no reference"),
        (
            "dpo",
            ["reference_mix=0.5"],
            "--set reference_mix=0.5: method.reference_mix: it has no effect without reference_update_every",
        ),
        ("dpo", ["reference_update_every=0"], "method.reference_update_every must be at least 1, not 0"),
        ("dpo", ["reference_update_every=2", "reference_mix=1.5"], "method.reference_mix must be at most 1, not 1.5"),
        ("dpo", ["sync_ref_model=true"], "unknown key method.sync_ref_model: here it is called reference_update_every"),
        ("cpo", ["reference_update_every=2"], "unknown key method.reference_update_every"),
    ],
)
def test_what_it_cannot_be_set_with_is_refused(name: str, sets: list[str], message: str) -> None:
    with pytest.raises(AlignError) as refused:
        settings.resolve(method=name, model="m", data="d", sets=sets)
    assert message in str(refused.value)
    assert settings.resolve(method="dpo", model="m", data="d", sets=["loss=simpo", "reference_mix=0.6"])
