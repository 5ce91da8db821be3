"""Losses of the whole step: their exact gradient for any cut, and what they keep from step to step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract import registry
from alignkit_losses.examples import pairs
from alignkit_losses.scored import pairs_of

from tests.helpers.engine import build_trainer, configuration, random_pairs
from tests.helpers.scoring import assert_same_gradients, gradients

WHOLE = [e.name for e in registry.entries("align.losses") if registry.load(e).whole_step]


def loss(name: str) -> Any:
    return registry.load(registry.find("align.losses", name))


def trainer(folder: Path, method: Any, **train: Any) -> Any:
    """A trainer of 12 rows a step, whose policy has left the reference."""
    config = configuration(method, **{"per_device_train_batch_size": 12, **train})
    made, _ = build_trainer(config, folder, random_pairs(12, longest=8), held_out=random_pairs(5, seed=1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return made


def test_they_are_known() -> None:
    assert {*WHOLE} == {"aot", "aot_unpaired", "bco", "kto", "beta-dpo", "alpha-dpo"}


@pytest.mark.parametrize("name", WHOLE)
def test_a_step_in_pieces_has_the_gradient_of_the_loss_of_all_its_pairs(name: str, tmp_path: Path) -> None:
    method = {"name": "dpo", "loss": name, "beta": 0.3}
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 12}
    made = trainer(tmp_path, method)
    pieces = trainer(tmp_path, method, **cut)
    step = made.steps.rows_of_step(0)
    scored = pairs_of(made.parts.policy.score(step.examples), step)
    direct = loss(name)(scored, **made.parts.session.method.terms[0].settings).mean()
    direct.backward()
    wanted = gradients(made.model)
    assert pieces.training_step(pieces.model, {}).item() == pytest.approx(direct.item(), rel=1e-5)
    assert_same_gradients(gradients(pieces.model), wanted)


def test_bco_shifts_rewards_by_the_mean_of_all_steps() -> None:
    """Rewards 1 and -3, then 5 and 1: means -1 and, over all four, 1."""
    first, second = pairs([1.0], [-3.0]), pairs([5.0], [1.0])
    minus = lambda x: torch.nn.functional.softplus(torch.tensor([x]))
    state = first.state
    assert loss("bco")(first, beta=1.0).item() == pytest.approx((minus(-2.0) + minus(-2.0)).item())
    second.state.update(state)
    assert loss("bco")(second, beta=1.0).item() == pytest.approx((minus(-4.0) + minus(0.0)).item())


def test_beta_dpo_leaves_pairs_out() -> None:
    """Eight of ten are left; their mean loss is the mean of all ten numbers; another step draws others."""
    margins = [float(i) for i in range(10)]
    given = pairs(margins, [0.0] * 10)
    first = loss("beta-dpo")(given, dropped=0.2)
    again = loss("beta-dpo")(pairs(margins, [0.0] * 10), dropped=0.2)
    assert torch.equal(first, again)
    assert int((first > 0).sum()) == 8
    given.state["mean"] = given.state["spread"] = 3.0
    assert not torch.equal(loss("beta-dpo")(given, dropped=0.2) > 0, first > 0)


def test_what_they_keep_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    made = trainer(tmp_path, {"name": "dpo", "loss": {"bco": 1, "beta-dpo": 1}})
    made.training_step(made.model, {})
    method = made.parts.session.method
    kept = method.state()
    assert {"bco/sum", "bco/count", "beta-dpo/mean", "beta-dpo/steps"} <= kept.keys()
    made.evaluate()
    assert method.state() == kept, "an evaluation changes nothing"
    other = trainer(tmp_path, {"name": "dpo", "loss": {"bco": 1, "beta-dpo": 1}}).parts.session.method
    other.load_state(kept)
    assert other.state() == kept


def test_odds_ratio_with_its_nll_is_orpo(tmp_path: Path) -> None:
    losses, found = [], []
    for method in ({"name": "cpo", "loss": "odds_ratio", "lambda": 0.5}, {"name": "orpo", "lambda": 0.5}):
        made = trainer(tmp_path, method)
        losses.append(made.training_step(made.model, {}).item())
        found.append(gradients(made.model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert_same_gradients(*found, tol=1e-5)
